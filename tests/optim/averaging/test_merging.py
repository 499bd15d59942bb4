"""Weights of checkpoints by hand, and their sum: dtypes, integers, stacks, traced weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim

DRAWN = np.random.default_rng(0).normal(size=(4, 3))
CHECKPOINTS = [
    {"w": jnp.asarray(w, jnp.float32), "step": jnp.int32(i)} for i, w in enumerate(DRAWN)
]


def test_exponential_weights_are_those_of_the_running_average():
    with jax.enable_x64(True):
        positions = jnp.asarray(DRAWN)
        tx = optim.params_ema(0.7)
        state = tx.init(jnp.zeros(3))
        for position in positions:
            _, state = tx.update(jnp.zeros(3), state, position)
        merged = optim.combine_checkpoints(positions, optim.ema_weights(4, 0.7))
        np.testing.assert_allclose(merged, state.average, rtol=1e-12)


def test_the_ends_of_the_families():
    assert optim.ema_weights(3, 0.0).tolist() == [0.0, 0.0, 1.0]
    np.testing.assert_allclose(optim.ema_weights(4, 1 - 1e-7), 0.25, rtol=1e-6)
    assert optim.latest_weights(3, 3).tolist() == pytest.approx([1 / 3] * 3)
    np.testing.assert_allclose(optim.power_weights(jnp.array([0.5, 2.0, 3.0]), 0), 1 / 3)
    assert jnp.isfinite(jax.grad(lambda d: optim.ema_weights(3, d) @ jnp.arange(3.0))(0.0))


def test_powers_by_hand():
    losses, steps = np.array([2.0, 1.0, 0.5]), [100, 200, 400]
    for metric, power in ((losses, -2.0), (steps, 1.0)):
        expected = np.asarray(metric) ** power
        found = optim.power_weights(metric, power)
        np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-6)


def test_large_powers_neither_overflow_nor_vanish():
    weights = optim.power_weights([1e-3, 1e-4], -100.0)
    np.testing.assert_allclose(weights, [0, 1], atol=1e-12)


@pytest.mark.parametrize("weights", [[0.1, 0.2, 0.3, 0.4], [2.0, -1.5, 0.0, 0.5]])
def test_the_sum_by_hand(weights):
    merged = optim.combine_checkpoints(CHECKPOINTS, weights)
    np.testing.assert_allclose(merged["w"], weights @ DRAWN, rtol=1e-5)
    assert merged["step"] == 3 and merged["step"].dtype == jnp.int32


def test_a_stack_is_a_sequence():
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *CHECKPOINTS)
    weights = optim.latest_weights(4, 2)
    found = jax.jit(optim.combine_checkpoints)(stacked, weights)
    expected = optim.combine_checkpoints(tuple(CHECKPOINTS), weights)
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-6)
    assert found["step"] == expected["step"] == 3


def test_half_precision_is_summed_in_float32_and_comes_back():
    """Thirds that are rounded to bfloat16 before they are added give 1.0039."""
    third = optim.combine_checkpoints([jnp.ones(1, jnp.bfloat16)] * 3, optim.latest_weights(3, 3))
    assert third.dtype == jnp.bfloat16 and third.tolist() == [1.0]


def test_the_sum_has_the_derivative_of_the_weights():
    gradient = jax.grad(lambda w: optim.combine_checkpoints(CHECKPOINTS, w)["w"].sum())
    np.testing.assert_allclose(gradient(jnp.ones(4)), DRAWN.sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optim.latest_weights(3, 4), "latest_weights: latest is 4; accepted: 1 to count"),
        (lambda: optim.latest_weights(3, 0), "latest_weights: latest is 0; accepted: 1 to count"),
        (lambda: optim.ema_weights(0, 0.5), "ema_weights: count is 0; accepted: count >= 1"),
        (lambda: optim.ema_weights(3, 1.0), "ema_weights: decay is 1.0; accepted: 0 <= decay < 1"),
        (
            lambda: optim.power_weights([1.0, 0.0], -1),
            r"power_weights: metrics is \[1.0, 0.0\]; accepted: positive numbers",
        ),
        (lambda: optim.power_weights(1.0, -1), r"power_weights: metrics is of shape \(\);"),
        (
            lambda: optim.combine_checkpoints(CHECKPOINTS, [1.0]),
            r"combine_checkpoints: weights is of shape \(1,\) and there are 4 checkpoints",
        ),
        (lambda: optim.combine_checkpoints([], []), "there are 0 checkpoints"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
