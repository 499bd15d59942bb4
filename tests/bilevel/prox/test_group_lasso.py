"""The group lasso: its optimality condition, and zero, where the formula divides by zero."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest

from bilevel.prox.group_lasso import prox_group_lasso
from tests.bilevel.derivatives import assert_derivatives

X = np.array([3.0, -1.0, 0.5])


def test_a_long_group_meets_its_condition_and_a_short_one_is_zero():
    """y - x + t y / |y| = 0, or y = 0 and |x| <= t."""
    with jax.enable_x64(True):
        y = np.asarray(prox_group_lasso(jnp.asarray(X), 0.8, 2.0))
        np.testing.assert_allclose(y - X + 1.6 * y / np.linalg.norm(y), 0, atol=1e-14)
        assert (prox_group_lasso(jnp.asarray(X), 3.3) == 0).all()


def test_value_is_jaxopts_and_a_tree_is_one_group():
    x = jnp.asarray(X, jnp.float32)
    wanted = jaxopt.prox.prox_group_lasso(x, 0.8, 2.0)
    np.testing.assert_allclose(prox_group_lasso(x, 0.8, 2.0), wanted, rtol=1e-6)
    found = prox_group_lasso({"a": x[:1], "b": x[1:]}, 0.8, 2.0)
    np.testing.assert_allclose(jnp.concatenate([found["a"], found["b"]]), wanted, rtol=1e-6)


@pytest.mark.parametrize("strength", [0.8, 5.0], ids=["long", "short"])
def test_derivatives(strength):
    assert_derivatives(prox_group_lasso, X, strength, 1.1)


def test_derivative_at_zero():
    zero = jnp.zeros(3)
    assert (jax.jacobian(prox_group_lasso)(zero, 1.0) == 0).all()
    assert (jax.jacobian(prox_group_lasso)(zero, 0.0) == jnp.eye(3)).all()


def test_squares_do_not_overflow_or_vanish():
    for size in (1e30, 1e-30):
        x = jnp.array([3.0, 4.0]) * size
        np.testing.assert_allclose(prox_group_lasso(x, size), 0.8 * x, rtol=1e-6)


def test_vmap_takes_rows_as_groups():
    rows = jnp.array([[3.0, 4.0], [0.3, 0.4]])
    found = jax.vmap(prox_group_lasso)(rows)
    np.testing.assert_allclose(found, [[2.4, 3.2], [0, 0]], rtol=1e-6)


def test_what_is_not_accepted():
    with pytest.raises(ValueError, match=r"prox_group_lasso: l2reg is -1.0; accepted: l2reg >= 0"):
        prox_group_lasso(jnp.ones(2), -1.0)
    with pytest.raises(ValueError, match=r"l2reg has the shape \(2,\); accepted: a number"):
        prox_group_lasso(jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"x is of int32; accepted: real floats"):
        prox_group_lasso(jnp.arange(2))
