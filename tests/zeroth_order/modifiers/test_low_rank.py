"""Noise of low rank: its moments, its rank, and products that never write it out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order

FULL = zeroth_order.direction(stack={"blocks/.*": 1})


def params():
    return {"blocks": {"w": jnp.zeros((3, 12, 20)), "b": jnp.zeros((3, 20))}}


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_each_layer_has_noise_of_the_rank(rank):
    along = zeroth_order.low_rank(FULL, rank)
    z = zeroth_order.perturb(along, params(), 3, 1.0)["blocks"]
    assert [int(np.linalg.matrix_rank(w)) for w in z["w"]] == [rank] * 3
    assert (z["w"][0] != z["w"][1]).any()
    np.testing.assert_array_equal(
        z["b"], zeroth_order.perturb(FULL, params(), 3, 1.0)["blocks"]["b"]
    )


@pytest.mark.parametrize("rank", [1, 3])
def test_elements_have_mean_zero_and_variance_one_and_are_uncorrelated(rank):
    along = zeroth_order.low_rank(zeroth_order.direction(), rank)
    value = {"w": jnp.zeros((4, 5))}
    draw = jax.jit(jax.vmap(lambda s: zeroth_order.perturb(along, value, s, 1.0)["w"]))
    z = np.asarray(draw(jnp.arange(20_000, dtype=jnp.uint32))).reshape(20_000, -1)
    standard = 20_000**-0.5
    assert np.abs(z.mean(0)).max() < 4.5 * standard
    covariance = z.T @ z / len(z)
    # The square of a sum of `rank` signs has a variance below 2.
    assert np.abs(covariance - np.eye(20)).max() < 5 * 2**0.5 * standard


@pytest.mark.slow
def test_a_product_is_that_of_the_perturbed_weights():
    along = zeroth_order.low_rank(zeroth_order.direction(), 2)
    value = {"w": jax.random.normal(jax.random.key(0), (12, 20))}
    x = jax.random.normal(jax.random.key(1), (7, 12))
    streamed = zeroth_order.stream(along, value, 3, 0.25)["w"]
    copy = zeroth_order.perturb(along, value, 3, 0.25)["w"]
    np.testing.assert_allclose(zeroth_order.product(x, streamed), x @ copy, atol=2e-5)
    np.testing.assert_array_equal(zeroth_order.read(streamed), copy)
    np.testing.assert_array_equal(zeroth_order.product(x, value["w"]), x @ value["w"])
    full = zeroth_order.stream(zeroth_order.direction(), value, 3, 0.25)["w"]
    np.testing.assert_array_equal(zeroth_order.product(x, full), x @ zeroth_order.read(full))


def test_all_perturbations_share_one_read_of_the_weights():
    """No program of rank one writes perturbed weights; one of full noise writes all of them."""
    value = {"w": jax.random.normal(jax.random.key(0), (64, 64))}
    x = jax.random.normal(jax.random.key(1), (4, 64)) / 8

    def loss(p):
        return jnp.sum(jnp.sin(zeroth_order.product(x, p["w"])), axis=1)

    def vectorized(along):
        return zeroth_order.spsa(along, epsilon=0.1, samples=8, streamed=True, vectorized=True)

    full = zeroth_order.direction()
    thin = zeroth_order.low_rank(full, 1)

    def written(along):
        return str(jax.make_jaxpr(lambda p: vectorized(along)(loss, p, 0))(value))

    assert "f32[8,2,64,64]" in written(full) and "f32[8,2,64,64]" not in written(thin)
    found = vectorized(thin)(loss, value, 0).gradient.coefficients
    slow = zeroth_order.spsa(thin, epsilon=0.1, samples=8)(loss, value, 0).gradient.coefficients
    np.testing.assert_allclose(found, slow, atol=1e-4 * float(abs(slow).max()))


def test_an_update_is_a_sum_of_integers_and_exact():
    along = zeroth_order.low_rank(zeroth_order.direction(), 4)
    value = {"w": jnp.zeros((6, 6))}
    z = np.asarray(zeroth_order.perturb(along, value, 3, 1.0)["w"])
    assert set(np.unique(np.round(2 * z))) <= {-4.0, -2.0, 0.0, 2.0, 4.0}
    np.testing.assert_allclose(z, np.round(2 * z) / 2)


def test_a_rank_of_zero_is_an_error():
    with pytest.raises(ValueError, match="low_rank: rank is 0; accepted: rank >= 1"):
        zeroth_order.low_rank(FULL, 0)
