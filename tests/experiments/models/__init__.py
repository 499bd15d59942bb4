"""Tests of experiments/models."""
