"""Noise passes a battery of statistics that weaker generators fail, and its products are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order
from zeroth_order import noise

SEEDS, SIZE = 512, 2**14
DRAWS = {
    "rademacher": zeroth_order.rademacher,
    "popcount_normal": zeroth_order.popcount_normal,
    "box_muller_normal": zeroth_order.box_muller_normal,
}
FOURTH = {"rademacher": 1.0, "popcount_normal": 3 - 1 / 16, "box_muller_normal": 3.0}


def linear(key, counter):
    """A linear congruence of the counter, whose low bits are regular."""
    return counter * jnp.uint32(747796405) + key


def drawn(draws, word=noise.word):
    """(seeds, elements) of one leaf for consecutive seeds."""

    def one(seed):
        key = noise.block_keys(seed, noise.leaf_number("w"), ())
        return draws.unit * draws.draw(word(key, noise.counters((SIZE,), key)))

    return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(SEEDS, dtype=jnp.uint32)), np.float64)


def deviations(z, fourth):
    """What each statistic deviates from its expectation, in its standard errors."""
    count = z.size
    found = {
        "mean": z.mean() * np.sqrt(count),
        "variance": (np.square(z).mean() - 1) * np.sqrt(count / max(fourth - 1, 1e-12)),
        "coordinates": np.abs(z.mean(axis=0)).max() * np.sqrt(SEEDS),
        "rows and columns": max(
            np.abs(z.reshape(SEEDS, 128, 128).sum(axis=axis)).max() / np.sqrt(128)
            for axis in (1, 2)
        ),
    }
    pairs = z @ z.T / np.sqrt(SIZE)
    found["pairs of seeds"] = np.abs(pairs[np.triu_indices(SEEDS, 1)]).max()
    for lag in (1, 2, 128, 4096):
        found[f"lag {lag}"] = (z[:, lag:] * z[:, :-lag]).sum() / np.sqrt(SEEDS * (SIZE - lag))
    return {name: abs(float(value)) for name, value in found.items()}


# Normal quantiles for a false alarm in 10,000, by how many numbers the largest is of.
LIMITS = {"coordinates": 5.7, "rows and columns": 6.1, "pairs of seeds": 5.9}


@pytest.mark.parametrize("name", DRAWS)
def test_noise_passes_the_battery(name):
    z = drawn(DRAWS[name])
    found = deviations(z, FOURTH[name])
    if name == "rademacher":
        assert set(np.unique(z)) == {-1.0, 1.0} and found.pop("variance") == 0
    assert {k: v for k, v in found.items() if v > LIMITS.get(k, 4.0)} == {}
    error = (np.power(z, 4).mean() - FOURTH[name]) * np.sqrt(z.size / 100)
    assert abs(error) < 4


def test_a_linear_congruence_fails_the_battery():
    found = deviations(drawn(zeroth_order.rademacher, linear), 1.0)
    assert max(found["lag 1"], found["lag 2"], found["pairs of seeds"]) > 20


def test_the_battery_sees_seeds_that_are_one_sequence_shifted():
    def shifted(key, counter):
        return noise.mix(noise.mix(counter - key + noise.mix(jnp.uint32(7))))

    found = deviations(drawn(zeroth_order.rademacher, shifted), 1.0)
    assert found["pairs of seeds"] > 20


def test_words_by_hand():
    """The module's formulas in Python's integers."""
    keep = 2**32 - 1

    def mix(x):
        x = (x ^ (x >> 16)) * 0x7FEB352D & keep
        x = (x ^ (x >> 15)) * 0x846CA68B & keep
        return x ^ (x >> 16)

    seed, leaf, block, offset = 12345, noise.leaf_number("blocks/w"), 2, 7
    first = mix((mix(seed) + leaf) & keep)
    key = mix((first + 0x9E3779B9 * block) & keep)
    ours = noise.block_keys(seed, leaf, (4,))[block]
    assert int(ours) == key
    expected = mix(mix((key + offset) & keep) ^ (0x9E3779B9 * key & keep))
    assert int(noise.word(ours, noise.counters((3, 4), ours)[1, 3])) == expected


@pytest.mark.parametrize("name", ["rademacher", "popcount_normal"])
def test_products_with_an_exact_scale_are_exact(name):
    draws = DRAWS[name]
    words = noise.word(jnp.uint32(3), noise.counters((4096,)))
    z = np.asarray(draws.draw(words))
    for scale in (1e-3, 0.1 / 3, -7.7e-9):
        rounded = noise.exact_scale(jnp.float32(scale), draws.bits)
        assert abs(float(rounded) / scale - 1) < 2**-19
        product = z.astype(np.float64) * float(rounded)
        np.testing.assert_array_equal(np.float64(np.float32(product)), product)


def test_counters_are_flat_indices_modulo_the_word():
    np.testing.assert_array_equal(
        noise.counters((2, 3), 5), np.arange(6, dtype=np.uint32).reshape(2, 3) + 5
    )
    assert noise.counters((3,), 2**32 - 1).tolist() == [2**32 - 1, 0, 1]
