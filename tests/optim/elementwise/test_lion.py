"""Lion: steps by hand, a NumPy replay, optax where it agrees, dtypes and odd leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

from ..running import run


def test_first_two_steps_by_hand():
    """The second gradient is outweighed by the momentum only where it is small enough."""
    tx = optim.lion(0.5, b1=0.75, b2=0.5, weight_decay=0.25)
    # Step 1: m = 0, u = sign(g / 4); p = 8 - 0.5 (u + 2); m = g / 2.
    params, state = run(tx, jnp.array([8.0, 8.0, 8.0]), [jnp.array([4.0, 0.0, -4.0])])
    assert params.tolist() == [6.5, 7.0, 7.5]
    assert state[0].mu.tolist() == [2.0, 0.0, -2.0]
    # Step 2: c = 0.75 m + 0.25 g = 1.5 - 1.25, -1.25, -1.5 + 2.25; p = p - 0.5 (u + p / 4).
    updates, state = tx.update(jnp.array([-5.0, -5.0, 9.0]), state, params)
    assert (params + updates).tolist() == [5.1875, 6.625, 6.0625]
    assert state[0].mu.tolist() == [-1.5, -2.5, 3.5]


def test_agrees_with_numpy_in_float64():
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(3, 4)), rng.normal(size=(20, 3, 4))
    gradients[:, 0] = 0.0
    p, m = start.copy(), np.zeros_like(start)
    for g in gradients:
        p = p * (1 - 0.01 * 0.1) - 0.01 * np.sign(0.95 * m + (1 - 0.95) * g)
        m = 0.98 * m + (1 - 0.98) * g
    with jax.enable_x64(True):
        tx = optim.lion(0.01, b1=0.95, b2=0.98, weight_decay=0.1)
        ours, state = run(tx, jnp.asarray(start), jnp.asarray(gradients))
        np.testing.assert_allclose(ours, p, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(state[0].mu, m, rtol=1e-13, atol=1e-15)


def test_without_momentum_it_is_sign_descent():
    gradients = jax.random.normal(jax.random.key(0), (5, 7))
    ours, _ = run(optim.lion(0.1, b1=0.0), jnp.ones(7), gradients)
    theirs, _ = run(optax.sign_sgd(0.1), jnp.ones(7), gradients)
    np.testing.assert_array_equal(ours, theirs)


def test_equals_optax_in_float32_where_its_decay_is_named():
    gradients = jax.random.normal(jax.random.key(0), (5, 7))
    params = jnp.linspace(-1.0, 1.0, 7)
    ours, _ = run(optim.lion(0.1, weight_decay=0.1), params, gradients)
    theirs, _ = run(optax.lion(0.1, weight_decay=0.1), params, gradients)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_2000_float32_steps_stay_with_float64():
    gradients = np.random.default_rng(0).normal(size=(2000, 16)) + 0.05
    tx = optim.lion(1e-3, weight_decay=0.1)

    def walk(dtype):
        params = jnp.ones(16, dtype)

        def step(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (optim.apply_updates(params, updates), state), None

        carry = (params, tx.init(params))
        return jax.jit(lambda g: jax.lax.scan(step, carry, g)[0][0])(jnp.asarray(gradients, dtype))

    single = np.asarray(walk(jnp.float32))
    with jax.enable_x64(True):
        double = np.asarray(walk(jnp.float64))
    # 2000 roundings of half an ulp of 1, as a random walk, and one sign that may flip.
    np.testing.assert_allclose(single, double, atol=2000**0.5 * 6e-8 + 2e-3)


def test_bfloat16_gradients_meet_in_float32():
    """0.9 m + 0.1 g is 0.9 - 0.8995; the two terms are equal when they are rounded to bfloat16."""
    gradient = jnp.array([-8.9375], jnp.bfloat16)
    momentum = jnp.array([0.9933], jnp.float32)
    tx = optim.scale_by_lion()
    rounded = jnp.bfloat16(0.9) * momentum.astype(jnp.bfloat16) + jnp.bfloat16(0.1) * gradient
    updates, state = tx.update(gradient, optim.ScaleByLionState(momentum))
    assert 0.9 * 0.9933 - 0.1 * 8.9375 > 0 and rounded <= 0
    assert updates.tolist() == [1.0] and updates.dtype == state.mu.dtype == jnp.float32


def test_decay_of_bfloat16_parameters_is_not_rounded_to_bfloat16():
    params = jnp.array([1.0078125, 3.015625], jnp.bfloat16)
    tx = optim.lion(1.0, weight_decay=0.1)
    with jax.disable_jit():
        updates, _ = tx.update(jnp.zeros(2, jnp.bfloat16), tx.init(params), params)
    np.testing.assert_allclose(updates, -0.1 * np.array([1.0078125, 3.015625]), rtol=1e-6)


@pytest.mark.parametrize("mu_dtype", ["bfloat16", jnp.float16, np.dtype("float32")])
def test_mu_dtype_is_kept(mu_dtype):
    params = jnp.ones(3)
    tx = optim.scale_by_lion(mu_dtype=mu_dtype)
    state = tx.init(params)
    updates, after = tx.update(jnp.ones(3), state, params)
    assert state.mu.dtype == after.mu.dtype == jnp.dtype(mu_dtype)
    assert updates.dtype == jnp.float32


def test_odd_leaves():
    """None among parameters; None, masked and float0 gradients; a scalar and an empty leaf."""
    params = {
        "none": None,
        "unused": jnp.ones(2),
        "masked": optax.MaskedNode(),
        "scalar": jnp.float32(1.0),
        "empty": jnp.zeros((0, 3)),
        "integer": jnp.array([0, 100]),
    }
    gradients = {**params, "unused": None, "integer": np.zeros(2, jax.dtypes.float0)}
    tx = optim.lion(0.5, weight_decay=0.25)
    state = tx.init(params)
    updates, after = tx.update(gradients, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    moved = optim.apply_updates(params, updates)
    assert updates["unused"] is None and moved["none"] is None
    assert moved["unused"].tolist() == [1.0, 1.0]
    assert moved["scalar"] == 1.0 - 0.5 * (1 + 0.25)
    assert moved["empty"].shape == (0, 3)
    assert moved["integer"].tolist() == [0, 100]
    assert moved["integer"].dtype == params["integer"].dtype


def test_mask_chooses_what_decays():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for mask in ({"w": True, "b": False}, lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)):
        moved, _ = run(optim.lion(1.0, weight_decay=0.5, mask=mask), params, [zeros])
        assert (moved["w"] == 0.5).all() and (moved["b"] == 1.0).all()


def test_schedules_of_rate_and_decay():
    tx = optim.lion(lambda t: 1.0 + t, weight_decay=lambda t: 0.5 * t)
    moved, _ = run(tx, jnp.array([3.0]), [jnp.array([1.0])] * 2)
    assert moved.tolist() == [2.0 - 2.0 * (1.0 + 0.5 * 2.0)]


@pytest.mark.parametrize("kwargs", [{"b1": 1.0}, {"b1": -0.1}, {"b2": 1}, {"b2": float("nan")}])
def test_betas_out_of_range_are_named(kwargs):
    [(name, value)] = kwargs.items()
    with pytest.raises(ValueError, match=rf"lion: {name} is {value}; accepted: 0 <= {name} < 1"):
        optim.lion(0.1, **kwargs)
    with pytest.raises(ValueError, match=name):
        optim.scale_by_lion(**kwargs)


def test_state_is_no_parameter():
    zeros = jnp.zeros(3)
    state = jax.jit(optim.scale_by_lion().init)(zeros)
    assert state.mu.unsafe_buffer_pointer() != zeros.unsafe_buffer_pointer()
