"""Optimizers that treat a gradient as a matrix: muon, scion, soap, shampoo, kron, cosmos."""
