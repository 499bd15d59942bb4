"""Precision of states and parameters: stochastic rounding, eight-bit states."""
