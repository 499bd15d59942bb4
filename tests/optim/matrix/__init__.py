"""Tests of optim.matrix."""
