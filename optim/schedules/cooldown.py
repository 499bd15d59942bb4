"""A cooldown: the last steps of any schedule replaced by a decay.

With a schedule f, total steps `T`, decay steps `D`, final value `e` and p = f(T - D), step t has::

    f(t)                     t < T - D
    d((t - (T - D)) / D)     T - D <= t < T
    e                        t >= T

where d is one of the shapes of `optim.schedules.decay_shapes`, from d(0) = p to d(1) = e. As in
`wsd_schedule`, the decay starts at p and would reach e one step after the run.

*Differences.* The paper cools a constant rate down; any schedule will do, such as one that falls as
a power of the step or `wsd_s_schedule` past its last budget.

*Cost.* Two evaluations of the schedule and a few scalar operations a step; no state.

*Reference.* Hägele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed Training
Durations, 2024 (arXiv:2405.18392).
"""

import jax
import jax.numpy as jnp
import optax

from optim.schedules.decay_shapes import check_shape, decayed
from optim.schedules.steps import steps_of


def cooldown_schedule(
    schedule: optax.Schedule,
    *,
    total_steps: int,
    decay_steps: int | float,
    decay_shape: str = "1-sqrt",
    end_value: float = 0.0,
) -> optax.Schedule:
    """The schedule, with a decay to `end_value` in its last steps.

    Args:
      schedule: count -> value, to follow until the decay starts.
      total_steps: steps of the whole run.
      decay_steps: an int counts steps, a float is a fraction of total_steps.
      decay_shape: as in `wsd_schedule`.
      end_value: where the decay ends; positive for "exponential" and "harmonic".

    Raises:
      ValueError: steps that are neither a count nor a fraction or more than total_steps, an unknown
        shape, or an end value that the shape cannot reach (traced values are not checked).

    >>> import optim
    >>> schedule = optim.inverse_sqrt_schedule(1.0, warmup_steps=1)
    >>> schedule = optim.cooldown_schedule(schedule, total_steps=8, decay_steps=4)
    >>> [round(float(schedule(t)), 2) for t in range(9)]
    [0.0, 1.0, 0.71, 0.58, 0.5, 0.25, 0.15, 0.07, 0.0]
    """
    decay = steps_of("cooldown_schedule", "decay_steps", decay_steps, total_steps)
    if decay > total_steps:
        raise ValueError(
            f"cooldown_schedule: decay_steps is {decay}; "
            f"accepted: at most total_steps = {total_steps}."
        )
    check_shape("cooldown_schedule", decay_shape, end_value=end_value)
    start = total_steps - decay

    def cooled(count: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(count)
        fall = decayed(decay_shape, step, start, decay, schedule(start), end_value)
        return jnp.where(step < start, schedule(step), fall)

    return cooled
