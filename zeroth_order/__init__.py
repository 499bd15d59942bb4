"""Zeroth-order optimization at inference memory: a gradient is a seed and a few coefficients."""

from zeroth_order.algorithms.cbo import cbo
from zeroth_order.algorithms.consensus_hopping import consensus_hopping
from zeroth_order.algorithms.directional_attack import directional_attack
from zeroth_order.algorithms.fzoos import fzoos
from zeroth_order.algorithms.mezo import mezo
from zeroth_order.algorithms.mezo_adam import mezo_adam
from zeroth_order.algorithms.mezo_blockwise import mezo_blockwise
from zeroth_order.algorithms.mezo_momentum import mezo_momentum
from zeroth_order.algorithms.one_point_residual import OnePointState, one_point_residual
from zeroth_order.algorithms.qzo import qzo
from zeroth_order.algorithms.zo_optimizer import ZoOptimizerState, zo_optimizer
from zeroth_order.algorithms.zo_sgd_conservative import zo_sgd_conservative
from zeroth_order.descent import Algorithm, DescentInfo, DescentState
from zeroth_order.directions import Direction, Leaf, direction, perturb, scaled
from zeroth_order.estimates import Estimate, Estimator, value_and_grad
from zeroth_order.estimators.coefficients import clipped, finite, signed
from zeroth_order.estimators.forward_gradient import forward_gradient
from zeroth_order.estimators.hybrid import hybrid_value_and_grad
from zeroth_order.estimators.spsa import spsa
from zeroth_order.gradients import SeededGradient, apply, materialize
from zeroth_order.groups import by_group, gradient_norms, layer_groups, parameter_norms
from zeroth_order.log import Log, replay
from zeroth_order.modifiers.low_rank import low_rank
from zeroth_order.modifiers.sparsity import magnitude_thresholds, random_mask, small_weights
from zeroth_order.modifiers.sphere import sphere
from zeroth_order.noise import Noise, box_muller_normal, popcount_normal, rademacher
from zeroth_order.streaming import Streamed, product, read, rows, stream
from zeroth_order.window import WindowState

__all__ = [
    "Algorithm",
    "DescentInfo",
    "DescentState",
    "Direction",
    "Estimate",
    "Estimator",
    "Leaf",
    "Log",
    "Noise",
    "OnePointState",
    "SeededGradient",
    "Streamed",
    "WindowState",
    "ZoOptimizerState",
    "apply",
    "box_muller_normal",
    "by_group",
    "cbo",
    "clipped",
    "consensus_hopping",
    "direction",
    "directional_attack",
    "finite",
    "forward_gradient",
    "fzoos",
    "gradient_norms",
    "hybrid_value_and_grad",
    "layer_groups",
    "low_rank",
    "magnitude_thresholds",
    "materialize",
    "mezo",
    "mezo_adam",
    "mezo_blockwise",
    "mezo_momentum",
    "one_point_residual",
    "parameter_norms",
    "perturb",
    "popcount_normal",
    "product",
    "qzo",
    "rademacher",
    "random_mask",
    "read",
    "replay",
    "rows",
    "scaled",
    "signed",
    "small_weights",
    "sphere",
    "spsa",
    "stream",
    "value_and_grad",
    "zo_optimizer",
    "zo_sgd_conservative",
]
