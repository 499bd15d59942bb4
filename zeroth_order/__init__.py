"""Zeroth-order optimization at inference memory: a gradient is a seed and a few coefficients."""

from zeroth_order.algorithms.mezo import mezo
from zeroth_order.algorithms.zo_sgd_conservative import zo_sgd_conservative
from zeroth_order.descent import Algorithm, DescentInfo, DescentState
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
from zeroth_order.estimates import Estimate, Estimator, value_and_grad
from zeroth_order.estimators.forward_gradient import forward_gradient
from zeroth_order.estimators.spsa import spsa
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
    "Algorithm",
    "DescentInfo",
    "DescentState",
    "Direction",
    "Estimate",
    "Estimator",
    "Leaf",
    "Noise",
    "SeededGradient",
    "Streamed",
    "apply",
    "box_muller_normal",
    "direction",
    "forward_gradient",
    "materialize",
    "mezo",
    "perturb",
    "popcount_normal",
    "rademacher",
    "read",
    "rows",
    "scaled",
    "spsa",
    "stream",
    "value_and_grad",
    "zo_sgd_conservative",
]
