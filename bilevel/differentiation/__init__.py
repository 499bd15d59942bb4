"""Derivatives of a solver's solution: implicit, unrolled, finite-difference."""
