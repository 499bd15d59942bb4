"""Anderson acceleration: linear algebra it must equal, jaxopt's problems, and derivatives."""

import functools

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest

import bilevel
import optim
from bilevel.inner_solvers.anderson import anderson
from tests.bilevel.derivatives import assert_derivatives


def affine(size, radius=0.9, seed=0):
    """A matrix that is not symmetric, of a spectral radius, and an offset."""
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(size, size))
    matrix *= radius / np.abs(np.linalg.eigvals(matrix)).max()
    assert np.abs(matrix - matrix.T).max() > 0.1
    return matrix, random.normal(size=size)


@functools.partial(jax.jit, static_argnames=("history", "tolerance", "max_steps"))
def solve_affine(matrix, offset, history=5, tolerance=1e-10, max_steps=200, mixing=1.0):
    return anderson(
        lambda y: matrix @ y + offset,
        jnp.zeros_like(offset),
        history=history,
        mixing=mixing,
        tolerance=tolerance,
        max_steps=max_steps,
        solve=optim.dense_solve,
    )


def test_with_a_full_history_an_affine_map_is_solved_in_as_many_steps_as_unknowns_and_two():
    """As GMRES does it, and where the map is no contraction too.

    One step more takes fn of it, and one mends what the regularization spoilt.
    """
    for radius in (0.9, 3.0):
        matrix, offset = affine(6, radius)
        with jax.enable_x64(True):
            y, info = solve_affine(matrix, offset, history=6)
        y = np.asarray(y)
        assert info.converged and info.iterations <= 8
        assert info.evaluations == info.iterations + 1
        np.testing.assert_allclose(y, np.linalg.solve(np.eye(6) - matrix, offset), rtol=1e-8)
        np.testing.assert_allclose(
            info.residual,
            np.linalg.norm(matrix @ y + offset - y),
            atol=1e-13,
        )


def test_the_first_steps_by_hand():
    """With mixing b: y_1 = b r_0, and then the step from the least residual of the two."""
    matrix, offset = affine(3)
    b = 0.5
    with jax.enable_x64(True):
        found, _ = solve_affine(matrix, offset, max_steps=2, mixing=b)
    y = [np.zeros(3), b * offset]
    r = [matrix @ v + offset - v for v in y]
    c = r[1] @ (r[1] - r[0]) / np.sum((r[1] - r[0]) ** 2)
    wanted = y[1] + b * r[1] - c * (y[1] - y[0] + b * (r[1] - r[0]))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.slow
def test_jaxopts_affine_and_sine_problems_in_no_more_steps_than_theirs():
    matrix, offset = affine(20, 0.95)
    with jax.enable_x64(True):
        start = jnp.zeros(20)
        problems = [
            lambda y: matrix @ y + offset,
            lambda y: jnp.sin(0.9 * matrix @ y) + jnp.asarray(offset),
        ]
        for fn in problems:
            y, info = jax.jit(lambda y, fn=fn: anderson(fn, y, tolerance=1e-8, max_steps=500))(
                start
            )
            theirs = jaxopt.AndersonAcceleration(fn, tol=1e-8, maxiter=500, ridge=1e-10)
            wanted, state = theirs.run(start)
            assert info.converged
            np.testing.assert_allclose(y, wanted, atol=1e-6)
            assert info.iterations <= 1.2 * state.iter_num


@pytest.mark.slow
def test_derivatives_of_a_fixed_point_with_a_jacobian_that_is_not_symmetric():
    matrix, offset = affine(4, 0.5)

    @jax.jit
    def solution(matrix, offset):
        def fn(y):
            return {
                "u": jnp.tanh(matrix @ jnp.append(y["u"], y["v"]) + offset)[:3],
                "v": jnp.tanh(matrix @ jnp.append(y["u"], y["v"]) + offset)[3],
            }

        init = {"u": jnp.zeros(3), "v": jnp.zeros(())}
        return anderson(fn, init, tolerance=1e-13, solve=optim.dense_solve)[0]

    assert_derivatives(solution, matrix, offset, within=1e-8)


def test_vmap_gives_each_member_its_own_steps():
    pairs = [affine(4, radius) for radius in (0.1, 0.9)]
    matrices, offsets = (jnp.asarray(np.stack(x), jnp.float32) for x in zip(*pairs, strict=True))
    solve = functools.partial(solve_affine, history=2, tolerance=1e-4)
    y, info = jax.vmap(solve)(matrices, offsets)
    for k in range(2):
        alone, its = solve(matrices[k], offsets[k])
        assert info.iterations[k] == its.iterations and info.converged[k]
        np.testing.assert_allclose(y[k], alone, rtol=1e-4)
    assert info.iterations[0] < info.iterations[1]


def test_dtypes_are_kept():
    matrix, offset = affine(4, 0.5)
    y, info = solve_affine(jnp.float32(matrix), jnp.float32(offset), tolerance=1e-5)
    assert y.dtype == jnp.float32 and info.converged
    y, info = anderson(lambda y: y / 2 + 1, jnp.zeros(3, jnp.bfloat16), tolerance=1e-2)
    assert y.dtype == jnp.bfloat16 and info.converged and info.residual.dtype == jnp.float32
    np.testing.assert_array_equal(y, 2)


def test_not_converged_is_told():
    matrix, offset = affine(4, 0.9)
    with pytest.warns(bilevel.NotConvergedWarning, match="anderson: stopped at a residual of"):
        _, info = anderson(lambda y: matrix @ y + offset, jnp.zeros(4), max_steps=2)
    assert not info.converged and info.iterations == 2
    with pytest.warns(bilevel.NotConvergedWarning):
        _, info = anderson(lambda y: y / 0, jnp.zeros(1))
    assert not info.converged and info.iterations == 0


def test_what_is_not_accepted():
    def fn(y):
        return y / 2

    with pytest.raises(ValueError, match=r"anderson: history is 0; accepted: history >= 1"):
        anderson(fn, jnp.ones(2), history=0)
    with pytest.raises(ValueError, match=r"anderson: mixing is 0; accepted: mixing > 0"):
        anderson(fn, jnp.ones(2), mixing=0)
    with pytest.raises(ValueError, match=r"regularization is -1; accepted: regularization >= 0"):
        anderson(fn, jnp.ones(2), regularization=-1)
    with pytest.raises(ValueError, match=r"anderson: fn gives float32\[3\]; accepted: a float of"):
        anderson(lambda y: jnp.ones(3), jnp.ones(2))
