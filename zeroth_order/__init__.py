"""Zeroth-order optimization at inference memory: a gradient is a seed and a few coefficients."""

from zeroth_order.directions import (
    Direction,
    Leaf,
    SeededGradient,
    apply,
    direction,
    materialize,
    perturb,
    scaled,
)
from zeroth_order.noise import (
    Noise,
    box_muller_normal,
    popcount_normal,
    rademacher,
)
from zeroth_order.streaming import (
    Streamed,
    read,
    rows,
    stream,
)

__all__ = [
    "Direction",
    "Leaf",
    "Noise",
    "SeededGradient",
    "Streamed",
    "apply",
    "box_muller_normal",
    "direction",
    "materialize",
    "perturb",
    "popcount_normal",
    "rademacher",
    "read",
    "rows",
    "scaled",
    "stream",
]
