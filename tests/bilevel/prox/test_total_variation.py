"""Total variation: the dual certificate, which proves a minimiser, and pieces by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.prox.total_variation import prox_total_variation
from tests.bilevel.derivatives import assert_derivatives


def walk(size, seed=0):
    return np.random.default_rng(seed).normal(size=size).cumsum()


@pytest.mark.parametrize("size", [1, 2, 3, 10, 200])
@pytest.mark.parametrize("t", [0.0, 0.1, 1.0, 5.0, 100.0])
def test_the_dual_vector_proves_the_minimiser(size, t):
    """y = x - D'z with |z| <= t, and z = t sign(Dy) where Dy is not zero."""
    x = walk(size)
    with jax.enable_x64(True):
        y = np.asarray(prox_total_variation(jnp.asarray(x), t / 2, 2.0))
    z = np.cumsum(y - x)
    jumps = np.diff(y)
    assert abs(z[-1]) < 1e-10
    assert (np.abs(z) <= t + 1e-10).all()
    np.testing.assert_allclose(z[:-1][jumps != 0], t * np.sign(jumps[jumps != 0]), atol=1e-10)


def test_ends_by_hand():
    x = jnp.array([0.0, 4.0, 5.0])
    np.testing.assert_allclose(prox_total_variation(x, 0.0), x)
    np.testing.assert_allclose(prox_total_variation(x, 1.0), [1, 4, 4])
    np.testing.assert_allclose(prox_total_variation(x, 50.0), [3, 3, 3], rtol=1e-6)
    np.testing.assert_allclose(prox_total_variation(jnp.ones(4), 0.3), jnp.ones(4))


@pytest.mark.slow
def test_float32_stays_near_float64_far_from_zero():
    x = walk(1000)
    with jax.enable_x64(True):
        exact = np.asarray(prox_total_variation(jnp.asarray(x), 2.0))
    found = prox_total_variation(jnp.asarray(x + 1e3, jnp.float32), 2.0)
    # Rounding of the input is 6e-5 / 2; a sum that loses digits would be off by 1e-2 and more.
    np.testing.assert_allclose(found - 1e3, exact, atol=4e-4)


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.1, 1.0, 100.0])
def test_derivatives(t):
    assert_derivatives(prox_total_variation, walk(12), t, 1.1)


def test_vmap_under_jit_is_one_at_a_time():
    x = jnp.asarray(np.stack([walk(20, seed) for seed in range(3)]), jnp.float32)
    strengths = jnp.array([0.1, 1.0, 10.0])
    found = jax.jit(jax.vmap(prox_total_variation))(x, strengths)
    for one, row, strength in zip(found, x, strengths, strict=True):
        np.testing.assert_allclose(one, prox_total_variation(row, strength), atol=1e-5)


def test_what_is_not_accepted():
    with pytest.raises(ValueError, match=r"prox_total_variation: l1reg is -1; accepted: l1reg >="):
        prox_total_variation(jnp.ones(2), -1)
    with pytest.raises(ValueError, match=r"x has the shape \(2, 2\); accepted: a vector"):
        prox_total_variation(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match=r"l1reg has the shape \(2,\); accepted: a number"):
        prox_total_variation(jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"x is of int32; accepted: real floats"):
        prox_total_variation(jnp.arange(2))
