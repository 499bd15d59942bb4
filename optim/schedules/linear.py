"""Linear decay to zero over the whole run, after a warm-up.

With peak `p`, final value `e`, total steps `T` and warm-up steps `W`, step t has::

    p t / W                              t < W
    p + (e - p) (t - W) / (T - W)        W <= t <= T

Without a warm-up and with e = 0 that is p (1 - t / T), the schedule that is optimal for the last
iterate in the worst case.

*Differences.* None from the paper; the warm-up is its authors' practice.

*Cost.* A few scalar operations a step; no state.

*Reference.* Defazio et al., Optimal Linear Decay Learning Rate Schedules and Further Refinements,
2023 (arXiv:2310.07831).
"""

import optax

from optim.schedules.steps import steps_of


def linear_decay_schedule(
    peak_value: float, *, total_steps: int, warmup_steps: int | float = 0, end_value: float = 0.0
) -> optax.Schedule:
    """Warm up, then decay linearly until the end of the run.

    Args:
      peak_value: the value at the end of the warm-up.
      total_steps: steps of the whole run, the warm-up among them.
      warmup_steps: steps of the linear rise from 0: an int counts them, a float is a fraction of
        total_steps.
      end_value: the value that step total_steps would have.

    Raises:
      ValueError: total_steps below 1, or a warm-up that is negative or leaves no step to decay.

    >>> import optim
    >>> schedule = optim.linear_decay_schedule(1.0, total_steps=5, warmup_steps=1)
    >>> [round(float(schedule(t)), 2) for t in range(6)]
    [0.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    warmup = steps_of("linear_decay_schedule", "warmup_steps", warmup_steps, total_steps)
    if warmup >= total_steps:
        raise ValueError(
            f"linear_decay_schedule: warmup_steps is {warmup}; "
            f"accepted: fewer than total_steps = {total_steps}."
        )
    decay = optax.linear_schedule(peak_value, end_value, total_steps - warmup)
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak_value, warmup), decay], [warmup])
