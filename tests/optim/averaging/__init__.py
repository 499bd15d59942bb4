"""Tests of optim.averaging."""
