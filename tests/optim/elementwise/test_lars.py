"""LARS: two steps by hand, optax where the rate is constant, vectors, zeros and masks."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

from ..running import run_jitted as run


def matrices(tree):
    return jax.tree.map(lambda p: p.ndim > 1, tree)


def test_first_two_steps_by_hand():
    tx = optim.lars(2.0, momentum=0.5, trust_coefficient=0.1, weight_decay=1.0)
    params = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([3.0, 4.0])}
    gradients = {"w": jnp.array([[-3.0, 0.0]]), "b": jnp.array([-3.0, 0.0])}
    # d = (0, 4), as long as 0.1 * 5; vectors take the gradient as it is
    moved, state = run(tx, params, [gradients])
    np.testing.assert_allclose(state[0].mu["w"], [[0.0, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(moved["w"], [[3.0, 3.0]], rtol=1e-6)
    assert moved["b"].tolist() == [9.0, 4.0]
    updates, _ = tx.update({"w": jnp.array([[1.0, -3.0]]), "b": jnp.zeros(2)}, state, moved)
    # d = (4, 0), as long as 0.1 * sqrt(18)
    np.testing.assert_allclose(updates["w"], [[-0.2 * 18**0.5, -0.5]], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [3.0, 0.0], rtol=1e-6)


def test_is_optax_lars_at_a_constant_rate_and_with_its_masks():
    params = {"w": jax.random.normal(jax.random.key(0), (3, 4)), "b": jnp.ones(3)}
    gradients = [
        jax.tree.map(lambda p, i=i: jax.random.normal(jax.random.key(i), p.shape), params)
        for i in range(1, 6)
    ]
    ours, _ = run(optim.lars(0.5, weight_decay=0.1), params, gradients)
    theirs = optax.lars(0.5, 0.1, weight_decay_mask=matrices, trust_ratio_mask=matrices)
    expected, _ = run(theirs, params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), ours, expected)
    everywhere, _ = run(
        optim.lars(0.5, weight_decay=0.1, mask=None, trust_ratio_mask=None), params, gradients
    )
    expected, _ = run(optax.lars(0.5, 0.1), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), everywhere, expected)


def test_the_rate_stands_outside_the_momentum():
    """A rate that falls to zero stops at once, whatever the momentum."""
    tx = optim.lars(lambda step: jnp.where(step < 1, 1.0, 0.0))
    moved, state = run(tx, jnp.ones((2, 2)), [jnp.ones((2, 2))])
    again, _ = tx.update(jnp.ones((2, 2)), state, moved)
    assert (again == 0).all()


def test_without_a_norm_the_ratio_is_one():
    tx = optim.scale_by_lars(trust_coefficient=0.1)
    zeros, ones = jnp.zeros((2, 2)), jnp.ones((2, 2))
    assert (tx.update(ones, tx.init(zeros), zeros)[0] == 1).all()
    assert (tx.update(zeros, tx.init(ones), ones)[0] == 0).all()


def test_scalars_count_as_vectors():
    tx = optim.lars(1.0, weight_decay=0.5)
    moved, _ = run(tx, jnp.float32(3.0), [jnp.float32(1.0)])
    assert moved == 2.0


def test_defaults_are_the_authors():
    defaults = {n: p.default for n, p in inspect.signature(optim.lars).parameters.items()}
    assert (defaults["momentum"], defaults["trust_coefficient"]) == (0.9, 0.001)
    assert defaults["weight_decay"] == 0.0


def test_errors_are_named():
    with pytest.raises(ValueError, match="lars: momentum is -0.1; accepted: 0 <= momentum < 1"):
        optim.lars(0.1, momentum=-0.1)
    tx = optim.lars(0.1)
    with pytest.raises(ValueError, match="lars: params is None; accepted: update"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
