"""The probability of a refresh: flat at first, then an exponential decay to a floor.

With largest value `M`, least value `f`, decay `d` and flat start `W`, step t has::

    clip(M exp(-d (t - W)), f, M)

so that what changes fast at the beginning is refreshed at every step, and later every 1 / f steps.

*Differences.* None from the authors' code.

*Cost.* A few scalar operations a step; no state.

*Reference.* evanatyourservice/kron_torch@884427c32bc4, kron_torch/kron.py.
"""

import numbers

import jax
import jax.numpy as jnp
import optax

from optim import trees


def update_probability_schedule(
    *,
    max_prob: float = 1.0,
    min_prob: float = 0.03,
    decay: float = 0.001,
    flat_start: float = 500,
) -> optax.Schedule:
    """The schedule that PSGD Kron's authors give to the updates of its preconditioners.

    Args:
      max_prob: the probability M of the first steps.
      min_prob: the floor f.
      decay: rate d of the decay, a step.
      flat_start: steps W before it.

    Raises:
      ValueError: not 0 < min_prob <= max_prob <= 1, or decay or flat_start negative (traced values
        are not checked).

    >>> import optim
    >>> schedule = optim.update_probability_schedule(decay=0.1, flat_start=2)
    >>> [round(float(schedule(t)), 2) for t in (0, 2, 4, 100)]
    [1.0, 1.0, 0.82, 0.03]
    """
    trees.check_at_least("update_probability_schedule", 0, decay=decay, flat_start=flat_start)
    for name, value, most in (("min_prob", min_prob, max_prob), ("max_prob", max_prob, 1)):
        known = isinstance(value, numbers.Real) and isinstance(most, numbers.Real)
        if known and not 0 < value <= most:
            raise ValueError(
                f"update_probability_schedule: {name} is {value}; accepted: 0 < {name} <= {most}."
            )

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(count, float)
        return jnp.clip(max_prob * jnp.exp(-decay * (t - flat_start)), min_prob, max_prob)

    return schedule
