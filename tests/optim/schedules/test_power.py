"""Powers of the step: the settings that other codes have, boundaries, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optim

STEPS = np.array([0, 1, 3, 9, 10, 11, 40, 99, 100, 101, 1000, 2**24 + 1, 2**31 - 1])


def values(schedule):
    return np.asarray(jax.jit(schedule)(jnp.asarray(STEPS, jnp.int32)))


def test_equals_fairseq():
    """Linear to the peak at W updates, then peak sqrt(W) / sqrt(updates)."""
    later = np.maximum(STEPS, 1)
    expected = np.where(STEPS < 10, 0.3 * STEPS / 10, 0.3 * np.sqrt(10) * later**-0.5)
    ours = values(optim.inverse_sqrt_schedule(0.3, warmup_steps=10))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert ours[4] == np.float32(0.3)


def test_equals_t5():
    """1 / sqrt(max(t, k))."""
    ours = values(optim.inverse_sqrt_schedule(0.1, decay_start=100))
    np.testing.assert_allclose(ours, np.maximum(STEPS, 100) ** -0.5, rtol=1e-6)


def test_equals_levanter():
    """lr min(1, 1 / sqrt((count + W) / timescale)), counts from the end of the warm-up."""
    expected = np.where(STEPS < 10, STEPS / 10, np.minimum(1, (np.maximum(STEPS, 1) / 100) ** -0.5))
    ours = values(optim.inverse_sqrt_schedule(1.0, warmup_steps=10, decay_start=100))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_equals_the_power_scheduler():
    """min(peak, batch a tokens^b) with tokens = step batch length, and its authors' numbers."""
    peak, a, b, batch, length = 0.02, 4.6, -0.51, 128, 4096
    crossing = (peak / (batch * a)) ** (1 / b) / (batch * length)
    assert 500 < crossing < 5000
    tokens = np.maximum(STEPS, 1).astype(float) * batch * length
    ours = values(optim.power_schedule(peak, power=-b, decay_start=crossing))
    np.testing.assert_allclose(ours, np.minimum(peak, batch * a * tokens**b), rtol=2e-6)


@settings(max_examples=30, deadline=None)
@given(
    power=st.floats(0.0, 3.0), warmup=st.integers(0, 20), flat=st.integers(1, 20)
)  # fmt: skip
def test_rises_stays_and_falls(power, warmup, flat):
    schedule = optim.power_schedule(
        0.7, power=power, warmup_steps=warmup, decay_start=warmup + flat
    )
    ours = np.asarray(schedule(jnp.arange(60)))
    peak, slack = np.float32(0.7), 1e-6
    assert (np.diff(ours[: warmup + 1]) > 0).all()
    assert (ours[warmup : warmup + flat + 1] == peak).all()
    assert (np.diff(ours[warmup + flat :]) <= slack).all()
    ratio = ours[59] / peak
    assert ratio == pytest.approx(((warmup + flat) / 59) ** power, rel=1e-4)


def test_inverse_sqrt_is_the_power_one_half():
    ours = values(optim.inverse_sqrt_schedule(0.3, warmup_steps=3, decay_start=9))
    assert (
        ours == values(optim.power_schedule(0.3, power=0.5, warmup_steps=3, decay_start=9))
    ).all()


def test_power_and_peak_may_be_traced():
    def last(power):
        return optim.power_schedule(power, power=power, warmup_steps=2)(8)

    np.testing.assert_allclose(jax.vmap(last)(jnp.array([0.5, 1.0])), [0.25, 0.25], rtol=1e-6)
    assert jnp.isfinite(jax.grad(last)(0.5))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"power": -0.5}, "power is -0.5; accepted: power >= 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1; accepted: warmup_steps >= 0"),
        ({"warmup_steps": 0}, "decay_start is 0; accepted: decay_start > 0"),
        ({"decay_start": 4}, "decay_start is 4; accepted: decay_start >= 5"),
    ],
)
def test_errors_name_the_argument(kwargs, message):
    with pytest.raises(ValueError, match=f"power_schedule: {message}"):
        optim.power_schedule(1.0, **{"power": 1.0, "warmup_steps": 5, **kwargs})


def test_errors_of_the_inverse_square_root():
    with pytest.raises(ValueError, match="inverse_sqrt_schedule: decay_start is 0; accepted"):
        optim.inverse_sqrt_schedule(1.0)
