"""Warmup-stable-decay: a linear warm-up, a constant, and a decay to a final value.

With peak `p`, initial value `i`, final value `e`, total steps `T`, warm-up steps `W`, decay steps
`D` and s = (t - (T - D)) / D, step t has::

    i + (p - i) t / W    t < W
    p                    W <= t <= T - D
    d(s)                 T - D < t < T
    e                    t >= T

and the shape d is one of::

    linear         e + (p - e) (1 - s)
    cosine         e + (p - e) (1 + cos(pi s)) / 2
    1-sqrt         e + (p - e) (1 - sqrt(s))
    exponential    p (e / p)^s
    harmonic       1 / (s / e + (1 - s) / p)

So the first step after the warm-up has the peak, and step T, were there one, the final value.

*Differences.* The codes in use let the last step reach the final value, or miss it, by conventions
of their own; here a decay of D steps starts at the peak and would end one step after the run, so
that a decay to 0 wastes no step.

*Cost.* A few scalar operations a step; no state.

*Reference.* Hu et al., MiniCPM, 2024 (arXiv:2404.06395) for the schedule; Hägele et al., Scaling
Laws and Compute-Optimal Training Beyond Fixed Training Durations, 2024 (arXiv:2405.18392) for
1-sqrt; Wen et al., Understanding Warmup-Stable-Decay Learning Rates, 2024 (arXiv:2410.05192), whose
inverse decay (marin-community/levanter@9263f81e, src/levanter/optim/config.py) is the harmonic one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

_SHAPES: dict[str, Callable[[jax.Array, float, float], jax.Array]] = {
    "linear": lambda s, peak, end: end + (peak - end) * (1 - s),
    "cosine": lambda s, peak, end: end + (peak - end) * (1 + jnp.cos(jnp.pi * s)) / 2,
    "1-sqrt": lambda s, peak, end: end + (peak - end) * (1 - jnp.sqrt(s)),
    "exponential": lambda s, peak, end: peak * (end / peak) ** s,
    "harmonic": lambda s, peak, end: 1 / (s / end + (1 - s) / peak),
}
_SHAPES_WITHOUT_ZERO = ("exponential", "harmonic")


def wsd_schedule(
    peak_value: float,
    *,
    total_steps: int,
    warmup_steps: int | float = 0,
    decay_steps: int | float = 0.1,
    decay_shape: str = "linear",
    init_value: float = 0.0,
    end_value: float = 0.0,
) -> optax.Schedule:
    """Warm up, stay, decay.

    Args:
      peak_value: the stable value.
      total_steps: steps of the whole run.
      warmup_steps: an int counts steps; a float below 1 is a fraction of total_steps.
      decay_steps: likewise; 0.1 to 0.2 of the run are usual.
      decay_shape: "linear", "cosine", "1-sqrt", "exponential" or "harmonic".
      init_value: where the warm-up starts.
      end_value: where the decay ends; positive for "exponential" and "harmonic".

    Raises:
      ValueError: steps that are negative or do not fit into total_steps, an unknown shape, or an
        end_value that the shape cannot reach.

    >>> import optim
    >>> schedule = optim.wsd_schedule(1.0, total_steps=10, warmup_steps=2, decay_steps=4)
    >>> [round(float(schedule(t)), 2) for t in range(11)]
    [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if total_steps < 1:
        raise ValueError(f"wsd_schedule: total_steps is {total_steps}; it must be at least 1.")
    warmup = _count("warmup_steps", warmup_steps, total_steps)
    decay = _count("decay_steps", decay_steps, total_steps)
    if warmup + decay > total_steps:
        raise ValueError(
            f"wsd_schedule: warmup_steps + decay_steps is {warmup} + {decay}; "
            f"they must fit into total_steps = {total_steps}."
        )
    if decay_shape not in _SHAPES:
        raise ValueError(
            f"wsd_schedule: decay_shape is {decay_shape!r}; accepted: {', '.join(_SHAPES)}."
        )
    if decay_shape in _SHAPES_WITHOUT_ZERO and not (end_value > 0 and peak_value > 0):
        raise ValueError(
            f"wsd_schedule: end_value is {end_value} and peak_value {peak_value}; "
            f"a decay_shape of {decay_shape!r} needs both positive."
        )

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(count, jnp.result_type(float))
        rise = init_value + (peak_value - init_value) * t / max(warmup, 1)
        s = jnp.clip((t - (total_steps - decay)) / max(decay, 1), 0.0, 1.0)
        fall = _SHAPES[decay_shape](s, peak_value, end_value)
        stable_or_end = jnp.where(t < total_steps, jnp.where(s > 0, fall, peak_value), end_value)
        return jnp.where(t < warmup, rise, stable_or_end)

    return schedule


def _count(name: str, steps: int | float, total: int) -> int:
    """Steps from a count or, where it is a float below 1, a fraction."""
    if isinstance(steps, float) and 0 <= steps < 1:
        return round(steps * total)
    if steps < 0 or steps != int(steps):
        raise ValueError(
            f"wsd_schedule: {name} is {steps}; accepted: a count of steps, or a fraction below 1."
        )
    return int(steps)
