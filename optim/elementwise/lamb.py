"""LAMB: Adam's direction with decay, as long in every leaf as the leaf itself.

With gradient `g`, its norm `G` over all leaves, moments `m` and `v` (0 at the start) after `t`
steps, parameters `p`, rate `lr` and decay `wd`; norms of directions and parameters are by leaf::

    g = g / max(G / max_grad_norm, 1)
    m = b1 m + (1 - b1) g
    v = b2 v + (1 - b2) g^2
    u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + wd p
    p = p - lr |p| / |u| u       the ratio is 1 where |p| or |u| is 0

*Differences.*

1. From the paper: no function clips |p|, and gradients are clipped to a global norm of 1, both as
   in NVIDIA's code, which the recordings are of. `max_grad_norm=None` leaves the gradients alone.
   That code adapts every leaf; others leave vectors out, which is `trust_ratio_mask` here.
2. From `optax.lamb`: the clipping; decay is 0.01 by default (0 there); the mask of the trust
   ratio; moments and arithmetic are float32 for bfloat16 parameters (bfloat16 there).

*Cost.* Two moments: 8 bytes a parameter. No matrix product; one pass over the gradient for its
norm, one over the direction and the parameters for theirs.

*Reference.* You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes,
2020 (arXiv:1904.00962); NVIDIA/apex@6424da3b4faa, tests/L0/run_optimizers/test_lamb.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


class ScaleByLambState(NamedTuple):
    """State of `scale_by_lamb`."""

    steps: jax.Array  # (), int32, steps made
    mu: optax.Updates  # like the parameters, float32 or wider: mean of gradients m
    nu: optax.Updates  # like the parameters, float32 or wider: mean of their squares v


def scale_by_lamb(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-6,
    *,
    weight_decay: ArrayLike = 0.01,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
    trust_ratio_mask: optax.Params | Callable[[optax.Params], Any] | None = None,
    max_grad_norm: ArrayLike | None = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """The step of LAMB at rate 1, decay included, since the trust ratio measures it too.

    Args:
      b1: decay of the mean of gradients, in [0, 1).
      b2: decay of the mean of squares, in [0, 1).
      eps: added to the root of the corrected mean of squares.
      weight_decay: wd, added to the direction before its norm is taken.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.
      trust_ratio_mask: the same, of the leaves whose step is as long as they are; the others take
        the direction u itself. By default all leaves.
      max_grad_norm: gradients whose norm over all leaves is larger are scaled down to it; None
        leaves them as they are.

    Raises:
      ValueError: b1 or b2 is a number outside [0, 1), or update is called without params.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_lamb(weight_decay=0.0)
    >>> params = jnp.array([3.0, 4.0])  # of norm 5
    >>> updates, _ = tx.update(jnp.array([0.1, 0.1]), tx.init(params), params)
    >>> print(updates, jnp.linalg.norm(updates))
    [3.535534 3.535534] 5.0
    """
    trees.check_fractions("lamb", b1=b1, b2=b2)

    def init(params: optax.Params) -> ScaleByLambState:
        zeros = trees.zeros_like(params), trees.zeros_like(params)
        return ScaleByLambState(jnp.zeros((), jnp.int32), *zeros)

    def update(
        updates: optax.Updates,
        state: ScaleByLambState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLambState]:
        del extra_args
        if params is None:
            raise ValueError("lamb: params is None; accepted: update(updates, state, params).")
        steps = optax.safe_increment(state.steps)
        norm = trees.norm(updates)

        def rule(
            g: jax.Array,
            mu: jax.Array,
            nu: jax.Array,
            p: jax.Array,
            decays: jax.Array,
            adapts: jax.Array,
        ) -> tuple[jax.Array, ...]:
            if max_grad_norm is not None:
                most = trees.as_dtype(max_grad_norm, g.dtype)
                g = g * (most / jnp.maximum(norm.astype(g.dtype), most))
            mu, nu = trees.average(b1, mu, g), trees.average(b2, nu, jnp.square(g))
            root = jnp.sqrt(nu / trees.bias_correction(b2, steps, g.dtype))
            mean = mu / trees.bias_correction(b1, steps, g.dtype)
            u = mean / (root + trees.as_dtype(eps, g.dtype))
            u = u + trees.as_dtype(weight_decay, g.dtype) * decays * p
            return jnp.where(adapts > 0, trees.trust_ratio(u, p), 1) * u, mu, nu

        masks = trees.mask_like(params, mask), trees.mask_like(params, trust_ratio_mask)
        updates, (mu, nu) = trees.map_leaves(rule, updates, (state.mu, state.nu), params, *masks)
        return updates, ScaleByLambState(steps, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def lamb(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-6,
    weight_decay: ArrayLike = 0.01,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
    trust_ratio_mask: optax.Params | Callable[[optax.Params], Any] | None = None,
    max_grad_norm: ArrayLike | None = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """LAMB as NVIDIA's code has it; the authors' default rate, 1e-3, has to be given.

    Args:
      learning_rate: length lr of the step of a leaf, relative to the leaf's norm, or a schedule.
      b1: decay of the mean of gradients, in [0, 1).
      b2: decay of the mean of squares, in [0, 1).
      eps: added to the root of the corrected mean of squares.
      weight_decay: wd, added to the direction before its norm is taken.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.
      trust_ratio_mask: the same, of the leaves whose step is as long as they are.
      max_grad_norm: largest norm of the gradient over all leaves; None for any.

    Raises:
      ValueError: b1 or b2 is a number outside [0, 1), or update is called without params.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.lamb(0.1, weight_decay=0.0)
    >>> params = jnp.array([3.0, 4.0])
    >>> updates, _ = tx.update(jnp.array([0.0, -0.5]), tx.init(params), params)
    >>> print(optim.apply_updates(params, updates))
    [3.  4.5]
    """
    return optax.chain(
        scale_by_lamb(
            b1,
            b2,
            eps,
            weight_decay=weight_decay,
            mask=mask,
            trust_ratio_mask=trust_ratio_mask,
            max_grad_norm=max_grad_norm,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )
