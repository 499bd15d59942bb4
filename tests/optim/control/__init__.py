"""Tests of optim.control."""
