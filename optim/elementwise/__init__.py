"""Optimizers that take the gradient a coordinate, or a leaf, at a time: lion, mars, prodigy, ..."""
