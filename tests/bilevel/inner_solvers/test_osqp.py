"""Quadratic programs: KKT certificates, jaxopt, infeasible ones, and derivatives."""

import functools

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest
import scipy.optimize

import bilevel
from bilevel.inner_solvers.osqp import osqp
from tests.bilevel.derivatives import assert_derivatives

solve = jax.jit(functools.partial(osqp, tolerance=1e-9))


def program(seed=0, n=8, m=14, rank=None, scale=1.0):
    """Feasible, with equalities, one-sided rows and rows without bounds; q of the rank."""
    random = np.random.default_rng(seed)
    root = random.normal(size=(n, n if rank is None else rank)) / n**0.5
    a = scale ** np.linspace(-1, 1, m)[:, None] * random.normal(size=(m, n))
    at = a @ random.normal(size=n)
    room = np.abs(at) + scale ** np.linspace(-1, 1, m) * 0.5
    lower, upper = at - room * random.uniform(size=m), at + room * random.uniform(size=m)
    lower[:2] = upper[:2] = at[:2]
    lower[2:4], upper[4:6] = -np.inf, np.inf
    lower[6], upper[6] = -np.inf, np.inf
    return root @ root.T, 3 * random.normal(size=n), a, lower, upper


def assert_optimal(given, x, y, within):
    q, c, a, lower, upper = given
    x, y = np.asarray(x), np.asarray(y)
    row = a @ x
    np.testing.assert_allclose(q @ x + c + y @ a, 0, atol=within)
    assert (row >= lower - within).all() and (row <= upper + within).all()
    assert (np.minimum(y, 0) * np.where(y < 0, row - lower, 0) <= within).all()
    np.testing.assert_allclose(np.where(y < 0, row - lower, 0) * (lower < upper), 0, atol=within)
    np.testing.assert_allclose(np.where(y > 0, row - upper, 0) * (lower < upper), 0, atol=within)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rank", [None, 3])
def test_multipliers_prove_the_minimiser_to_rounding(seed, rank):
    given = program(seed, rank=rank)
    with jax.enable_x64(True):
        (x, y), info = solve(*given)
    assert info.converged and info.iterations % 50 == 0
    assert_optimal(given, x, y, 1e-8)


def test_rows_of_different_sizes_are_equilibrated():
    given = program(1, scale=1e3)
    with jax.enable_x64(True):
        (x, y), info = solve(*given)
    assert info.converged
    assert_optimal(given, x, y, 1e-5)


@pytest.mark.slow
def test_jaxopts_box_program_has_their_solution():
    given = program(2, n=5, m=9)
    with jax.enable_x64(True):
        q, c, a, lower, upper = map(jnp.asarray, given)
        (x, _), _ = solve(*given)
        theirs = jaxopt.BoxOSQP(tol=1e-7, eq_qp_solve="lu").run(
            params_obj=(q, c), params_eq=a, params_ineq=(lower, upper)
        )
    np.testing.assert_allclose(x, theirs.params.primal[0], atol=1e-4)


def test_the_simplex_by_its_projection():
    point = np.array([0.9, 0.4, -1.0])
    a = np.vstack([np.eye(3), np.ones(3)])
    with jax.enable_x64(True):
        (x, _), _ = solve(np.eye(3), -point, a, np.append(np.zeros(3), 1), np.append(np.ones(3), 1))
    np.testing.assert_allclose(x, [0.75, 0.25, 0], atol=1e-12)


