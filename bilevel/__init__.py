"""Bilevel problems, their hypergradients with a certificate, and the algorithms that use them."""

from bilevel.checks import NotConvergedWarning
from bilevel.differentiation.conditions import (
    KKTSolution,
    kkt_condition,
    qp_condition,
    stationary_condition,
)
from bilevel.differentiation.conic import ConicSolution, conic_residual
from bilevel.differentiation.hypergradient import (
    AdjointState,
    HypergradientInfo,
    Smoothness,
    hypergradient,
    hypergradient_error,
    init_adjoint,
)
from bilevel.differentiation.hypergradient_to_tolerance import (
    ToleranceInfo,
    ToleranceState,
    hypergradient_to_tolerance,
)
from bilevel.differentiation.implicit import (
    attach_root,
    custom_argmin,
    custom_fixed_point,
    custom_root,
)
from bilevel.differentiation.maps import (
    block_proximal_map,
    frank_wolfe_map,
    mirror_descent_map,
    newton_map,
    projected_gradient_map,
    proximal_gradient_map,
)
from bilevel.differentiation.trajectory_matching import trajectory_matching
from bilevel.differentiation.unrolled import unroll
from bilevel.differentiation.unrolled_hypergradient import unrolled_hypergradient
from bilevel.inner_solvers.anderson import anderson
from bilevel.inner_solvers.block_coordinate_descent import block_coordinate_descent
from bilevel.inner_solvers.broyden import broyden
from bilevel.inner_solvers.equality_qp import equality_qp
from bilevel.inner_solvers.isotonic import isotonic_kl, isotonic_l2
from bilevel.inner_solvers.l_bfgs_b import l_bfgs_b
from bilevel.inner_solvers.mirror_descent import mirror_descent
from bilevel.inner_solvers.osqp import OSQPInfo, osqp
from bilevel.inner_solvers.proximal_gradient import projected_gradient, proximal_gradient
from bilevel.inner_solvers.solving import InnerInfo
from bilevel.problem import BilevelBatch, BilevelProblem
from bilevel.projections.affine_set import projection_affine_set
from bilevel.projections.birkhoff import projection_birkhoff
from bilevel.projections.box_section import projection_box_section
from bilevel.projections.polyhedron import projection_polyhedron
from bilevel.projections.psd_cone import projection_psd_cone
from bilevel.projections.second_order_cone import projection_second_order_cone
from bilevel.projections.simplex_kl import projection_simplex_kl
from bilevel.projections.sparse_simplex import projection_sparse_simplex
from bilevel.projections.transport import projection_transport, projection_transport_kl
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
    "ConicSolution",
    "HypergradientInfo",
    "InnerInfo",
    "KKTSolution",
    "NotConvergedWarning",
    "OSQPInfo",
    "Smoothness",
    "ToleranceInfo",
    "ToleranceState",
    "anderson",
    "attach_root",
    "block_coordinate_descent",
    "block_proximal_map",
    "broyden",
    "conic_residual",
    "custom_argmin",
    "custom_fixed_point",
    "custom_root",
    "equality_qp",
    "frank_wolfe_map",
    "hypergradient",
    "hypergradient_error",
    "hypergradient_to_tolerance",
    "init_adjoint",
    "isotonic_kl",
    "isotonic_l2",
    "kkt_condition",
    "l_bfgs_b",
    "mirror_descent",
    "mirror_descent_map",
    "newton_map",
    "osqp",
    "projected_gradient",
    "projected_gradient_map",
    "projection_affine_set",
    "projection_birkhoff",
    "projection_box_section",
    "projection_polyhedron",
    "projection_psd_cone",
    "projection_second_order_cone",
    "projection_simplex_kl",
    "projection_sparse_simplex",
    "projection_transport",
    "projection_transport_kl",
    "prox_elastic_net",
    "prox_from_projection",
    "prox_group_lasso",
    "prox_lasso",
    "prox_non_negative_lasso",
    "prox_non_negative_ridge",
    "prox_ridge",
    "prox_total_variation",
    "proximal_gradient",
    "proximal_gradient_map",
    "qp_condition",
    "stationary_condition",
    "trajectory_matching",
    "unroll",
    "unrolled_hypergradient",
]
