"""Synthetic problems of which everything is known."""
