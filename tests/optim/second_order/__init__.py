"""Tests of optim.second_order."""
