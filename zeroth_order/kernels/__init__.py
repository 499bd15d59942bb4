"""Pallas kernels of the perturbed products, one file an operation."""
