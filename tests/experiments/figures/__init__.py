"""Tests of experiments/figures."""
