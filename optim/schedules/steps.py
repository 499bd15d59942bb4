"""Lengths of the phases of a schedule: counts of steps, or fractions of a run."""

import numbers


def steps_of(method: str, argument: str, steps: int | float, total_steps: int) -> int:
    """A count of steps from an int, which is one, or a float, which is a fraction of the run.

    Args:
      method: the schedule that asks, for the error.
      argument: the name of the length there.
      steps: the length.
      total_steps: steps of the whole run.

    Raises:
      ValueError: total_steps is no positive integer, or steps neither a count nor a fraction.
    """
    if not isinstance(total_steps, numbers.Integral) or total_steps < 1:
        raise ValueError(f"{method}: total_steps is {total_steps}; accepted: an int from 1.")
    if isinstance(steps, numbers.Integral) and steps >= 0:
        return int(steps)
    if isinstance(steps, float) and 0 <= steps <= 1:
        return round(steps * int(total_steps))
    raise ValueError(
        f"{method}: {argument} is {steps}; accepted: an int from 0, which counts steps, or a float "
        f"between 0 and 1, which is a fraction of total_steps."
    )
