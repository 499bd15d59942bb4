"""Pallas kernels, one file an operation: reference, kernel, dispatcher."""
