"""Isotonic regression: KKT certificates, sklearn, jaxopt, and derivatives of the blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxopt import isotonic as jaxopt_isotonic
from sklearn.isotonic import isotonic_regression

from bilevel.inner_solvers.isotonic import isotonic_kl, isotonic_l2
from tests.bilevel.derivatives import assert_derivatives

solve_l2 = jax.jit(isotonic_l2, static_argnames="increasing")
solve_kl = jax.jit(isotonic_kl, static_argnames="increasing")


def sample(size, seed=0, slope=0.1):
    random = np.random.default_rng(seed)
    return slope * np.arange(size) + random.normal(size=size), random.uniform(0.2, 3, size=size)


def assert_least(gradient, v, increasing):
    """v is in order; the sums of the gradient are at least 0, end at 0, and are 0 where v jumps."""
    if not increasing:
        gradient, v = gradient[::-1], v[::-1]
    assert (np.diff(v) >= 0).all()
    multipliers = np.cumsum(gradient)
    scale = 1e-13 * len(v) * max(1, np.abs(gradient).max())
    assert abs(multipliers[-1]) < scale and (-multipliers > -scale).all()
    assert np.abs(multipliers[:-1][np.diff(v) > 1e-9]).max(initial=0) < scale


@pytest.mark.parametrize("size", [2, 5, 60])
@pytest.mark.parametrize("slope", [-1.0, 0.0, 0.1, 5.0])
@pytest.mark.parametrize("increasing", [True, False])
def test_multipliers_prove_both_minimisers(size, slope, increasing):
    y, weights = sample(size, slope=slope)
    with jax.enable_x64(True):
        v = np.asarray(solve_l2(y, weights, increasing=increasing))
        u = np.asarray(solve_kl(y, np.log(weights), increasing=increasing))
    assert_least(weights * (v - y), v, increasing)
    assert_least(weights - np.exp(y - u), u, increasing)


@pytest.mark.parametrize("size", [1, 2, 60])
@pytest.mark.parametrize("increasing", [True, False])
def test_l2_is_sklearns(size, increasing):
    y, weights = sample(size)
    for given in (y, np.round(y), np.zeros(size)):
        with jax.enable_x64(True):
            found = solve_l2(given, weights, increasing=increasing)
        wanted = isotonic_regression(given, sample_weight=weights, increasing=increasing)
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Numba could not be imported")
@pytest.mark.filterwarnings("ignore:jax.nn.one_hot input should be integer-typed")
def test_l2_and_its_jacobian_are_jaxopts_apart_from_the_1e_8_that_it_adds_to_lengths():
    y = np.log(np.arange(1, 11)) + np.random.default_rng(0).normal(size=10)
    with jax.enable_x64(True):
        y = jnp.asarray(y)
        np.testing.assert_allclose(
            solve_l2(y), jaxopt_isotonic.isotonic_l2_pav(y), rtol=1e-12, atol=1e-12
        )
        wanted = jax.jacfwd(jaxopt_isotonic.isotonic_l2_pav)(y)
        np.testing.assert_allclose(jax.jit(jax.jacrev(isotonic_l2))(y), wanted, atol=2e-8)


def test_kl_of_logarithms_is_l2_of_their_ratios_since_both_pool_weighted_means():
    """exp(v) minimises a Bregman divergence to exp(y - w) with weights exp(w), as the square."""
    y, weights = sample(30)
    with jax.enable_x64(True):
        found = solve_kl(y, np.log(weights))
        wanted = solve_l2(np.exp(y) / weights, weights)
    np.testing.assert_allclose(np.exp(found), wanted, rtol=1e-12)


def test_kl_of_large_logarithms_does_not_overflow():
    y = jnp.array([1e4, -1e4, 1e4 + 1])
    found = solve_kl(y, jnp.zeros(3))
    np.testing.assert_allclose(found, [1e4 - np.log(2), 1e4 - np.log(2), 1e4 + 1], rtol=1e-6)
    assert jnp.isfinite(jax.jit(jax.jacobian(isotonic_kl))(y, jnp.zeros(3))).all()


@pytest.mark.slow
def test_derivatives_by_y_and_weights():
    y, weights = sample(8)

    @jax.jit
    def both(y, weights):
        return isotonic_l2(y, weights), isotonic_kl(y, jnp.log(weights), increasing=False)

    assert_derivatives(both, y, weights)


def test_blocks_of_one_value_stay_apart_in_the_derivative():
    jacobian = jax.jit(jax.jacobian(isotonic_l2))
    for y in (jnp.zeros(4), jnp.array([-1.0, 2.0, 2.0, 3.0])):
        np.testing.assert_array_equal(jacobian(y), np.eye(4))


def test_float32_stays_near_float64_far_from_zero():
    y, _ = sample(2000, slope=0.01)
    with jax.enable_x64(True):
        exact = np.asarray(solve_l2(jnp.asarray(y)))
    found = np.asarray(solve_l2(jnp.asarray(y + 1e3, jnp.float32)))
    assert found.dtype == np.float32
    # Rounding of the input is 3e-5 at most, and blocks may merge by it where they nearly do.
    np.testing.assert_allclose(found - 1e3, exact, atol=2e-4)


def test_bfloat16_is_rounded_once():
    y = jnp.array([1.0, 3.0, 2.0, 2.0, 9.0], jnp.bfloat16)
    found = solve_l2(y)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, solve_l2(y.astype(jnp.float32)).astype(jnp.bfloat16))


def test_vmap_under_jit_is_one_at_a_time_and_copies_no_stack():
    y = jnp.asarray(np.stack([sample(20, seed)[0] for seed in range(3)]), jnp.float32)
    batch = jax.jit(jax.vmap(isotonic_l2))
    for found, row in zip(batch(y), y, strict=True):
        np.testing.assert_allclose(found, solve_l2(row), rtol=1e-6, atol=1e-6)
    # A select of whole stacks in the loop would make each step cost n.
    selects = [line for line in str(jax.make_jaxpr(batch)(y)).split("\n") if "select_n" in line]
    assert selects and not any("f32[3,20,2] = select_n" in line for line in selects)


def test_what_is_not_accepted():
    with pytest.raises(ValueError, match=r"isotonic_l2: y has the shape \(2, 2\); accepted: a vec"):
        isotonic_l2(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match=r"isotonic_l2: y is of int32; accepted: real floats"):
        isotonic_l2(jnp.arange(2))
    with pytest.raises(ValueError, match=r"isotonic_kl: w has the shape \(3,\); accepted: that of"):
        isotonic_kl(jnp.ones(2), jnp.ones(3))
