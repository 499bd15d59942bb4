"""Tests of the solvers of inner problems."""
