"""Optimizers that move or remember a part of the parameters: galore, apollo, frugal, badam, ..."""
