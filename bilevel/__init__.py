"""Bilevel problems, their hypergradients with a certificate, and the algorithms that use them."""

from bilevel.differentiation.hypergradient import (
    AdjointState,
    HypergradientInfo,
    Smoothness,
    hypergradient,
    hypergradient_error,
    init_adjoint,
)
from bilevel.differentiation.implicit import (
    attach_root,
    custom_argmin,
    custom_fixed_point,
    custom_root,
)
from bilevel.problem import BilevelBatch, BilevelProblem

__all__ = [
    "AdjointState",
    "BilevelBatch",
    "BilevelProblem",
    "HypergradientInfo",
    "Smoothness",
    "attach_root",
    "custom_argmin",
    "custom_fixed_point",
    "custom_root",
    "hypergradient",
    "hypergradient_error",
    "init_adjoint",
]
