"""AdaGrad-Norm: steps by hand, a NumPy replay, one dimension as AdaGrad, no gradient, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

from ..running import random_gradients, run


def test_two_steps_by_hand():
    """s is 11 + 3^2 + 4^2 = 36, then 36 + 8^2 = 100; the norm is that of both leaves."""
    tx = optim.adagrad_norm(3.0, initial_accumulator_value=11.0)
    params = {"a": jnp.array([1.0]), "b": jnp.array([[2.0]])}
    gradients = [
        {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])},
        {"a": jnp.array([8.0]), "b": jnp.array([[0.0]])},
    ]
    params, state = run(tx, params, gradients)
    np.testing.assert_allclose(params["a"], [1 - 3 * 3 / 6 - 3 * 8 / 10], rtol=1e-6)
    np.testing.assert_allclose(params["b"], [[2 - 3 * 4 / 6]], atol=1e-6)
    assert state[0].sum_of_squares == 100.0


def test_agrees_with_numpy_in_float64():
    gradients = random_gradients()
    with jax.enable_x64(True):
        wide = [jax.tree.map(lambda g: jnp.asarray(g, jnp.float64), g) for g in gradients]
        start = jax.tree.map(jnp.zeros_like, wide[0])
        ours, _ = run(optim.adagrad_norm(0.3), start, wide)
    total, expected = 0.01, {"w": np.zeros((3, 4)), "b": np.zeros(4)}
    for g in gradients:
        g = {name: np.asarray(leaf, np.float64) for name, leaf in g.items()}
        total += sum((leaf**2).sum() for leaf in g.values())
        expected = {name: p - 0.3 * g[name] / np.sqrt(total) for name, p in expected.items()}
    for name in expected:
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-13)


def test_of_one_parameter_it_is_adagrad():
    gradients = [jnp.array([x]) for x in (0.5, -2.0, 0.0, 1.0)]
    ours, _ = run(optim.adagrad_norm(0.3), jnp.zeros(1), gradients)
    peer = optax.adagrad(0.3, initial_accumulator_value=0.01, eps=0.0)
    theirs, _ = run(peer, jnp.zeros(1), gradients)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_without_a_gradient_there_is_no_step_and_its_derivative_is_finite():
    tx = optim.scale_by_adagrad_norm(0.0)
    zeros = jnp.zeros(3)
    updates, state = tx.update(zeros, tx.init(zeros))
    assert updates.tolist() == [0.0, 0.0, 0.0] and state.sum_of_squares == 0
    tx = optim.scale_by_adagrad_norm()
    slope = jax.grad(lambda g: tx.update(g, tx.init(zeros))[0].sum())(zeros)
    np.testing.assert_allclose(slope, [10.0, 10.0, 10.0], rtol=1e-6)


def test_the_sum_is_float32_for_bfloat16():
    """In bfloat16 a sum of 256 would not grow by 1."""
    tx = optim.scale_by_adagrad_norm(256.0)
    params = jnp.zeros(1, jnp.bfloat16)
    _, state = tx.update(jnp.ones(1, jnp.bfloat16), tx.init(params))
    assert state.sum_of_squares == 257.0 and state.sum_of_squares.dtype == jnp.float32


def test_a_negative_start_is_named():
    message = "adagrad_norm: initial_accumulator_value is -1.0; accepted: .* >= 0"
    with pytest.raises(ValueError, match=message):
        optim.adagrad_norm(0.1, initial_accumulator_value=-1.0)
