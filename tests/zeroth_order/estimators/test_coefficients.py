"""Signs, bounds and skipped steps of an estimate's coefficients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order

ALONG = zeroth_order.direction()
PARAMS = {"w": jnp.array([1.0, 2.0, 3.0])}


def loss(p):
    return jnp.sum(jnp.square(p["w"]))


def found(change, samples=4, loss=loss):
    estimator = zeroth_order.spsa(ALONG, epsilon=0.1, samples=samples)
    return change(estimator)(loss, PARAMS, 3), estimator(loss, PARAMS, 3)


def test_signs_are_those_of_the_coefficients():
    ours, plain = found(zeroth_order.signed)
    np.testing.assert_array_equal(ours.gradient.coefficients, jnp.sign(plain.gradient.coefficients))
    assert ours.value == plain.value and ours.evaluations == plain.evaluations


@pytest.mark.parametrize("limit", [3.0, 1e3])
def test_it_is_the_derivatives_that_are_clipped(limit):
    ours, plain = found(lambda e: zeroth_order.clipped(e, limit))
    slopes = 4 * plain.gradient.coefficients
    assert (abs(slopes) > 3).any()
    np.testing.assert_allclose(
        4 * ours.gradient.coefficients, jnp.clip(slopes, -limit, limit), rtol=1e-6
    )


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_step_with_an_infinite_loss_leaves_the_parameters(bad):
    def sometimes(p, batch):
        return jnp.where(batch > 0, bad, loss(p))

    estimator = zeroth_order.finite(zeroth_order.spsa(ALONG))
    algorithm = zeroth_order.mezo(sometimes, 0.1, estimator, ALONG)
    state = algorithm.init(PARAMS, jax.random.key(0))
    skipped, info = algorithm.update(state, jnp.float32(1))
    assert not jnp.isfinite(info.loss)
    np.testing.assert_array_equal(skipped.params["w"], PARAMS["w"])
    moved, _ = algorithm.update(skipped, jnp.float32(0))
    assert jnp.isfinite(moved.params["w"]).all() and (moved.params["w"] != PARAMS["w"]).all()


def test_a_limit_of_zero_is_an_error():
    with pytest.raises(ValueError, match="clipped: limit is 0; accepted: limit > 0"):
        zeroth_order.clipped(zeroth_order.spsa(ALONG), 0)
