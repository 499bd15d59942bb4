"""Broyden's method: steps by hand, jaxopt's and SciPy's problems, and derivatives."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest
import scipy.optimize

import bilevel
import optim
from bilevel.inner_solvers.broyden import broyden
from tests.bilevel.derivatives import assert_derivatives


def tridiagonal(y):
    """Broyden's own problem; its Jacobian is not symmetric."""
    left, right = jnp.append(0.0, y[:-1]), jnp.append(y[1:], 0.0)
    return (3 - 2 * y) * y - left - 2 * right + 1


@pytest.mark.slow
def test_steps_are_those_of_the_dense_method():
    """H = I / 5, then the update of the inverse, with steps of 1, which this start allows."""
    size, y, h = 5, np.full(5, -0.4), 0.2 * np.eye(5)
    with jax.enable_x64(True):
        for steps in range(1, 5):
            s = -h @ np.asarray(tridiagonal(y))
            z = np.asarray(tridiagonal(y + s)) - np.asarray(tridiagonal(y))
            y = y + s
            h = h + np.outer(s - h @ z, s @ h) / (s @ h @ z)
            with pytest.warns(bilevel.NotConvergedWarning):
                found, info = broyden(
                    tridiagonal, jnp.full(size, -0.4), scale=0.2, max_steps=steps, tolerance=0
                )
            assert info.evaluations == steps + 1
            np.testing.assert_allclose(found, y, rtol=1e-10)


def wood(y):
    """The gradient of Wood's function, whose minimum is at ones."""
    a, b, c, d = y
    return jnp.stack(
        [
            400 * a * (a * a - b) + 2 * (a - 1),
            -200 * (a * a - b) + 20.2 * (b - 1) + 19.8 * (d - 1),
            360 * c * (c * c - d) + 2 * (c - 1),
            -180 * (c * c - d) + 20.2 * (d - 1) + 19.8 * (b - 1),
        ]
    )


def rosenbrock(y):
    return jnp.stack([10 * (y[1] - y[0] ** 2), 1 - y[0]])


def powell(y):
    return jnp.stack([1e4 * y[0] * y[1] - 1, jnp.exp(-y[0]) + jnp.exp(-y[1]) - 1.0001])


def trigonometric(y):
    size = y.size
    return size - jnp.cos(y).sum() + jnp.arange(1, size + 1) * (1 - jnp.cos(y)) - jnp.sin(y)


@pytest.mark.parametrize(
    ("fn", "init"),
    [
        (tridiagonal, np.full(50, -1.0)),
        (rosenbrock, np.array([-1.2, 1.0])),
        (powell, np.array([0.0, 1.0])),
        (wood, np.array([-3.0, -1.0, -3.0, -1.0])),
        (trigonometric, np.full(10, 0.1)),
    ],
)
def test_the_usual_hard_problems_converge_from_their_usual_starts(fn, init):
    """To roots of scipy.optimize.root, started from what was found."""
    with jax.enable_x64(True):
        y, info = jax.jit(lambda init: broyden(fn, init, tolerance=1e-9))(init)
        assert info.converged and np.linalg.norm(fn(y)) <= 1e-9
        np.testing.assert_allclose(info.residual, np.linalg.norm(fn(y)), atol=1e-14)
        assert info.evaluations > info.iterations
        root = scipy.optimize.root(jax.jit(fn), np.asarray(y), tol=1e-14)
        np.testing.assert_allclose(y, root.x, atol=1e-5)


def sine(size, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(size, size)) / (2 * size**0.5), random.normal(size=size)


@pytest.mark.slow
def test_jaxopts_problem_has_their_root():
    matrix, offset = sine(12)
    with jax.enable_x64(True):

        def fn(y):
            return y - jnp.sin(matrix @ y) - offset

        y, info = broyden(fn, jnp.zeros(12), tolerance=1e-9)
        wanted, _ = jaxopt.Broyden(fn, tol=1e-9).run(jnp.zeros(12))
    assert info.converged
    np.testing.assert_allclose(y, wanted, atol=1e-8)


@pytest.mark.slow
def test_derivatives_of_a_root_with_a_jacobian_that_is_not_symmetric():
    matrix, offset = sine(4)

    @jax.jit
    def solution(matrix, offset):
        def fn(y):
            out = jnp.sin(matrix @ jnp.append(y["u"], y["v"])) + offset
            return {"u": y["u"] - out[:3], "v": y["v"] - out[3]}

        init = {"u": jnp.zeros(3), "v": jnp.zeros(())}
        return broyden(fn, init, tolerance=1e-13, solve=optim.dense_solve)[0]

    assert_derivatives(solution, matrix, offset, within=1e-8)


def test_vmap_gives_each_member_its_own_steps_and_root_with_either_sign_of_the_jacobian():
    slopes = jnp.array([1.0, -1.0, 50.0])

    def solve(slope):
        return broyden(lambda y: slope * (y + y**3 / 3 - 1), jnp.zeros(()))

    y, info = jax.jit(jax.vmap(solve))(slopes)
    assert info.converged.all()
    np.testing.assert_allclose(y, 0.817732, rtol=1e-4)  # y + y^3 / 3 = 1
    assert info.iterations[0] == info.iterations[1]


def test_dtypes_are_kept():
    y, info = broyden(lambda y: 2 * y - 4, jnp.zeros(3, jnp.bfloat16), tolerance=1e-2)
    assert y.dtype == jnp.bfloat16 and info.residual.dtype == jnp.float32
    np.testing.assert_array_equal(y, 2)


def test_not_converged_is_told():
    with pytest.warns(bilevel.NotConvergedWarning, match="broyden: stopped at a residual of"):
        _, info = broyden(lambda y: y**2 + 1, jnp.ones(1), max_steps=5)
    assert not info.converged and info.iterations == 5
    with pytest.warns(bilevel.NotConvergedWarning):
        _, info = broyden(lambda y: y / 0, jnp.ones(1))
    assert not info.converged and info.iterations == 0


def test_what_is_not_accepted():
    with pytest.raises(ValueError, match=r"broyden: memory is 0; accepted: memory >= 1"):
        broyden(lambda y: y, jnp.ones(2), memory=0)
    with pytest.raises(ValueError, match=r"broyden: fn gives float32\[3\]; accepted: a float of"):
        broyden(lambda y: jnp.ones(3), jnp.ones(2))
    with pytest.raises(ValueError, match=r"broyden: init is of int32; accepted: real floats"):
        broyden(lambda y: y, jnp.arange(2))
