"""Tests of optim.schedules."""
