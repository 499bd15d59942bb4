"""One loss a step: the residual by hand, and a descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order

ALONG = zeroth_order.direction(stack={"w": 1})
PARAMS = {"v": jnp.array([1.0, -2.0]), "w": jnp.array([[0.5], [3.0]])}


def loss(p, target):
    return jnp.square(p["v"] - target) + jnp.sum(jnp.square(p["w"]))


def test_two_steps_by_hand():
    algorithm = zeroth_order.one_point_residual(loss, 0.01, ALONG, epsilon=0.1)
    state = algorithm.init(PARAMS, jax.random.key(0))
    first, told = algorithm.update(state, 0.0)
    assert told.gradient.coefficients == 0 and told.evaluations == 1
    np.testing.assert_array_equal(first.params["v"], PARAMS["v"])
    probed = zeroth_order.perturb(ALONG, PARAMS, told.gradient.seed, 0.1)
    np.testing.assert_allclose(told.loss, jnp.mean(loss(probed, 0.0)), rtol=1e-6)

    second, after = algorithm.update(first, 1.0)
    probed = zeroth_order.perturb(ALONG, PARAMS, after.gradient.seed, 0.1)
    expected = (jnp.mean(loss(probed, 1.0)) - told.loss) / 0.1
    np.testing.assert_allclose(after.gradient.coefficients[0], expected, rtol=1e-4)
    moved = zeroth_order.apply(ALONG, after.gradient, PARAMS, rate=0.01)
    np.testing.assert_array_equal(second.params["w"], moved["w"])
    np.testing.assert_allclose(second.previous_loss, after.loss)


@pytest.mark.parametrize("streamed", [False, True])
def test_it_descends(streamed):
    def of(p, target):
        read = {"v": zeroth_order.read(p["v"])}
        _, w = jax.lax.scan(lambda _, w: (None, zeroth_order.read(w)), None, p["w"])
        return loss({**read, "w": w}, target)

    algorithm = zeroth_order.one_point_residual(of, 5e-3, ALONG, epsilon=0.3, streamed=streamed)
    state = algorithm.init(PARAMS, jax.random.key(0))
    state, info = jax.jit(lambda s: jax.lax.scan(algorithm.update, s, jnp.zeros(600)))(state)
    assert info.loss[-50:].mean() < 0.2 * info.loss[:5].mean()


def test_an_epsilon_of_zero_is_an_error():
    with pytest.raises(ValueError, match="one_point_residual: epsilon is 0; accepted: epsilon > 0"):
        zeroth_order.one_point_residual(loss, 0.1, ALONG, epsilon=0)
