"""Operators of sums over numbers: lasso, elastic net, ridge, and both on numbers not negative."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest

from bilevel.prox.elastic_net import prox_elastic_net
from bilevel.prox.lasso import prox_lasso
from bilevel.prox.non_negative_lasso import prox_non_negative_lasso
from bilevel.prox.non_negative_ridge import prox_non_negative_ridge
from bilevel.prox.ridge import prox_ridge
from tests.bilevel.derivatives import assert_derivatives

# name: operator, jaxopt's, the objective's price of y at strength s, least y, hyper-parameters
OPERATORS = {
    "lasso": (prox_lasso, jaxopt.prox.prox_lasso, lambda y, s: s * abs(y), -9, 0.7),
    "elastic_net": (
        prox_elastic_net,
        jaxopt.prox.prox_elastic_net,
        lambda y, s: s[0] * (abs(y) + s[1] * y**2 / 2),
        -9,
        (0.7, 0.4),
    ),
    "ridge": (prox_ridge, jaxopt.prox.prox_ridge, lambda y, s: s * y**2 / 2, -9, 0.7),
    "non_negative_lasso": (
        prox_non_negative_lasso,
        jaxopt.prox.prox_non_negative_lasso,
        lambda y, s: s * abs(y),
        0,
        0.7,
    ),
    "non_negative_ridge": (
        prox_non_negative_ridge,
        jaxopt.prox.prox_non_negative_ridge,
        lambda y, s: s * y**2 / 2,
        0,
        0.7,
    ),
}
X = np.array([2.0, 0.3, -0.2, -1.9, 0.9, -0.8])
by_name = pytest.mark.parametrize("name", OPERATORS)


@by_name
def test_no_point_of_a_fine_grid_is_better(name):
    prox, _, price, least, hyperparams = OPERATORS[name]
    grid = np.arange(max(least, -4), 4, 1e-3)[:, None]
    with jax.enable_x64(True):
        y = np.asarray(prox(jnp.asarray(X), hyperparams, 1.3))

    def cost(y):
        return (y - X) ** 2 / 2 + 1.3 * price(y, hyperparams)

    assert (y >= least).all()
    assert (cost(y) <= cost(grid) + 1e-12).all()
    # A grid that is too coarse would let anything near pass.
    assert (np.abs(grid[cost(grid).argmin(0), 0] - y) <= 1e-3).all()


@by_name
def test_values_are_jaxopts(name):
    prox, peer, _, _, hyperparams = OPERATORS[name]
    x = jnp.asarray(X, jnp.float32)
    np.testing.assert_allclose(
        prox(x, hyperparams, 1.3), peer(x, hyperparams, scaling=1.3), rtol=1e-6
    )


@by_name
def test_derivatives_in_all_arguments(name):
    prox, *_, hyperparams = OPERATORS[name]
    assert_derivatives(prox, X, hyperparams, 1.3)


@by_name
def test_a_tree_is_the_operator_of_each_leaf_with_its_strength(name):
    prox, *_, hyperparams = OPERATORS[name]
    x = {"a": jnp.asarray(X[:4].reshape(2, 2), jnp.float32), "b": jnp.float32(X[4])}
    strengths = jax.tree.map(lambda s: {"a": jnp.array([s, 2 * s]), "b": 3 * s}, hyperparams)
    found = prox(x, strengths, 0.5)
    for column in (0, 1):
        alone = prox(x["a"][:, column], jax.tree.map((column + 1.0).__mul__, hyperparams), 0.5)
        np.testing.assert_allclose(found["a"][:, column], alone, rtol=1e-6)
    alone = prox(x["b"], jax.tree.map(lambda s: 3 * s, hyperparams), 0.5)
    np.testing.assert_allclose(found["b"], alone, rtol=1e-6)


@by_name
def test_vmap_over_strengths_under_jit_is_one_at_a_time(name):
    prox, *_, hyperparams = OPERATORS[name]
    x, scales = jnp.asarray(X, jnp.float32), jnp.array([0.0, 0.5, 2.0])
    found = jax.jit(jax.vmap(lambda scaling: prox(x, hyperparams, scaling)))(scales)
    for one, scaling in zip(found, scales, strict=True):
        np.testing.assert_allclose(one, prox(x, hyperparams, scaling), rtol=1e-6)


@by_name
def test_nan_stays_and_dtype_stays(name):
    prox, *_, hyperparams = OPERATORS[name]
    found = prox(jnp.array([jnp.nan, 1.0], jnp.bfloat16), hyperparams)
    assert found.dtype == jnp.bfloat16 and jnp.isnan(found[0]) and jnp.isfinite(found[1])


def test_without_strength_the_derivative_is_one_at_zero_too():
    for prox, strength in ((prox_lasso, 0.0), (prox_elastic_net, (0.0, 0.0))):
        assert jax.grad(lambda x, s, prox=prox: prox(x, s))(0.0, strength) == 1


@by_name
def test_what_is_not_accepted(name):
    prox, *_, hyperparams = OPERATORS[name]
    x = jnp.zeros(3)
    negative = jax.tree.map(lambda s: -s, hyperparams)
    with pytest.raises(ValueError, match=rf"prox_{name}: \w+ is -0.7; accepted: \w+ >= 0"):
        prox(x, negative)
    with pytest.raises(ValueError, match=rf"prox_{name}: scaling is -1; accepted: scaling >= 0"):
        prox(x, hyperparams, -1)
    with pytest.raises(ValueError, match=rf"prox_{name}: x at 'a' is of int32; accepted: real fl"):
        prox({"a": jnp.arange(3)}, hyperparams)
    with pytest.raises(ValueError, match=r"has the shape \(2,\); accepted: what broadcasts to"):
        prox(x, jax.tree.map(lambda _: jnp.ones(2), hyperparams))
    with pytest.raises(ValueError, match=r"accepted: a number, or the structure of x"):
        prox({"a": x}, jax.tree.map(lambda _: {"b": 1.0}, hyperparams))