def test_a_linear_program_is_scipys():
    _, c, a, lower, upper = program(3, n=4, m=9)
    rows = np.vstack([a, np.eye(4)])
    lower, upper = np.append(lower, np.full(4, -5.0)), np.append(upper, np.full(4, 5.0))
    with jax.enable_x64(True):
        (x, _), info = solve(np.zeros((4, 4)), c, rows, lower, upper)
    finite_upper, finite_lower = np.isfinite(upper), np.isfinite(lower)
    wanted = scipy.optimize.linprog(
        c,
        np.vstack([rows[finite_upper], -rows[finite_lower]]),
        np.append(upper[finite_upper], -lower[finite_lower]),
        bounds=(None, None),
    )
    assert info.converged and wanted.success
    np.testing.assert_allclose(c @ np.asarray(x), wanted.fun, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("twice", [False, True])
def test_derivatives_by_all_of_the_program(twice):
    """Both bounds of an equality move as one; the derivative is shared between them."""
    q, c, a, lower, upper = program(3, n=4, m=8)
    lower[2:7], upper[2:7] = np.maximum(lower[2:7], -50), np.minimum(upper[2:7], 50)

    @jax.jit
    def solution(q, c, a, lower, room):
        return osqp(q, c, a, lower, lower + room, tolerance=1e-11)[0]

    room = upper - lower
    random = np.random.default_rng(0)
    moved = [random.normal(size=np.shape(v)) for v in (q, c, a, lower, room)]
    moved[-1] = moved[-1] * (room > 0)
    with jax.enable_x64(True):
        (_, y), info = osqp(q, c, a, lower, upper, tolerance=1e-11)
        assert info.converged and 3 <= (np.asarray(y) != 0).sum() <= 4
    assert_derivatives(solution, q, c, a, lower, room, moved=tuple(moved), within=1e-7, twice=twice)


@pytest.mark.slow
def test_dependent_active_rows_leave_the_derivative_of_the_minimiser():
    """x = u where x <= u is said twice: y is not unique, and no system has an inverse."""
    a = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

    def minimiser(u):
        upper = jnp.stack([u, u, jnp.full_like(u, 9.0)])
        return osqp(jnp.eye(2), -jnp.array([3.0, 2.0]), a, -jnp.inf, upper)[0][0]

    np.testing.assert_allclose(minimiser(1.0), [1, 2], rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.jacobian(minimiser))(1.0), [1, 0], atol=1e-4)


@pytest.mark.slow
def test_a_batch_is_its_members_with_one_factorisation_for_all():
    programs = [program(seed) for seed in range(4)]
    batch = tuple(jnp.asarray(np.stack(v), jnp.float32) for v in zip(*programs))
    (x, y), info = jax.jit(jax.vmap(osqp))(*batch)
    assert x.dtype == jnp.float32 and info.converged.all()
    for k, given in enumerate(programs):
        assert_optimal(given, x[k], y[k], 2e-3)


def test_a_warm_start_at_the_solution_takes_no_step():
    given = program()
    with jax.enable_x64(True):
        start, _ = solve(*given)
        again, info = solve(*given, init=start)
    assert info.iterations == 0 and info.evaluations == 0 and info.converged
    np.testing.assert_array_equal(again[0], start[0])


@pytest.mark.slow
def test_a_certificate_proves_that_there_is_no_solution():
    """x_1 <= -1 and x_1 >= 1; and min -x_2 with x_2 >= 0."""
    a = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    lower, upper = np.array([-np.inf, 1.0, 0.0]), np.array([-1.0, np.inf, np.inf])
    with jax.enable_x64(True):
        with pytest.warns(bilevel.NotConvergedWarning, match="osqp: stopped at a residual"):
            _, info = osqp(np.eye(2), np.ones(2), a, lower, upper)
        v = np.asarray(info.infeasible)
        assert not info.converged and info.iterations < 4000 and not info.unbounded.any()
        np.testing.assert_allclose(v @ a, 0, atol=1e-5)
        assert v[2] <= 0 and -v[0] + v[1] < 0 and v[0] > 0 > v[1]
        with pytest.warns(bilevel.NotConvergedWarning):
            _, info = osqp(
                np.diag([1.0, 0.0]), np.array([0.0, -1.0]), np.eye(2), np.array([-1.0, 0.0]), np.inf
            )
        d = np.asarray(info.unbounded)
        assert not info.converged and not info.infeasible.any()
        np.testing.assert_allclose(d / np.abs(d).max(), [0, 1], atol=1e-5)


def test_what_is_not_accepted():
    q, c, a = jnp.eye(2), jnp.ones(2), jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"osqp: q has the shape \(3, 3\); accepted: \(2, 2\)"):
        osqp(jnp.eye(3), c, a, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"osqp: lower has the shape \(2,\); accepted: \(3,\)"):
        osqp(q, c, a, jnp.zeros(2), 1.0)
    with pytest.raises(ValueError, match=r"osqp: a is of int32; accepted: real floats"):
        osqp(q, c, jnp.ones((3, 2), int), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"osqp: relaxation is 2.5; accepted: 0 < relaxation < 2"):
        osqp(q, c, a, 0.0, 1.0, relaxation=2.5)
    with pytest.raises(ValueError, match=r"osqp: rho is 0; accepted: rho > 0"):
        osqp(q, c, a, 0.0, 1.0, rho=0)
