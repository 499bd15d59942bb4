"""The toy moves as its two closed forms say, and its judge can say no."""

import numpy as np
import pytest

from experiments.figures import river_valley_toy as toy


@pytest.fixture(scope="module")
def data():
    return toy.measure(quick=True)


def test_progress_along_the_river_is_the_sum_of_the_rates(data):
    """The slope along x is constant, so x ends at the slope times the sum of the rates."""
    decay = np.arange(toy.STEPS - toy.DECAY_START) / (toy.STEPS - toy.DECAY_START)
    harmonic = 1 / (decay / toy.FLOOR + (1 - decay) / toy.PEAK)
    half = (1 + np.cos(np.pi * np.arange(toy.STEPS) / toy.STEPS)) / 2
    sums = {
        "WSD": toy.PEAK * toy.DECAY_START + harmonic.sum(),
        "cosine": (toy.FLOOR + (toy.PEAK - toy.FLOOR) * half).sum(),
        "constant, peak": toy.PEAK * toy.STEPS,
        "constant, low": toy.FLOOR * toy.STEPS,
    }
    for name, total in sums.items():
        ends = toy.by_seed(data, name, "x")[:, -1]
        np.testing.assert_allclose(ends, toy.SLOPE * total, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "rate"), [("constant, peak", toy.PEAK), ("constant, low", toy.FLOOR)]
)
def test_height_on_the_mountain_is_the_stationary_one(data, name, rate):
    """y <- (1 - 10 r) y - r sqrt(10) xi has the variance 10 r^2 / (1 - (1 - 10 r)^2)."""
    factor = 1 - 2 * toy.STIFFNESS * rate
    variance = (rate * toy.NOISE) ** 2 / (1 - factor**2)
    settled = toy.by_seed(data, name, "step") > 400
    height = toy.by_seed(data, name, "loss") + toy.SLOPE * toy.by_seed(data, name, "x")
    # x of the chunk's end stands for its mean: at most half a chunk's travel, 4e-5 of a loss.
    assert height[settled].mean() == pytest.approx(toy.STIFFNESS * variance, rel=0.05)


def test_the_rate_column_is_the_schedule(data):
    rates = toy.by_seed(data, "WSD", "learning_rate")[0]
    steps = toy.by_seed(data, "WSD", "step")[0]
    np.testing.assert_allclose(rates[steps <= toy.DECAY_START], toy.PEAK, rtol=1e-6)
    assert toy.FLOOR < rates[-1] < 1.05 * toy.FLOOR
    assert np.all(np.diff(rates[steps > toy.DECAY_START]) < 0)


def test_the_judge_says_no_when_two_schedules_change_places(data):
    names = {"WSD": "cosine", "cosine": "WSD"}
    swapped = np.array([names.get(name, name) for name in data["schedule"]])
    order = np.argsort([list(toy.SCHEDULES).index(name) for name in swapped], kind="stable")
    exchanged = {name: column[order] for name, column in {**data, "schedule": swapped}.items()}
    held = [part.holds for part in toy.judge(data)]
    exchanged_held = [part.holds for part in toy.judge(exchanged)]
    assert held != exchanged_held
    assert not exchanged_held[0] and not exchanged_held[1]


def test_a_difference_within_its_error_does_not_hold():
    low = np.zeros(4)
    assert not toy.above("", np.array([3.0, -2.0, 2.0, -1.0]), low).holds
    assert toy.above("", np.array([1.0, 1.1, 0.9, 1.0]), low).holds
    assert not toy.above("", low, low).holds
