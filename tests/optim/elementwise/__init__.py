"""Tests of optim.elementwise."""
