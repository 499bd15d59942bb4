"""What inner solvers share, on Newton's method for the square root of a closed-over number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel.differentiation import implicit
from bilevel.inner_solvers import solving


def square_root(x, init=1.0, *, tolerance=1e-12, max_steps=50, **derivative):
    def loop(init):
        def body(carry):
            y, steps = carry
            return (y + x / y) / 2, steps + 1

        def goes_on(carry):
            y, steps = carry
            return (jnp.abs(y * y - x) > tolerance) & (steps < max_steps)

        y, steps = jax.lax.while_loop(goes_on, body, (init, 0))
        residual = jnp.abs(y * y - x)
        return y, solving.InnerInfo(residual, steps, 2 * steps, residual <= tolerance)

    return solving.answer(
        "square_root",
        lambda y: y * y - x,
        init,
        loop,
        tolerance=tolerance,
        max_steps=max_steps,
        **derivative,
    )


def first(x):
    return square_root(x)[0]


@pytest.mark.slow
def test_derivatives_by_what_is_closed_over():
    """1 / (2 y) and -1 / (4 y^3) at y = 3, in each mode."""
    with jax.enable_x64(True):
        assert first(9.0) == 3.0
        for derivative in (jax.grad, jax.jacfwd, jax.jacrev):
            np.testing.assert_allclose(jax.jit(derivative(first))(9.0), 1 / 6, rtol=1e-12)
        for first_mode in (jax.jacfwd, jax.jacrev):
            for second_mode in (jax.jacfwd, jax.jacrev):
                found = jax.jit(second_mode(first_mode(first)))(9.0)
                np.testing.assert_allclose(found, -1 / 108, rtol=1e-12)


@pytest.mark.slow
def test_vmap_reports_each_member():
    with jax.enable_x64(True):
        y, info = jax.jit(jax.vmap(square_root))(jnp.array([1.0, 9.0, 1e4]))
        slopes = jax.vmap(jax.grad(first))(jnp.array([1.0, 9.0, 1e4]))
    np.testing.assert_allclose(y, [1, 3, 100])
    np.testing.assert_allclose(slopes, 0.5 / np.array([1, 3, 100]))
    steps = np.asarray(info.iterations)
    assert steps[0] == 0 < steps[1] < steps[2]
    assert np.asarray(info.converged).all()


def test_the_info_has_no_derivative():
    with jax.enable_x64(True):
        slope = jax.grad(lambda x: square_root(x)[1].residual)(2.0)
        assert slope == 0


def test_stopping_early_is_reported_and_warned_of():
    with pytest.warns(bilevel.NotConvergedWarning, match="square_root: stopped at a residual of"):
        _, info = square_root(9.0, max_steps=1)
    assert not info.converged and info.residual == 16 and info.iterations == 1
    _, info = jax.jit(functools.partial(square_root, max_steps=1))(9.0)
    assert not info.converged


def test_integers_and_keys_are_constants_too():
    key = jax.random.key(0)
    with jax.enable_x64(True):

        def doubled(x, times):
            return implicit.without_derivative(lambda y: (y * x * times, times), 1.0)

        out, times = jax.jit(doubled)(3.0, 2)
        assert out == 6 and times == 2
        assert jax.grad(lambda x: doubled(x, 2)[0])(3.0) == 0
    drawn = implicit.without_derivative(jax.random.normal, key)
    assert drawn == jax.random.normal(jax.random.key(0))


def test_what_is_not_accepted():
    with pytest.raises(ValueError, match="square_root: tolerance is -1; accepted: tolerance >= 0"):
        square_root(9.0, tolerance=-1)
    with pytest.raises(ValueError, match="square_root: max_steps is 0; accepted: max_steps >= 1"):
        square_root(9.0, max_steps=0)
    with pytest.raises(ValueError, match="square_root: init is of int32; accepted: real floats"):
        square_root(9.0, 1)
