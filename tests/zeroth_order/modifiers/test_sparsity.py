"""Masks that are functions of the weights, of the seed, and of nothing that is stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order

ALONG = zeroth_order.direction(stack={"blocks": 1})


def params():
    keys = jax.random.split(jax.random.key(0))
    return {
        "blocks": jax.random.normal(keys[0], (3, 16, 8))
        * jnp.array([1.0, 5.0, 0.1])[:, None, None],
        "head": jax.random.normal(keys[1], (64,)),
    }


def moved(along, value, seed=3):
    after = zeroth_order.perturb(along, value, seed, 0.5)
    return jax.tree.map(lambda a, b: np.asarray(a != b), after, value)


@pytest.mark.parametrize("sparsity", [0.5, 0.75])
def test_the_smallest_weights_of_each_layer_move(sparsity):
    value = params()
    thresholds = zeroth_order.magnitude_thresholds(ALONG, value, sparsity)
    found = moved(zeroth_order.small_weights(ALONG, thresholds), value)
    for w, m in [*zip(value["blocks"], found["blocks"]), (value["head"], found["head"])]:
        size = np.abs(np.asarray(w)).ravel()
        count = m.sum()
        assert abs(count - (1 - sparsity) * size.size) <= 1
        assert set(np.argsort(size)[:count]) == set(np.flatnonzero(m))


def test_kept_elements_have_the_noise_of_the_whole_direction():
    value = params()
    thresholds = zeroth_order.magnitude_thresholds(ALONG, value, 0.5)
    sparse = zeroth_order.perturb(zeroth_order.small_weights(ALONG, thresholds), value, 3, 0.5)
    full = zeroth_order.perturb(ALONG, value, 3, 0.5)
    for s, f, v in zip(*(jax.tree.leaves(t) for t in (sparse, full, value)), strict=True):
        np.testing.assert_array_equal(s, np.where(s == v, v, f))


def test_the_mask_follows_the_weights_and_both_sides_share_it():
    along = zeroth_order.small_weights(zeroth_order.direction(), 1.0)
    before, after = {"w": jnp.array([0.5, 2.0])}, {"w": jnp.array([2.0, 0.5])}
    assert moved(along, before)["w"].tolist() == [True, False]
    assert moved(along, after)["w"].tolist() == [False, True]
    # A probe that carries a weight over the threshold does not change its mask.
    there = {"w": jnp.array([0.9])}
    sides = [zeroth_order.perturb(along, there, 3, s)["w"] for s in (0.5, -0.5)]
    np.testing.assert_allclose(sides[0] + sides[1], 1.8, rtol=1e-6)


def test_streamed_and_treewise_masks_are_one():
    value = params()
    thresholds = zeroth_order.magnitude_thresholds(ALONG, value, 0.5)
    for along in (
        zeroth_order.small_weights(ALONG, thresholds),
        zeroth_order.random_mask(ALONG, 0.5),
        zeroth_order.random_mask(zeroth_order.small_weights(ALONG, thresholds), 0.5, seed=1),
    ):
        streamed = zeroth_order.stream(along, value, 5, 0.5)
        _, blocks = jax.lax.scan(
            lambda _, w: (None, zeroth_order.read(w)), None, streamed["blocks"]
        )
        copy = zeroth_order.perturb(along, value, 5, 0.5)
        np.testing.assert_array_equal(blocks, copy["blocks"])
        np.testing.assert_array_equal(zeroth_order.read(streamed["head"]), copy["head"])


def test_random_masks_have_their_share_and_stay_or_change():
    value = {"v": jnp.zeros(10_000), "w": jnp.zeros(10_000)}
    along = zeroth_order.random_mask(zeroth_order.direction(), {"v": 0.9, "w": 0.2}, seed=7)
    found = moved(along, value)
    # Standard errors 0.003 and 0.004.
    assert found["v"].mean() == pytest.approx(0.1, abs=0.012)
    assert found["w"].mean() == pytest.approx(0.8, abs=0.016)
    np.testing.assert_array_equal(found["v"], moved(along, value, seed=4)["v"])
    fresh = zeroth_order.random_mask(zeroth_order.direction(), 0.5)
    one, two = (moved(fresh, value, seed=seed)["v"] for seed in (3, 4))
    assert (one & two).mean() == pytest.approx(0.25, abs=0.02)


def test_masks_and_signs_are_independent():
    value = {"w": jnp.zeros(40_000)}
    z = zeroth_order.perturb(
        zeroth_order.random_mask(zeroth_order.direction(), 0.5), value, 3, 1.0
    )["w"]
    assert abs(z.sum()) < 4 * 20_000**0.5


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5])
def test_a_share_that_leaves_nothing_is_an_error(sparsity):
    with pytest.raises(ValueError, match=f"sparsity is {sparsity}; accepted: 0 <= sparsity < 1"):
        zeroth_order.random_mask(ALONG, {"w": sparsity})
    with pytest.raises(ValueError, match="magnitude_thresholds: sparsity is"):
        zeroth_order.magnitude_thresholds(ALONG, params(), sparsity)


def test_a_mask_that_freezes_everything_is_an_error_at_the_start():
    along = zeroth_order.small_weights(zeroth_order.direction(), 1e-9)
    algorithm = zeroth_order.mezo(
        lambda p, _: jnp.sum(p["w"]), 0.1, zeroth_order.spsa(along), along
    )
    with pytest.raises(ValueError, match="mezo: the direction moves no parameter: z is 0"):
        algorithm.init({"w": jnp.ones(4)}, jax.random.key(0))
    algorithm.init({"w": jnp.array([1.0, 1e-10])}, jax.random.key(0))
