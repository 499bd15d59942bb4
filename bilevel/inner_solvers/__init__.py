"""Solvers of the inner problem: (function, init, *, tolerance, max_steps) -> (x, InnerInfo)."""
