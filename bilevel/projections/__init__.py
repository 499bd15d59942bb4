"""Projections onto convex sets that optax lacks."""
