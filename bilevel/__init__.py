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
from bilevel.inner_solvers.solving import InnerInfo, NotConvergedWarning
from bilevel.problem import BilevelBatch, BilevelProblem
from bilevel.prox.elastic_net import prox_elastic_net
from bilevel.prox.from_projection import prox_from_projection
from bilevel.prox.group_lasso import prox_group_lasso
from bilevel.prox.lasso import prox_lasso
from bilevel.prox.non_negative_lasso import prox_non_negative_lasso
from bilevel.prox.non_negative_ridge import prox_non_negative_ridge
from bilevel.prox.ridge import prox_ridge
from bilevel.prox.total_variation import prox_total_variation

__all__ = [
    "AdjointState",
    "BilevelBatch",
    "BilevelProblem",
    "HypergradientInfo",
    "InnerInfo",
    "NotConvergedWarning",
    "Smoothness",
    "attach_root",
    "custom_argmin",
    "custom_fixed_point",
    "custom_root",
    "hypergradient",
    "hypergradient_error",
    "init_adjoint",
    "prox_elastic_net",
    "prox_from_projection",
    "prox_group_lasso",
    "prox_lasso",
    "prox_non_negative_lasso",
    "prox_non_negative_ridge",
    "prox_ridge",
    "prox_total_variation",
]
