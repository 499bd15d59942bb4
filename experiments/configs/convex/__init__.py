"""Convex problems whose optimum is known."""
