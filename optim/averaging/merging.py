"""Merging checkpoints: one set of parameters from several along a trajectory, by weights.

With checkpoints p_1, ..., p_n in the order of training the merged parameters are sum_i w_i p_i, and
the weights, which sum to 1, are in the proportions::

    latest_weights    1 for the k newest, 0 for the others
    ema_weights       d^(n - i)
    power_weights     m_i^q of a metric m, such as a loss (q < 0) or a step (q > 0)

The uniform mean of the k newest is LAWA, and with a k that grows with n the average of a tail.
`optim.lcsc` searches for weights. `optim.params_ema`, `params_tail_average` and `params_lawa` do it
while training goes on.

*Differences.* Metrics-weighted averaging (Yu and Choi) weighs checkpoints by training loss or step
with one penalty factor. Of its text the abstract alone was at hand, not its formula; the power here
is our form of it: one number however many checkpoints, uniform at 0, and the unit of the metric
does not matter.

*Cost.* One accumulator in float32 or wider beside the checkpoints, and one pass over each.

*Reference.* Kaddour, 2022 (arXiv:2209.14981), for the latest; Yu and Choi, Parameter-Efficient
Checkpoint Merging via Metrics-Weighted Averaging, 2025 (arXiv:2504.18580), for metrics.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optim import trees


def latest_weights(count: int, latest: int) -> jax.Array:
    """Equal weights of the newest checkpoints, 0 of the others.

    Args:
      count: n, all checkpoints, oldest first.
      latest: k of them that are averaged, 1 to n.

    Raises:
      ValueError: latest is less than 1 or more than count.

    >>> import optim
    >>> optim.latest_weights(4, latest=2).tolist()
    [0.0, 0.0, 0.5, 0.5]
    """
    if not 1 <= latest <= count:
        raise ValueError(
            f"latest_weights: latest is {latest}; accepted: 1 to count, which is {count}."
        )
    return jnp.where(jnp.arange(count) >= count - latest, 1 / latest, 0.0)


def ema_weights(count: int, decay: ArrayLike) -> jax.Array:
    """Weights that fall by a factor with each older checkpoint, those of `params_ema`.

    Args:
      count: n, at least 1.
      decay: d, in [0, 1); may be traced.

    Raises:
      ValueError: count is less than 1, or decay a number out of range.

    >>> import optim
    >>> [round(float(w), 4) for w in optim.ema_weights(3, decay=0.5)]  # 1 : 2 : 4
    [0.1429, 0.2857, 0.5714]
    """
    trees.check_at_least("ema_weights", 1, count=count)
    trees.check_fractions("ema_weights", decay=decay)
    powers = jnp.asarray(decay, float) ** jnp.arange(count - 1, -1, -1)
    return powers / powers.sum()


def power_weights(metrics: ArrayLike | Sequence[float], power: ArrayLike) -> jax.Array:
    """Weights in the proportion of a power of a metric of each checkpoint.

    Args:
      metrics: (n,) positive numbers, such as losses or steps.
      power: q; negative where less is better, as for losses, positive where more is; 0 is uniform.

    Raises:
      ValueError: metrics are not a vector, or one of them is not positive. Traced ones are not
        checked for that.

    >>> import optim
    >>> [round(float(w), 4) for w in optim.power_weights([2.0, 1.0, 1.0], power=-1.0)]
    [0.2, 0.4, 0.4]
    """
    values = trees.promote(jnp.asarray(metrics))
    if values.ndim != 1 or not len(values):
        raise ValueError(
            f"power_weights: metrics is of shape {values.shape}; accepted: (n,), n at least 1."
        )
    if not isinstance(values, jax.core.Tracer) and not bool(jnp.all(values > 0)):
        raise ValueError(
            f"power_weights: metrics is {np.asarray(metrics).tolist()}; accepted: positive numbers."
        )
    return jax.nn.softmax(power * jnp.log(values))


def combine_checkpoints(
    checkpoints: Sequence[Any] | Any, weights: ArrayLike | Sequence[float]
) -> optax.Params:
    """The checkpoints' sum by weights.

    Args:
      checkpoints: n trees of one structure, in a list or tuple; or one tree whose leaves have a
        leading axis of n, which itself is no list or tuple.
      weights: (n,), as a rule with the sum 1; may be traced and negative.

    Returns:
      A tree like one checkpoint, of its dtypes; sums are taken in float32 or wider. Leaves that are
      not of floats are those of the last checkpoint.

    Raises:
      ValueError: there is no checkpoint, or there are not as many weights as checkpoints.

    >>> import jax.numpy as jnp, optim
    >>> checkpoints = [{"w": jnp.array([4.0])}, {"w": jnp.array([2.0])}]
    >>> optim.combine_checkpoints(checkpoints, [0.25, 0.75])["w"].tolist()
    [2.5]
    """
    given = jnp.asarray(weights)
    listed = type(checkpoints) in (list, tuple)
    leaves = [] if listed else jax.tree.leaves(checkpoints)
    count = len(checkpoints) if listed else len(leaves[0]) if leaves else 0
    if not count or given.shape != (count,):
        raise ValueError(
            f"combine_checkpoints: weights is of shape {given.shape} and there are {count} "
            f"checkpoints; accepted: a weight for each, at least one."
        )

    def combine(column: Any) -> jax.Array:
        last = jnp.asarray(column[-1])
        if not jnp.issubdtype(last.dtype, jnp.inexact):
            return last
        dtype = trees.accumulator_dtype(last)
        terms = (w * jnp.asarray(leaf, dtype) for w, leaf in zip(given.astype(dtype), column))
        return sum(terms, start=jnp.zeros_like(last, dtype=dtype)).astype(last.dtype)

    if listed:
        return jax.tree.map(lambda *column: combine(column), *checkpoints)
    return jax.tree.map(combine, checkpoints)
