"""AdEMAMix: steps by hand, Adam and optax where they agree, dtypes, bad arguments."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

from ..running import run


def test_first_two_steps_by_hand():
    tx = optim.ademamix(0.5, b1=0.5, b2=0.75, b3=0.875, alpha=4.0, eps=0.0, weight_decay=0.25)
    params, state = run(tx, jnp.array([8.0]), [jnp.array([2.0])])
    # m1 = 1, m2 = 1 / 4, v = 1; u = (1 / 0.5 + 4 / 4) / (1 / 0.5) = 1.5; p = 8 - (1.5 + 2) / 2.
    assert params.tolist() == [6.25]
    direction = state[0]
    assert [float(x[0]) for x in direction[1:]] == [1.0, 0.25, 1.0]
    # m1 = -2.5, m2 = 0.21875 - 0.75, v = 0.75 + 9; the corrections are 1 - 1/4 and 1 - 9/16.
    updates, state = tx.update(jnp.array([-6.0]), state, params)
    assert [float(x[0]) for x in state[0][1:]] == [-2.5, -0.53125, 9.75]
    u = (-2.5 / 0.75 - 4 * 0.53125) / (9.75**0.5 / 0.4375**0.5)
    np.testing.assert_allclose(updates, [-0.5 * (u + 0.25 * 6.25)], rtol=1e-6)


def test_without_slow_momentum_it_is_adamw():
    gradients = np.random.default_rng(0).normal(size=(8, 7))
    with jax.enable_x64(True):
        ours, _ = run(optim.ademamix(0.1, alpha=0.0, weight_decay=0.1), jnp.ones(7), gradients)
        theirs, _ = run(optax.adamw(0.1, weight_decay=0.1), jnp.ones(7), gradients)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_without_fast_decay_the_gradient_stands_for_the_fast_momentum():
    """b1 = 0, the authors' choice to save memory; b3 then warms up from a half-life near zero."""
    tx = optim.scale_by_ademamix(
        b1=0.0, b2=0.0, b3=optim.ademamix_b3_schedule(0.9, b1=0.0, warmup_steps=4), alpha=2.0
    )
    _, state = run(tx, jnp.zeros(2), [jnp.array([3.0, -1.0])])
    slow = state.mu_slow
    updates, state = tx.update(jnp.array([0.5, 4.0]), state)
    b3 = float(optim.ademamix_b3_schedule(0.9, b1=0.0, warmup_steps=4)(1))
    expected = np.array([0.5, 4.0]) + 2 * (b3 * slow + (1 - b3) * np.array([0.5, 4.0]))
    np.testing.assert_allclose(updates, expected / np.array([0.5, 4.0]), rtol=1e-6)


def test_equals_optax_with_our_warm_ups():
    """optax hands schedules the same count: the number of steps before this one."""
    gradients = np.random.default_rng(0).normal(size=(8, 7))
    with jax.enable_x64(True):
        warm = {
            "b3": optim.ademamix_b3_schedule(0.999, b1=0.8, warmup_steps=5),
            "alpha": optim.ademamix_alpha_schedule(5.0, warmup_steps=4),
        }
        arguments = {"b1": 0.8, "b2": 0.95, "eps": 1e-3, "weight_decay": 0.1, **warm}
        ours, _ = run(optim.ademamix(0.1, **arguments), jnp.ones(7), gradients)
        theirs, _ = run(optax.contrib.ademamix(0.1, **arguments), jnp.ones(7), gradients)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_second_moment_does_not_take_mu_dtype():
    tx = optim.scale_by_ademamix(mu_dtype="bfloat16")
    state = tx.init(jnp.ones(3))
    for _ in range(2):
        _, state = tx.update(jnp.full(3, 1.001), state)
    assert state.mu_fast.dtype == state.mu_slow.dtype == jnp.bfloat16
    assert state.nu.dtype == jnp.float32
    np.testing.assert_allclose(state.nu, (1 - 0.999**2) * 1.001**2, rtol=1e-6)


def test_a_float32_schedule_of_b3_is_that_of_the_rounded_number():
    """1 - b3 loses digits when b3 is rounded to float32, and none after that."""
    rounded = float(np.float32(0.9999))
    gradients = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    tx = optim.scale_by_ademamix(b3=optim.ademamix_b3_schedule(0.9999, b1=0.9, warmup_steps=0))
    _, scheduled = run(tx, jnp.zeros(5), gradients)
    _, number = run(optim.scale_by_ademamix(b3=rounded), jnp.zeros(5), gradients)
    np.testing.assert_allclose(scheduled.mu_slow, number.mu_slow, rtol=1e-6)


def test_defaults_are_the_authors():
    parameters = inspect.signature(optim.ademamix).parameters
    names = ("b1", "b2", "b3", "alpha", "eps", "weight_decay")
    assert [parameters[name].default for name in names] == [0.9, 0.999, 0.9999, 2.0, 1e-8, 0.0]


@pytest.mark.parametrize("kwargs", [{"b1": 1.0}, {"b2": -0.1}, {"b3": 1.5}])
def test_betas_out_of_range_are_named(kwargs):
    [(name, value)] = kwargs.items()
    with pytest.raises(ValueError, match=rf"ademamix: {name} is {value}; accepted: 0 <= {name}"):
        optim.ademamix(0.1, **kwargs)


@pytest.mark.parametrize("kwargs", [{"alpha": -1.0}, {"eps": -1.0}])
def test_negative_weights_are_named(kwargs):
    [name] = kwargs
    with pytest.raises(ValueError, match=rf"ademamix: {name} is -1.0; accepted: {name} >= 0"):
        optim.scale_by_ademamix(**kwargs)
