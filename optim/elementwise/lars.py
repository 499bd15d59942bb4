"""LARS: gradient descent with momentum, steps of every matrix in proportion to its norm.

With gradient `g`, momentum `mu` (0 at the start), parameters `p`, rate `lr` and decay `wd`; norms
are by leaf::

    d  = g + wd p                                   g alone where the mask leaves p out
    d  = trust_coefficient |p| / |d| d              the ratio is 1 where |p| or |d| is 0
    mu = momentum mu + d
    p  = p - lr mu

Leaves with fewer than two axes neither decay nor are scaled, unless the masks say otherwise.

*Differences.*

1. From the paper: decay is part of |d|, where the paper has |g| + wd |p|, and the rate stands
   outside the momentum, where the paper has it inside; both as in the code that self-supervised
   learning is done with, which the recordings are of. Without a schedule the second is the same.
2. From `optax.lars`: the rate outside the momentum; no decay and no scaling of vectors by default
   (all leaves there); momentum in float32 for bfloat16 parameters (bfloat16 there).

*Cost.* One momentum: 4 bytes a parameter. No matrix product; one pass over gradient and parameters
for their norms.

*Reference.* You et al., Large Batch Training of Convolutional Networks, 2017 (arXiv:1708.03888);
facebookresearch/mae@efb2a8062c20, util/lars.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


class ScaleByLarsState(NamedTuple):
    """State of `scale_by_lars`."""

    mu: optax.Updates  # like the parameters, float32 or wider: momentum mu


def _matrices(params: optax.Params) -> Any:
    """True for the leaves with two axes or more: what the authors decay and scale."""
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


def scale_by_lars(
    momentum: ArrayLike = 0.9,
    trust_coefficient: ArrayLike = 0.001,
    *,
    weight_decay: ArrayLike = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = _matrices,
    trust_ratio_mask: optax.Params | Callable[[optax.Params], Any] | None = _matrices,
) -> optax.GradientTransformationExtraArgs:
    """The momentum of LARS, decay included, since the trust ratio measures it too.

    Args:
      momentum: factor of the momentum before a gradient is added, in [0, 1).
      trust_coefficient: norm of a matrix's new contribution relative to the matrix.
      weight_decay: wd, added to the gradient before its norm is taken.
      mask: tree of booleans like the parameters (or a function from them to it): what decays;
        None for everything.
      trust_ratio_mask: the same, of the leaves that are scaled.

    Raises:
      ValueError: momentum is a number outside [0, 1), or update is called without params.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_lars(trust_coefficient=0.1)
    >>> params = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([3.0, 4.0])}
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> print(updates["w"], updates["b"])
    [[0.3 0.4]] [3. 4.]
    """
    trees.check_fractions("lars", momentum=momentum)

    def init(params: optax.Params) -> ScaleByLarsState:
        return ScaleByLarsState(trees.zeros_like(params))

    def update(
        updates: optax.Updates,
        state: ScaleByLarsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLarsState]:
        del extra_args
        if params is None:
            raise ValueError("lars: params is None; accepted: update(updates, state, params).")

        def rule(
            g: jax.Array, mu: jax.Array, p: jax.Array, decays: jax.Array, adapts: jax.Array
        ) -> tuple[jax.Array, ...]:
            d = g + trees.as_dtype(weight_decay, g.dtype) * decays * p
            ratio = trees.trust_ratio(d, p, trees.as_dtype(trust_coefficient, g.dtype))
            mu = trees.as_dtype(momentum, g.dtype) * mu + jnp.where(adapts > 0, ratio, 1) * d
            return mu, mu

        masks = trees.mask_like(params, mask), trees.mask_like(params, trust_ratio_mask)
        updates, (mu,) = trees.map_leaves(rule, updates, (state.mu,), params, *masks)
        return updates, ScaleByLarsState(mu)

    return optax.GradientTransformationExtraArgs(init, update)


def lars(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: ArrayLike = 0.9,
    trust_coefficient: ArrayLike = 0.001,
    weight_decay: ArrayLike = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = _matrices,
    trust_ratio_mask: optax.Params | Callable[[optax.Params], Any] | None = _matrices,
) -> optax.GradientTransformationExtraArgs:
    """LARS; the rate has no default here and is 0 in the authors' code.

    Args:
      learning_rate: factor lr of the momentum, or a schedule of it.
      momentum: factor of the momentum before a gradient is added, in [0, 1).
      trust_coefficient: norm of a matrix's new contribution relative to the matrix.
      weight_decay: wd, added to the gradient before its norm is taken.
      mask: tree of booleans like the parameters (or a function from them to it): what decays; by
        default the leaves with two axes or more, None for everything.
      trust_ratio_mask: the same, of the leaves that are scaled.

    Raises:
      ValueError: momentum is a number outside [0, 1), or update is called without params.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.lars(0.5, trust_coefficient=0.1)
    >>> params = jnp.array([[3.0, 4.0]])
    >>> updates, _ = tx.update(jnp.array([[0.0, 8.0]]), tx.init(params), params)
    >>> print(optim.apply_updates(params, updates))
    [[3.   3.75]]
    """
    return optax.chain(
        scale_by_lars(
            momentum,
            trust_coefficient,
            weight_decay=weight_decay,
            mask=mask,
            trust_ratio_mask=trust_ratio_mask,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )
