"""Tests of experiments/data."""
