"""LAMB: a step by hand, optax's parts, norms, masks and the clipping."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

from ..running import run_jitted as run


def test_first_step_by_hand():
    """Clipped from norm 5 to 1, which Adam's first direction g / (|g| + eps) sees through eps."""
    tx = optim.lamb(0.5, eps=0.2, weight_decay=0.1)
    params = jnp.array([4.0, 3.0])
    updates, state = tx.update(jnp.array([3.0, -4.0]), tx.init(params), params)
    u = np.array([0.6 / 0.8 + 0.4, -0.8 / 1.0 + 0.3])
    np.testing.assert_allclose(updates, -0.5 * 5 / np.linalg.norm(u) * u, rtol=1e-6)
    np.testing.assert_allclose(state[0].mu, [0.06, -0.08], rtol=1e-6)
    np.testing.assert_allclose(state[0].nu, [0.36e-3, 0.64e-3], rtol=1e-6)


def test_is_optax_lamb_behind_its_clipping():
    params = {"w": jax.random.normal(jax.random.key(0), (3, 4)), "b": jnp.zeros(3)}
    gradients = [
        jax.tree.map(lambda p, i=i: jax.random.normal(jax.random.key(i), p.shape), params)
        for i in range(1, 6)
    ]
    with jax.enable_x64(True):
        params, gradients = jax.tree.map(lambda x: x.astype(jnp.float64), (params, gradients))
        theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.lamb(0.1, weight_decay=0.01))
        expected, _ = run(theirs, params, gradients)
        ours, _ = run(optim.lamb(0.1), params, gradients)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, expected)
        unclipped, _ = run(optim.lamb(0.1, max_grad_norm=None), params, gradients)
        expected, _ = run(optax.lamb(0.1, weight_decay=0.01), params, gradients)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), unclipped, expected)


def test_steps_are_as_long_as_leaves():
    params = {"w": 3 * jnp.ones((2, 2)), "s": jnp.float32(-5.0), "zero": jnp.zeros(4)}
    gradients = {"w": jnp.ones((2, 2)), "s": jnp.float32(2.0), "zero": jnp.ones(4)}
    tx = optim.scale_by_lamb(weight_decay=0.0)
    updates, _ = tx.update(gradients, tx.init(params), params)
    assert jnp.linalg.norm(updates["w"]) == pytest.approx(6.0)
    assert updates["s"] == pytest.approx(5.0)
    # Adam's own direction where there is no norm to measure by
    np.testing.assert_allclose(updates["zero"], 1.0, rtol=1e-4)


def test_masks_of_decay_and_of_the_ratio():
    params = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([3.0, 4.0])}
    zeros = jax.tree.map(jnp.zeros_like, params)

    def matrices(tree):
        return jax.tree.map(lambda p: p.ndim > 1, tree)

    tx = optim.scale_by_lamb(weight_decay=0.5, mask=matrices)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [[3.0, 4.0]], rtol=1e-6)
    assert updates["b"].tolist() == [0.0, 0.0]
    tx = optim.scale_by_lamb(weight_decay=0.5, trust_ratio_mask={"w": True, "b": False})
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [[3.0, 4.0]], rtol=1e-6)
    assert updates["b"].tolist() == [1.5, 2.0]


def test_the_clipping_is_over_all_leaves_in_float32():
    """sqrt(3^2 + 4^2) = 5 over two leaves; bfloat16 would take the squares of 1000 ones to 256."""
    params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    tx = optim.scale_by_lamb(b1=0.0)
    _, state = tx.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, tx.init(params), params)
    np.testing.assert_allclose([state.mu["a"][0], state.mu["b"][0]], [0.6, 0.8], rtol=1e-6)
    ones = jnp.ones(1000, jnp.bfloat16)
    _, state = tx.update(ones, tx.init(ones), ones)
    np.testing.assert_allclose(state.mu, 1000**-0.5, rtol=1e-6)
    _, small = tx.update(0.01 * params["a"], tx.init(params["a"]), params["a"])
    assert small.mu[0] == jnp.float32(0.01)


def test_defaults_are_the_authors():
    defaults = {n: p.default for n, p in inspect.signature(optim.lamb).parameters.items()}
    assert (defaults["b1"], defaults["b2"], defaults["eps"]) == (0.9, 0.999, 1e-6)
    assert (defaults["weight_decay"], defaults["max_grad_norm"]) == (0.01, 1.0)


def test_errors_are_named():
    with pytest.raises(ValueError, match="lamb: b1 is 1.0; accepted: 0 <= b1 < 1"):
        optim.lamb(0.1, b1=1.0)
    tx = optim.lamb(0.1)
    with pytest.raises(ValueError, match="lamb: params is None; accepted: update"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
