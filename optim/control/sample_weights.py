"""Weights of the samples of a batch by their losses: less of what is learned, or of the extremes.

With the losses `l_i` of n samples, h in [-1, 1], and a temperature `r` (the paper's)::

    h_i = 2 (l_i - min(l)) / max(max(l) - min(l), 1e-6) - 1
    f_i = min(h_i + 1, 1)      linupper: samples of low loss weigh less
        = 1 - h_i^2            quadratic: those of low and of high loss weigh less
        = |h_i|                extremes: those in the middle weigh less
    w   = softmax(f / r)

These w maximise sum_i w_i f_i - r KL(w, uniform). For large r they are uniform, exactly so for an
infinite r; at r = 1 the largest is at most e times the smallest. The loss to train on is
sum_i w_i l_i; no gradient goes through the weights.

*Differences.* The paper's delta, the bound of h, is 1 as in its authors' code; another one would be
another temperature, but for quadratic, where it cancels. Their code's weights of equal losses are
uniform too, up to the rounding of a division by 1e-6 that here meets an exact zero. They keep
weights uniform for the first 1000 of 20,000 steps and the temperature then constant, from 0.4 to 1,
with lines for a change in steps that are out of use; the linear way from one temperature to another
in `loss_temperature_schedule` is ours.

*Cost.* A few passes over n numbers.

*Reference.* Sow et al., Dynamic Loss-Based Sample Reweighting for Improved Large Language Model
Pretraining, 2025 (arXiv:2502.06733); src/trainer.py of
sowmaster/Sample-Level-Loss-Reweighting-ICLR-2025@edd6f1525892.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from optim.schedules.steps import steps_of

_RANGE = 1e-6

_SCHEMES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linupper": lambda h: jnp.minimum(h + 1, 1),
    "quadratic": lambda h: 1 - h**2,
    "extremes": jnp.abs,
}


def loss_weights(
    losses: ArrayLike, temperature: ArrayLike = 1.0, scheme: str = "linupper"
) -> jax.Array:
    """Weights of samples from their losses.

    Args:
      losses: (n,), n at least 2, of single samples.
      temperature: r, positive; infinity gives uniform weights. May be traced.
      scheme: "linupper", "quadratic" or "extremes".

    Returns:
      (n,) weights with the sum 1, in float32 or wider; constants for differentiation.

    Raises:
      ValueError: losses are no vector of two or more, temperature is a number that is not positive,
        or scheme is none of the three.

    >>> import jax.numpy as jnp, optim
    >>> losses = jnp.array([1.0, 2.0, 3.0])
    >>> [round(float(w), 3) for w in optim.loss_weights(losses)]  # 1 : e : e
    [0.155, 0.422, 0.422]
    """
    if jnp.ndim(losses) != 1 or jnp.shape(losses)[0] < 2:
        raise ValueError(
            f"loss_weights: losses is of shape {jnp.shape(losses)}; accepted: (n,), n at least 2."
        )
    trees.check_positive("loss_weights", temperature=temperature)
    if scheme not in _SCHEMES:
        raise ValueError(f"loss_weights: scheme is {scheme!r}; accepted: {', '.join(_SCHEMES)}.")
    dtype = trees.accumulator_dtype(losses)
    values = jax.lax.stop_gradient(trees.as_dtype(losses, dtype))
    least, most = values.min(), values.max()
    h = 2 * (values - least) / jnp.maximum(most - least, _RANGE) - 1
    return jax.nn.softmax(_SCHEMES[scheme](h) / trees.as_dtype(temperature, dtype))


def loss_temperature_schedule(
    init_value: float,
    end_value: float | None = None,
    *,
    total_steps: int,
    warmup_steps: int | float = 0.05,
) -> optax.Schedule:
    """The temperature of `loss_weights`: infinite in a warm-up, then linear between two values.

    Args:
      init_value: the temperature after the warm-up, positive.
      end_value: that at the end of the run, positive; None keeps the first.
      total_steps: steps of the whole run, the warm-up among them.
      warmup_steps: steps of uniform weights: an int counts them, a float is a fraction of
        total_steps; the authors' 1000 of 20,000.

    Raises:
      ValueError: a temperature is not positive, total_steps is below 1, or the warm-up is negative
        or leaves no step after it.

    >>> import optim
    >>> schedule = optim.loss_temperature_schedule(1.0, 0.5, total_steps=6, warmup_steps=2)
    >>> [float(schedule(t)) for t in range(6)]
    [inf, inf, 1.0, 0.875, 0.75, 0.625]
    """
    name = "loss_temperature_schedule"
    end_value = init_value if end_value is None else end_value
    trees.check_positive(name, init_value=init_value, end_value=end_value)
    warmup = steps_of(name, "warmup_steps", warmup_steps, total_steps)
    if warmup >= total_steps:
        raise ValueError(
            f"{name}: warmup_steps is {warmup}; accepted: fewer than total_steps = {total_steps}."
        )
    after = optax.linear_schedule(init_value, end_value, total_steps - warmup)
    return optax.join_schedules([optax.constant_schedule(jnp.inf), after], [warmup])
