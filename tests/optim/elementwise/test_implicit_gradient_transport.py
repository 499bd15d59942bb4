"""Implicit gradient transport: a NumPy replay, exactness on quadratics, what is served."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def numpy_iterates(start, gradients, rate, weight):
    """(x after each step, z of each step), from gradients that are given."""
    x, last, d, iterates, points = start.copy(), start.copy(), 0.0, [], []
    for t, g in enumerate(gradients):
        w = weight(t)
        points.append(x + (1 - w) / w * (x - last))
        d = (1 - w) * d + w * g
        x, last = x - rate(t) * d / np.linalg.norm(d), x
        iterates.append(x)
    return np.array(iterates), np.array(points)


@pytest.mark.parametrize(
    "weight",
    [None, lambda t: 1 / (t + 1.0), 0.25],
    ids=["paper", "mean", "constant"],
)
def test_agrees_with_numpy_in_float64(weight):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=6), rng.normal(size=(12, 6))
    theirs = {
        None: lambda t: (2 / (t + 2)) ** 0.8,
        0.25: lambda t: 1.0 if t == 0 else 0.25,
    }.get(weight, weight)
    expected, points = numpy_iterates(start, gradients, lambda t: 0.5 / (t + 2), theirs)
    with jax.enable_x64(True):
        chosen = {} if weight is None else {"weight": weight}
        tx = optim.implicit_gradient_transport(lambda t: 0.5 / (t + 2), **chosen)
        # Two leaves, whose norm is that of both together.
        params = {"a": jnp.asarray(start[:2]), "b": jnp.asarray(start[2:]).reshape(2, 2)}
        state = tx.init(params)
        for t, g in enumerate(gradients):
            np.testing.assert_allclose(flat(params), points[t], rtol=1e-12, atol=1e-14)
            tree = {"a": jnp.asarray(g[:2]), "b": jnp.asarray(g[2:]).reshape(2, 2)}
            updates, state = tx.update(tree, state, params)
            params = optim.apply_updates(params, updates)
            served = optim.evaluation_params(state, params)
            np.testing.assert_allclose(flat(served), expected[t], rtol=1e-12, atol=1e-14)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_transported_average_is_the_gradient_of_a_quadratic_at_the_iterate():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(5, 5))
    with jax.enable_x64(True):
        hessian = jnp.asarray(factor @ factor.T)
        tx = optim.implicit_gradient_transport(0.3)
        params = jnp.asarray(rng.normal(size=5))
        state = tx.init(params)
        for _ in range(20):
            iterate = optim.evaluation_params(state, params)
            updates, state = tx.update(hessian @ params, state, params)
            np.testing.assert_allclose(state[0].average, hessian @ iterate, rtol=1e-9, atol=1e-11)
            params = optim.apply_updates(params, updates)


def test_average_without_transport_is_not():
    """What the test above would miss were the gradient taken at the iterate."""
    tx = optax.chain(optim.scale_by_implicit_gradient_transport(), optax.scale(-0.3))
    params = jnp.array([1.0, -2.0])
    state = tx.init(params)
    for _ in range(3):
        gradient = params * jnp.array([1.0, 3.0])
        updates, state = tx.update(gradient, state, params)
        params = optim.apply_updates(params, updates)
    assert float(jnp.abs(state[0].average - gradient).max()) > 0.1


def test_noise_is_averaged_out():
    """On a noisy quadratic the transported direction is closer to the gradient than one sample."""
    key, start = jax.random.key(0), jnp.full(50, 10.0)
    tx = optim.implicit_gradient_transport(lambda t: 20.0 / (t + 2))

    def step(carry, t):
        params, state = carry
        iterate = optim.evaluation_params(state, params)
        noise = jax.random.normal(jax.random.fold_in(key, t), start.shape)
        updates, state = tx.update(params + noise, state, params)
        error = jnp.linalg.norm(state[0].average - iterate)
        return (optim.apply_updates(params, updates), state), error

    _, errors = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(300)))((start, tx.init(start)))
    # An average with weight w of independent noise has w / (2 - w) of its variance, and
    # sqrt(w / (2 - w)) is 0.09 at step 300; a sample has sqrt(50), which is 7.1.
    assert float(errors[-50:].mean()) < 0.2 * 50**0.5


def test_parameters_start_at_the_iterate_and_step_to_the_same_length():
    tx = optim.implicit_gradient_transport(2.0)
    params = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    state = tx.init(params)
    updates, state = tx.update(params, state, params)
    served = optim.evaluation_params(state, optim.apply_updates(params, updates))
    np.testing.assert_allclose(flat(served), [3.0 - 2 * 0.6, 4.0 - 2 * 0.8], rtol=1e-6)


def test_zero_gradients_leave_everything_where_it_is():
    tx = optim.implicit_gradient_transport(1.0)
    params = jnp.ones(3)
    updates, state = tx.update(jnp.zeros(3), tx.init(params), params)
    assert updates.tolist() == [0.0] * 3
    assert optim.evaluation_params(state, params).tolist() == [1.0] * 3


def test_serves_bfloat16_integers_and_leaves_without_gradient():
    params = {"w": jnp.ones(2, jnp.bfloat16), "n": jnp.array([2**24 + 1]), "still": jnp.ones(2)}
    gradients = {
        "w": jnp.array([3.0, 4.0], jnp.bfloat16),
        "n": np.zeros(1, jax.dtypes.float0),
        "still": None,
    }
    tx = optim.implicit_gradient_transport(0.5)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(gradients, state, params)
        params = optim.apply_updates(params, updates)
    served = optim.evaluation_params(state, params)
    assert state[2].iterate["w"].dtype == jnp.float32
    np.testing.assert_allclose(state[2].iterate["w"], [1 - 0.6, 1 - 0.8], rtol=1e-6)
    assert served["w"].dtype == jnp.bfloat16
    assert served["n"].tolist() == params["n"].tolist() == [2**24 + 1]
    assert served["still"].tolist() == params["still"].tolist() == [1.0, 1.0]


def test_served_from_inside_a_partition():
    params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    groups = {"moved": optim.implicit_gradient_transport(0.5), "rest": optax.sgd(0.25)}
    tx = optax.partition(groups, {"a": "moved", "b": "rest"})
    updates, state = tx.update(params, tx.init(params), params)
    params = optim.apply_updates(params, updates)
    served = optim.evaluation_params(state, params)
    assert (served["a"].tolist(), served["b"].tolist()) == ([0.5], [0.75])
    assert params["a"].tolist() != [0.5]


def test_default_weight_is_the_papers():
    weight = inspect.signature(optim.implicit_gradient_transport).parameters["weight"].default
    np.testing.assert_allclose([weight(0), weight(2)], [1.0, 0.5**0.8], rtol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 1.5, -1, float("nan")])
def test_weight_out_of_range_is_named(weight):
    message = rf"implicit_gradient_transport: weight is {weight}; accepted: 0 < weight <= 1"
    for build in (
        lambda: optim.implicit_gradient_transport(0.1, weight=weight),
        lambda: optim.transported_params(weight),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_forgotten_parameters_are_named():
    tx = optim.implicit_gradient_transport(0.1)
    with pytest.raises(ValueError, match=r"params is None; call update\(updates, state, params\)"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
