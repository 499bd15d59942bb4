"""Forecasts of losses: exact decays, noise, outliers, lines, errors."""

import numpy as np
import pytest

import optim


@pytest.mark.parametrize("size", [12, 100, 101, 800])
@pytest.mark.parametrize("decay", [0.04, 0.3, 1.0])
@pytest.mark.parametrize("amplitude", [2.0, -0.7])
def test_an_exact_decay_is_found(size, decay, amplitude):
    """Its time constant is 1 / (decay) of a tenth of the losses: running medians keep the curve."""
    b = -decay * 10 / size
    losses = amplitude * np.exp(b * np.arange(size)) + 0.4
    fit = optim.exponential_forecast(losses, 10 * size)
    found = (fit.amplitude, fit.exponent, fit.limit)
    np.testing.assert_allclose(found, (amplitude, b, 0.4), rtol=1e-6)
    assert fit.value == pytest.approx(amplitude * np.exp(b * 10 * size) + 0.4, rel=1e-6)


def test_three_losses_are_enough():
    fit = optim.exponential_forecast([3.0, 2.0, 1.5], 3)  # halves: 2 (1/2)^t + 1
    np.testing.assert_allclose(fit, (1.25, 2.0, -np.log(2), 1.0), rtol=1e-6)


def test_noise_is_averaged():
    rng = np.random.default_rng(0)
    clean = 1.5 * np.exp(-np.arange(100) / 30) + 0.5
    values = [
        optim.exponential_forecast(clean + 0.05 * rng.normal(size=100), 1000).value
        for _ in range(40)
    ]
    # Least squares with known b would have an error of about 0.05 / sqrt(100) in the limit.
    assert abs(np.mean(values) - 0.5) < 0.02
    assert np.std(values) < 0.05


def test_outliers_are_dropped():
    """Two in a window move its median by a place, that is by a step of the curve, 0.05 at most."""
    losses = 1.5 * np.exp(-np.arange(100) / 30) + 0.5
    losses[[3, 20, 21, 47, 80]] += [30.0, 5.0, 5.0, 100.0, -40.0]
    assert optim.exponential_forecast(losses, 1000).value == pytest.approx(0.5, abs=0.05)


def test_a_line_bends_down_once():
    """The slowest decay's time constant is three times the losses' length."""
    fit = optim.exponential_forecast(5.0 - 0.001 * np.arange(100), 10_000)
    assert fit.exponent == pytest.approx(-1 / 300)
    assert fit.value == pytest.approx(5.0 - 0.1 / (1 - np.exp(-1 / 3)), abs=0.02)


def test_losses_that_rise_are_forecast_to_rise():
    losses = 1.0 + 0.01 * np.arange(50)
    assert optim.exponential_forecast(losses, 500).value > losses[-1]


def test_losses_that_stay_are_forecast_to_stay():
    assert optim.exponential_forecast(np.full(30, 0.7), 300).value == pytest.approx(0.7)


@pytest.mark.parametrize("losses", [[1.0, 0.5], [1.0, np.nan, 0.5, 0.2], [np.inf] * 4, []])
def test_too_few_or_not_finite_is_an_error(losses):
    with pytest.raises(ValueError, match=r"exponential_forecast: losses has .* accepted: at least"):
        optim.exponential_forecast(losses, 10)
