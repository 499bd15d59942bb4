"""Experiments: run a config, list, bench, reproduce (python -m experiments)."""
