"""Optimizers that consume curvature of the loss: sophia, adahessian, mfac, ..."""
