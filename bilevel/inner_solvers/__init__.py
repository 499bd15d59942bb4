"""Solvers of the inner problem: (objective, init, *, tolerance, max_steps) -> (x, SolveInfo)."""
