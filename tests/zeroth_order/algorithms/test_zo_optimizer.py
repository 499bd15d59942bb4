"""Any transformation by estimates: by hand, and the form without a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zeroth_order

ALONG = zeroth_order.direction()
PARAMS = {"v": jnp.linspace(-1, 1, 6), "w": jnp.linspace(0, 2, 5)}


def loss(p, target):
    return jnp.square(p["v"] - target) + jnp.sum(jnp.sin(p["w"]))


def run(algorithm, params=PARAMS, steps=20):
    state = algorithm.init(params, jax.random.key(4))
    return jax.jit(lambda s: jax.lax.scan(algorithm.update, s, jnp.linspace(0, 1, steps)))(state)


def made(tx, **arguments):
    estimator = zeroth_order.spsa(ALONG, epsilon=1e-2, **arguments)
    return zeroth_order.zo_optimizer(loss, tx, estimator, ALONG)


@pytest.mark.parametrize(
    "tx", [optax.sgd(0.02), optax.sgd(0.02, 0.9), optax.sign_sgd(0.02), optax.adam(0.02)]
)
def test_the_transformation_sees_the_estimate(tx):
    state, info = run(made(tx, samples=2))
    params, optimizer = PARAMS, tx.init(PARAMS)
    for t in range(20):
        gradient = zeroth_order.SeededGradient(*(x[t] for x in info.gradient))
        dense = zeroth_order.materialize(ALONG, gradient, params)
        updates, optimizer = tx.update(dense, optimizer, params)
        params = optax.apply_updates(params, updates)
    for name in ("v", "w"):
        np.testing.assert_allclose(state.params[name], params[name], atol=2e-6)


def test_sgd_is_mezo_with_the_same_seeds():
    state, info = run(made(optax.sgd(0.02)))
    params = PARAMS
    for t in range(20):
        gradient = zeroth_order.SeededGradient(*(x[t] for x in info.gradient))
        params = zeroth_order.apply(ALONG, gradient, params, rate=0.02)
    np.testing.assert_allclose(state.params["v"], params["v"], atol=1e-6)


def test_bfloat16_parameters_move_by_less_than_their_spacing():
    params = {"v": jnp.ones(4096, jnp.bfloat16), "w": jnp.ones(2, jnp.bfloat16)}

    def slope(p, _):
        return jnp.sum(p["v"].astype(jnp.float32))

    estimator = zeroth_order.spsa(ALONG, epsilon=2.0**-4)
    algorithm = zeroth_order.zo_optimizer(slope, optax.sign_sgd(2.0**-11), estimator, ALONG)
    state, _ = algorithm.update(algorithm.init(params, jax.random.key(0)), None)
    changed = np.asarray(state.params["v"] != params["v"]).mean()
    # Up by 2^-7 with the chance 1/16, down by 2^-8 with 1/8.
    assert changed == pytest.approx(0.094, abs=0.02)
    assert state.params["v"].dtype == jnp.bfloat16
