"""MeZO, ZO2 and their kin as (init, update) pairs, one file an algorithm."""
