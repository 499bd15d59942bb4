"""Scales move, codes stay; derivatives are clipped and scales are bounded from below."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order

ALONG = zeroth_order.direction(select={".*scale": True})
PARAMS = {
    "bias": jnp.ones(2),
    "layer": {
        "code": jnp.array([[3, -4], [7, 1]], jnp.int8),
        "scale": jnp.array([0.5, 0.25]),
    },
}


def loss(p, target):
    weights = p["layer"]["code"] * p["layer"]["scale"]
    return jnp.sum(jnp.square(weights - target), axis=0) + p["bias"]


def step(rate, params=PARAMS, **arguments):
    algorithm = zeroth_order.qzo(
        loss, rate, zeroth_order.spsa(ALONG, epsilon=1e-3), ALONG, **arguments
    )
    return jax.jit(algorithm.update)(algorithm.init(params, jax.random.key(0)), 2.0)


def test_a_step_by_hand():
    state, info = step(1e-3)
    one = zeroth_order.SeededGradient(info.gradient.seed, jnp.ones(1))
    z = zeroth_order.materialize(ALONG, one, PARAMS)["layer"]["scale"]
    sides = [
        jnp.mean(
            loss(
                {**PARAMS, "layer": {**PARAMS["layer"], "scale": PARAMS["layer"]["scale"] + e * z}},
                2.0,
            )
        )
        for e in (1e-3, -1e-3)
    ]
    slope = (sides[0] - sides[1]) / 2e-3
    np.testing.assert_allclose(
        state.params["layer"]["scale"], PARAMS["layer"]["scale"] - 1e-3 * slope * z, rtol=1e-3
    )
    np.testing.assert_array_equal(state.params["layer"]["code"], PARAMS["layer"]["code"])
    assert state.params["layer"]["code"].dtype == jnp.int8
    np.testing.assert_array_equal(state.params["bias"], PARAMS["bias"])


def test_the_derivative_is_clipped():
    _, free = step(1e-3)
    assert abs(free.gradient.coefficients[0]) > 0.5
    state, info = step(1e-3, clip=0.5)
    np.testing.assert_allclose(abs(info.gradient.coefficients), 0.5)
    moved = state.params["layer"]["scale"] - PARAMS["layer"]["scale"]
    np.testing.assert_allclose(abs(moved), 5e-4, rtol=1e-3)


def test_scales_do_not_fall_below_the_least():
    state, _ = step(10.0)
    assert float(state.params["layer"]["scale"].min()) == np.float32(1e-7)
    assert (state.params["bias"] == 1).all()


@pytest.mark.parametrize("name", ["clip", "least"])
def test_bounds_of_zero_are_errors(name):
    with pytest.raises(ValueError, match=f"qzo: {name} is 0; accepted: {name} > 0"):
        step(0.1, **{name: 0})
