"""Zeroth-order optimization at inference memory: a gradient is a seed and a few coefficients."""
