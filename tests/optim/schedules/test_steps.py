"""Counts and fractions of steps."""

import numpy as np
import pytest

from optim.schedules.steps import steps_of


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(0, 0), (7, 7), (np.int64(7), 7), (1, 1), (1.0, 40), (0.5, 20), (0.0, 0), (0.33, 13)],
)
def test_an_int_counts_and_a_float_is_a_fraction(steps, expected):
    assert steps_of("m", "a", steps, 40) == expected


@pytest.mark.parametrize("steps", [-1, 1.5, -0.5, float("nan"), "3"])
def test_anything_else_is_an_error(steps):
    with pytest.raises(ValueError, match=f"m: a is {steps}; accepted"):
        steps_of("m", "a", steps, 40)
