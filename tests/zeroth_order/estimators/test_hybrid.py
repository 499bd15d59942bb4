"""Exact gradients above, estimates below."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order

PARAMS = {
    "low": {"w": jnp.array([[0.5, -1.0], [2.0, 0.1]])},
    "top": {"b": jnp.array([0.3, 0.2]), "w": jnp.array([1.0, -2.0])},
}
X = jnp.array([[1.0, -2.0], [0.5, 0.3], [2.0, 1.0]])
ALONG = zeroth_order.direction(select={"low/.*": True})


def losses(p):
    return jnp.square(jnp.tanh(X @ p["low"]["w"] + p["top"]["b"]) @ p["top"]["w"] - 1)


def made(along=ALONG, exact=None, samples=1):
    estimator = zeroth_order.spsa(along, epsilon=1e-2, samples=samples)
    exact = {"top/.*": True} if exact is None else exact
    return zeroth_order.hybrid_value_and_grad(losses, estimator, along, exact=exact)


def test_the_top_is_exact_and_the_rest_is_estimated():
    value, found = jax.jit(made(samples=2))(PARAMS, 3)
    exact = jax.grad(lambda p: jnp.mean(losses(p)))(PARAMS)
    for name in ("b", "w"):
        np.testing.assert_allclose(found["top"][name], exact["top"][name], rtol=1e-5)
    estimator = zeroth_order.spsa(ALONG, epsilon=1e-2, samples=2)
    _, expected = zeroth_order.value_and_grad(losses, estimator, ALONG)(PARAMS, 3)
    np.testing.assert_allclose(found["low"]["w"], expected["low"]["w"], rtol=1e-5)
    np.testing.assert_allclose(value, jnp.mean(losses(PARAMS)), rtol=1e-6)


def test_it_descends_with_any_transformation():
    import optax

    fn, tx = made(), optax.adam(0.05)

    def step(carry, seed):
        params, state = carry
        value, gradient = fn(params, seed)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    seeds = jnp.arange(200, dtype=jnp.uint32)
    _, values = jax.jit(lambda: jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), seeds))()
    assert values[-20:].mean() < 0.05 * values[0]


def test_nothing_below_the_exact_leaves_is_differentiated():
    """A function without a derivative below them is no obstacle."""

    @jax.custom_jvp
    def opaque(x):
        return jnp.tanh(x)

    @opaque.defjvp
    def _(primals, tangents):
        raise AssertionError("differentiated")

    def loss(p):
        return jnp.square(jnp.sum(opaque(p["low"]) * p["top"]))

    along = zeroth_order.direction(select={"low": True})
    fn = zeroth_order.hybrid_value_and_grad(
        loss, zeroth_order.spsa(along), along, exact={"top": True}
    )
    _, found = fn({"low": jnp.ones(2), "top": jnp.array([0.5, 1.0])}, 0)
    np.testing.assert_allclose(found["top"], 3 * np.tanh(1) ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"along": zeroth_order.direction()}, "'top/b' is exact and perturbed"),
        ({"exact": {}}, "exact selects nothing"),
        ({"exact": {"nowhere": True}}, "hybrid_value_and_grad: exact: the pattern 'nowhere'"),
    ],
)
def test_what_is_both_or_neither_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        made(**arguments)(PARAMS, 0)
