"""Warm-ups of AdEMAMix: values, half-lives, ends, bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim


def test_alpha_is_linear_in_the_number_of_the_step():
    schedule = optim.ademamix_alpha_schedule(6.0, warmup_steps=3)
    assert [float(schedule(count)) for count in range(5)] == [2.0, 4.0, 6.0, 6.0, 6.0]


def test_half_life_grows_by_the_same_number_of_steps():
    with jax.enable_x64(True):
        schedule = optim.ademamix_b3_schedule(0.999, b1=0.5, warmup_steps=10)
        values = np.array([schedule(count) for count in range(12)])
    half_lives = np.log(0.5) / np.log(values)
    # The half-life of 0.5 is one step; the last values are b3 itself, without the authors' 1e-8.
    end = np.log(0.5) / np.log(0.999)
    expected = [1 + (end - 1) * min((count + 1) / 10, 1) for count in range(12)]
    np.testing.assert_allclose(half_lives, expected, rtol=3e-5)
    assert values[9] == values[11] == 0.999


def test_without_fast_momentum_b3_starts_near_zero():
    schedule = optim.ademamix_b3_schedule(0.9999, b1=0.0, warmup_steps=10_000)
    assert 0.0 < float(schedule(0)) < 0.9
    assert np.isfinite(schedule(0))


def test_no_warm_up_is_constant():
    assert float(optim.ademamix_alpha_schedule(3.0, warmup_steps=0)(0)) == 3.0
    b3 = optim.ademamix_b3_schedule(0.75, b1=0.5, warmup_steps=0)(0)
    assert float(b3) == 0.75


def test_traced_counts():
    counts = jnp.arange(6)
    for schedule in (
        optim.ademamix_alpha_schedule(2.0, warmup_steps=4),
        optim.ademamix_b3_schedule(0.99, b1=0.9, warmup_steps=4),
    ):
        ours = jax.jit(jax.vmap(schedule))(counts)
        np.testing.assert_allclose(ours, [schedule(int(count)) for count in counts], rtol=1e-6)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"ademamix_alpha_schedule: warmup_steps is -1; accepted"):
        optim.ademamix_alpha_schedule(2.0, warmup_steps=-1)
    with pytest.raises(ValueError, match=r"ademamix_b3_schedule: b3 is 1.0; accepted: 0 <= b3 < 1"):
        optim.ademamix_b3_schedule(1.0, b1=0.9, warmup_steps=5)
    with pytest.raises(ValueError, match=r"ademamix_b3_schedule: b1 is -0.5"):
        optim.ademamix_b3_schedule(0.9, b1=-0.5, warmup_steps=5)
