"""Bilevel algorithms as (init, update) pairs, one file an algorithm."""
