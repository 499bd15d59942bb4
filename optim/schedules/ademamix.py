"""Warm-ups of AdEMAMix: of the weight of its slow momentum, and of that momentum's half-life.

With the final values `alpha` and `b3`, the decay `b1` of the fast momentum and warm-up steps `W`,
the count c = 0, 1, ... of steps made before gives, with s = (c + 1) / W::

    alpha_c = alpha s                                   s < 1, alpha from then on
    b3_c = h((1 - s) k(b1) + s k(b3))                   s < 1, b3 from then on
    k(b) = log(1/2) / log(b + 1e-8) - 1
    h(k) = (1/2)^(1 / (k + 1))

k + 1 is the half-life of an average with decay b, in steps: b3 rises from b1 so that the half-life
grows by the same number of steps each step. The 1e-8 is the authors'; it lets b1 be 0.

*Differences.* None from the authors' code, which counts steps from 1.

*Cost.* A few scalar operations a step; no state.

*Reference.* Pagliardini et al., The AdEMAMix Optimizer: Better, Faster, Older, 2024
(arXiv:2409.03137), section 3; apple/ml-ademamix@c3d73c09f128, pytorch/ademamix.py.
"""

import math

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


def ademamix_alpha_schedule(alpha: float, *, warmup_steps: float) -> optax.Schedule:
    """Linear from 0 to alpha, which step number `warmup_steps` is the first to have.

    Args:
      alpha: final weight of the slow momentum.
      warmup_steps: steps W; the authors take the whole run. 0 for none.

    Raises:
      ValueError: alpha or warmup_steps is a negative number.

    >>> import optim
    >>> schedule = optim.ademamix_alpha_schedule(2.0, warmup_steps=4)
    >>> [float(schedule(count)) for count in range(5)]
    [0.5, 1.0, 1.5, 2.0, 2.0]
    """
    trees.check_at_least("ademamix_alpha_schedule", 0, alpha=alpha, warmup_steps=warmup_steps)

    def schedule(count: ArrayLike) -> jax.Array:
        step = jnp.asarray(count, jnp.result_type(float)) + 1
        return jnp.where(step < warmup_steps, alpha * (step / max(warmup_steps, 1)), alpha)

    return schedule


def ademamix_b3_schedule(b3: float, *, b1: float, warmup_steps: float) -> optax.Schedule:
    """From b1 to b3, with a half-life that grows linearly.

    Args:
      b3: final decay of the slow momentum, in [0, 1).
      b1: decay of the fast momentum, in [0, 1).
      warmup_steps: steps W; the authors take the whole run. 0 for none.

    Raises:
      ValueError: b1 or b3 is outside [0, 1), or warmup_steps is negative.

    >>> import optim
    >>> schedule = optim.ademamix_b3_schedule(0.9999, b1=0.9, warmup_steps=100)
    >>> [round(float(schedule(count)), 4) for count in (0, 1, 49, 99)]
    [0.9909, 0.9952, 0.9998, 0.9999]
    """
    trees.check_fractions("ademamix_b3_schedule", b1=b1, b3=b3)
    trees.check_at_least("ademamix_b3_schedule", 0, warmup_steps=warmup_steps)
    start, end = (math.log(0.5) / math.log(b + 1e-8) - 1 for b in (b1, b3))

    def schedule(count: ArrayLike) -> jax.Array:
        step = jnp.asarray(count, jnp.result_type(float)) + 1
        s = step / max(warmup_steps, 1)
        return jnp.where(step < warmup_steps, 0.5 ** (1 / ((1 - s) * start + s * end + 1)), b3)

    return schedule
