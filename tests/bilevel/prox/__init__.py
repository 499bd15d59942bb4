"""Tests of prox operators."""
