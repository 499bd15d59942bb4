"""How schedules fall: shapes of a decay from one value to another.

From the value `p` at s = 0 to `e` at s = 1, the shapes are::

    linear          e + (p - e) (1 - s)
    cosine          e + (p - e) (1 + cos(pi s)) / 2
    mirror-cosine   e + (p - e) (2 (1 - s) - (1 + cos(pi s)) / 2)
    square          e + (p - e) (1 - s^2)
    1-sqrt          e + (p - e) (1 - sqrt(s))
    exponential     p (e / p)^s
    harmonic        1 / (s / e + (1 - s) / p)

The mirror image of the cosine in the line falls first and last where the cosine is flat.

*Reference.* Hägele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed Training
Durations, 2024 (arXiv:2405.18392) for 1-sqrt; epfml/llm-optimizer-benchmark, src/optim/schedule.py,
for the square and the mirrored cosine; Wen et al., Understanding Warmup-Stable-Decay Learning
Rates, 2024 (arXiv:2410.05192), whose inverse decay (marin-community/levanter@9263f81e,
src/levanter/optim/config.py) is the harmonic one.
"""

import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def _falling(left: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """The shape that has the part `left` of the way still before it."""
    return lambda s, peak, end: end + (peak - end) * left(s)


def _cosine(s: jax.Array) -> jax.Array:
    return (1 + jnp.cos(jnp.pi * s)) / 2


# (s, peak, end) -> value.
SHAPES: dict[str, Callable[..., jax.Array]] = {
    "linear": _falling(lambda s: 1 - s),
    "cosine": _falling(_cosine),
    "mirror-cosine": _falling(lambda s: 2 * (1 - s) - _cosine(s)),
    "square": _falling(lambda s: 1 - s**2),
    "1-sqrt": _falling(lambda s: 1 - jnp.sqrt(s)),
    "exponential": lambda s, peak, end: peak * (end / peak) ** s,
    "harmonic": lambda s, peak, end: 1 / (s / end + (1 - s) / peak),
}
_WITHOUT_ZERO = ("exponential", "harmonic")


def check_shape(method: str, decay_shape: str, **values: float) -> None:
    """Raises ValueError on a shape that is none, or on a value that it cannot reach.

    Args:
      method: the schedule that asks, for the error.
      decay_shape: the name of the shape.
      values: those between which it falls, by argument. Traced values are not checked.
    """
    if decay_shape not in SHAPES:
        raise ValueError(
            f"{method}: decay_shape is {decay_shape!r}; accepted: {', '.join(SHAPES)}."
        )
    for name, value in values.items():
        number = isinstance(value, numbers.Real)
        if decay_shape in _WITHOUT_ZERO and number and not value > 0:
            raise ValueError(
                f"{method}: {name} is {value}; "
                f"decay_shape {decay_shape!r} accepts what is positive."
            )


def decayed(
    decay_shape: str,
    step: jax.Array,
    start: ArrayLike,
    steps: ArrayLike,
    peak: ArrayLike,
    end: ArrayLike,
) -> jax.Array:
    """The value at `step` of a decay: `peak` up to `start`, `end` from start + steps on.

    Both are met exactly, and steps are subtracted as they come, so that integers stay exact.
    """
    s = jnp.clip((step - start) / jnp.maximum(steps, 1), 0.0, 1.0)
    fall = SHAPES[decay_shape](s, peak, end)
    return jnp.where(step < start + steps, jnp.where(s > 0, fall, peak), end)
