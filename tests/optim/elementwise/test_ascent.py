"""The gradient after an ascent: by hand, limits, optax's SAM, odd leaves, bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def loss(params):
    return jnp.sum(params["a"] ** 4) + jnp.sum(params["a"]) * jnp.sum(params["b"] ** 2)


GRAD = jax.grad(loss)
PARAMS = {"a": jnp.array([1.0, -0.5]), "b": jnp.array([[2.0]])}


def first_update(tx):
    return tx.update(GRAD(PARAMS), tx.init(PARAMS), PARAMS, grad_fn=GRAD)[0]


def assert_trees_close(ours, theirs):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), ours, theirs)


def test_gradient_is_taken_at_the_radius_and_mixed():
    g = GRAD(PARAMS)
    norm = np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(g)))
    ahead = GRAD(jax.tree.map(lambda p, x: p + 0.3 * x / norm, PARAMS, g))
    for weight in (1.0, 0.25):
        tx = optim.with_ascent_gradient(optax.identity(), radius=0.3, weight=weight)
        expected = jax.tree.map(lambda x, y, a=weight: (1 - a) * x + a * y, g, ahead)
        assert_trees_close(first_update(tx), expected)


def test_without_radius_or_weight_it_is_the_inner_optimizer():
    plain = optax.adam(0.1)
    expected, _ = plain.update(GRAD(PARAMS), plain.init(PARAMS), PARAMS)
    for arguments in ({"radius": 0.0}, {"weight": 0.0}):
        tx = optim.with_ascent_gradient(optax.adam(0.1), **arguments)
        assert_trees_close(first_update(tx), expected)


def test_equals_optax_sam_over_its_two_steps():
    """optax moves up by a normalized gradient, and makes the descent from where it came."""
    sam = optax.contrib.sam(
        optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.3)), opaque_mode=True
    )
    expected, _ = sam.update(
        GRAD(PARAMS), sam.init(PARAMS), PARAMS, grad_fn=lambda params, _: GRAD(params)
    )
    assert_trees_close(
        first_update(optim.with_ascent_gradient(optax.sgd(0.1), radius=0.3)), expected
    )


def test_flat_and_sharp_minima_get_other_gradients():
    """At the bottom of a valley the gradient vanishes and with it the ascent."""
    tx = optim.with_ascent_gradient(optax.identity(), radius=0.5)
    grad_fn = jax.grad(lambda p: jnp.sum(p**2))
    zero = jnp.zeros(3)
    updates, _ = tx.update(grad_fn(zero), tx.init(zero), zero, grad_fn=grad_fn)
    assert updates.tolist() == [0.0] * 3


def test_climbs_in_the_parameters_dtype_and_past_what_has_no_gradient():
    params = {
        "w": jnp.array([3.0, 4.0], jnp.bfloat16),
        "n": jnp.array([7]),
        "still": jnp.ones(2),
    }
    gradients = {"w": params["w"], "n": np.zeros(1, jax.dtypes.float0), "still": None}
    seen = {}

    def grad_fn(params):
        seen.update(params)
        return {**gradients, "w": 2 * params["w"]}

    tx = optim.with_ascent_gradient(optax.identity(), radius=5.0)
    updates, _ = tx.update(gradients, tx.init(params), params, grad_fn=grad_fn)
    assert seen["w"].dtype == jnp.bfloat16 and seen["w"].tolist() == [6.0, 8.0]
    assert seen["n"].tolist() == [7] and seen["still"].tolist() == [1.0, 1.0]
    assert updates["still"] is None
    assert updates["w"].dtype == jnp.float32 and updates["w"].tolist() == [12.0, 16.0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"radius": -1.0}, "radius is -1.0; accepted: radius >= 0"),
        ({"weight": 1.5}, "weight is 1.5; accepted: 0 <= weight <= 1"),
    ],
)
def test_arguments_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError, match=f"with_ascent_gradient: {message}"):
        optim.with_ascent_gradient(optax.sgd(0.1), **kwargs)


def test_forgotten_arguments_are_named():
    tx = optim.with_ascent_gradient(optax.sgd(0.1))
    with pytest.raises(
        ValueError, match=r"grad_fn is None; call update\(updates, state, params, g"
    ):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="params is None"):
        tx.update(PARAMS, tx.init(PARAMS), grad_fn=GRAD)
