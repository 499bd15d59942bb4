"""Groups one after the other, all at once, or one a step: by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order

ALONG = zeroth_order.direction(stack={"blocks": 1})
PARAMS = {"blocks": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "head": jnp.array([2.0])}
GROUPS = zeroth_order.layer_groups(ALONG, PARAMS)
MAKE = functools.partial(zeroth_order.spsa, epsilon=0.1)


def loss(p, batch):
    """With terms between the groups, so that the order matters."""
    return jnp.square(jnp.sum(p["blocks"]) + p["head"][0]) + jnp.sum(jnp.square(p["blocks"]))


def inside(group):
    keep = jax.tree.map(lambda g: jnp.asarray(g == group, jnp.float32), GROUPS)
    return zeroth_order.scaled(ALONG, keep)


def by_hand(seed, order, visited, rate=0.01):
    start = params = PARAMS
    for group in visited:
        at = start if order == "jacobi" else params
        estimate = MAKE(inside(group))(lambda p: loss(p, None), at, seed)
        params = zeroth_order.apply(inside(group), estimate.gradient, params, rate=rate)
    return params


@pytest.mark.parametrize("order", ["gauss-seidel", "jacobi"])
def test_all_groups_move_each_by_its_own_slope(order):
    algorithm = zeroth_order.mezo_blockwise(loss, 0.01, MAKE, ALONG, GROUPS, order=order)
    state, info = jax.jit(algorithm.update)(algorithm.init(PARAMS, jax.random.key(0)), None)
    expected = by_hand(info.gradient.seed, order, (0, 1, 2))
    for name in PARAMS:
        np.testing.assert_allclose(state.params[name], expected[name], rtol=1e-5)
    assert info.evaluations == 6 and info.gradient.coefficients.shape == (3, 1)


def test_the_orders_differ():
    key = jax.random.key(0)
    found = []
    for order in ("gauss-seidel", "jacobi"):
        algorithm = zeroth_order.mezo_blockwise(loss, 0.05, MAKE, ALONG, GROUPS, order=order)
        found.append(algorithm.update(algorithm.init(PARAMS, key), None)[0].params["head"])
    assert abs(found[0] - found[1]) > 1e-3


def test_cyclic_steps_move_one_group_each():
    algorithm = zeroth_order.mezo_blockwise(loss, 0.01, MAKE, ALONG, GROUPS, order="cyclic")
    state, update = algorithm.init(PARAMS, jax.random.key(0)), jax.jit(algorithm.update)
    moved = []
    for _ in range(4):
        before = state.params
        state, info = update(state, None)
        same = [*(before["blocks"] == state.params["blocks"]).all(axis=1)]
        moved.append([not s for s in [*same, (before["head"] == state.params["head"]).all()]])
        assert info.evaluations == 2
    one = np.eye(3, dtype=bool).tolist()
    assert moved == [*one, one[0]]


@pytest.mark.parametrize("order", ["gauss-seidel", "jacobi", "cyclic"])
def test_it_descends(order):
    algorithm = zeroth_order.mezo_blockwise(loss, 0.02, MAKE, ALONG, GROUPS, order=order)
    state = algorithm.init(PARAMS, jax.random.key(0))
    _, info = jax.jit(lambda s: jax.lax.scan(algorithm.update, s, length=150))(state)
    assert info.loss[-10:].mean() < 0.3 * info.loss[0]


def test_bad_orders_are_named():
    with pytest.raises(ValueError, match="order is 'random'; accepted: 'gauss-seidel', 'jacobi'"):
        zeroth_order.mezo_blockwise(loss, 0.1, MAKE, ALONG, GROUPS, order="random")
    two = functools.partial(MAKE, samples=2)
    algorithm = zeroth_order.mezo_blockwise(loss, 0.1, two, ALONG, GROUPS, order="jacobi")
    with pytest.raises(ValueError, match="the estimator has 2 samples; accepted with order 'jaco"):
        algorithm.update(algorithm.init(PARAMS, jax.random.key(0)), None)
