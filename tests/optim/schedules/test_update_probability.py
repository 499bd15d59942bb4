"""The probability of a refresh: its three parts, and errors."""

import numpy as np
import pytest

import optim


def test_flat_then_exponential_then_the_floor():
    schedule = optim.update_probability_schedule(
        max_prob=0.8, min_prob=0.1, decay=0.25, flat_start=4
    )
    expected = [0.8, 0.8, 0.8 * np.exp(-0.25), 0.8 * np.exp(-1.5), 0.1, 0.1]
    ours = [float(schedule(t)) for t in (0, 4, 5, 10, 13, 1000)]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_the_defaults_are_the_authors():
    schedule = optim.update_probability_schedule()
    named = optim.update_probability_schedule(
        max_prob=1.0, min_prob=0.03, decay=0.001, flat_start=500
    )
    for t in (0, 500, 501, 2000, 4006, 4007, 9000):
        assert float(schedule(t)) == float(named(t))
    assert float(schedule(4000)) > 0.03 == pytest.approx(float(schedule(4007)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_prob": 0.0}, r"min_prob is 0.0; accepted: 0 < min_prob <= 1.0"),
        ({"min_prob": 0.5, "max_prob": 0.4}, r"min_prob is 0.5; accepted: 0 < min_prob <= 0.4"),
        ({"max_prob": 1.5}, r"max_prob is 1.5; accepted: 0 < max_prob <= 1"),
        ({"decay": -1.0}, r"decay is -1.0; accepted: decay >= 0"),
        ({"flat_start": -1}, r"flat_start is -1; accepted: flat_start >= 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match="update_probability_schedule: " + message):
        optim.update_probability_schedule(**arguments)
