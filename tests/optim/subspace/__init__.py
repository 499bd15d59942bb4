"""Tests of optim.subspace."""
