"""Estimates of curvature, which are not optimizers: products, diagonal, spectrum."""
