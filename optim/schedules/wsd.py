"""Warmup-stable-decay: a linear warm-up, a constant, and a decay to a final value.

With peak `p`, initial value `i`, final value `e`, total steps `T`, warm-up steps `W`, decay steps
`D` and s = (t - (T - D)) / D, step t has::

    i + (p - i) t / W    t < W
    p                    W <= t <= T - D
    d(s)                 T - D < t < T
    e                    t >= T

where d is one of the shapes of `optim.schedules.decay_shapes`, from d(0) = p to d(1) = e.
So the first step after the warm-up has the peak, and step T, were there one, the final value.

*Differences.* The codes in use let the last step reach the final value, or miss it, by conventions
of their own; here a decay of D steps starts at the peak and would end one step after the run, so
that a decay to 0 wastes no step.

*Cost.* A few scalar operations a step; no state.

*Reference.* Hu et al., MiniCPM, 2024 (arXiv:2404.06395).
"""

import jax
import jax.numpy as jnp
import optax

from optim.schedules.decay_shapes import check_shape, decayed
from optim.schedules.steps import steps_of


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
      warmup_steps: an int counts steps, a float is a fraction of total_steps; 0 for none.
      decay_steps: likewise; 0.1 to 0.2 of the run are usual.
      decay_shape: "linear", "cosine", "mirror-cosine", "square", "1-sqrt", "exponential" or
        "harmonic".
      init_value: where the warm-up starts.
      end_value: where the decay ends; positive for "exponential" and "harmonic".

    Raises:
      ValueError: steps that are neither a count nor a fraction or that do not fit into total_steps,
        an unknown shape, or a value that the shape cannot reach (traced values are not checked).

    >>> import optim
    >>> schedule = optim.wsd_schedule(1.0, total_steps=10, warmup_steps=2, decay_steps=4)
    >>> [round(float(schedule(t)), 2) for t in range(11)]
    [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    warmup = steps_of("wsd_schedule", "warmup_steps", warmup_steps, total_steps)
    decay = steps_of("wsd_schedule", "decay_steps", decay_steps, total_steps)
    if warmup + decay > total_steps:
        raise ValueError(
            f"wsd_schedule: warmup_steps + decay_steps is {warmup} + {decay}; "
            f"accepted: at most total_steps = {total_steps}."
        )
    check_shape("wsd_schedule", decay_shape, end_value=end_value, peak_value=peak_value)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(count)
        rise = init_value + (peak_value - init_value) * (step / max(warmup, 1))
        fall = decayed(decay_shape, step, total_steps - decay, decay, peak_value, end_value)
        return jnp.where(step < warmup, rise, fall)

    return schedule
