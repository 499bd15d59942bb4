"""Lengths of the phases of a schedule: counts of steps, or fractions of a run."""

import numbers


def steps_of(
    method: str, argument: str, steps: int | float, whole: int, name: str = "total_steps"
) -> int:
    """A count of steps from an int, which is one, or a float, which is a fraction of the whole.

    Args:
      method: the schedule that asks, for the error.
      argument: the name of the length there.
      steps: the length.
      whole: the steps that a fraction is of.
      name: what the schedule calls these.

    Raises:
      ValueError: whole is no positive integer, or steps neither a count nor a fraction.
    """
    if not isinstance(whole, numbers.Integral) or whole < 1:
        raise ValueError(f"{method}: {name} is {whole}; accepted: an int from 1.")
    if isinstance(steps, numbers.Integral) and steps >= 0:
        return int(steps)
    if isinstance(steps, float) and 0 <= steps <= 1:
        return round(steps * int(whole))
    raise ValueError(
        f"{method}: {argument} is {steps}; accepted: an int from 0, which counts steps, or a float "
        f"between 0 and 1, which is a fraction of {name}."
    )
