"""Quadratic programs with equalities: the linear system by NumPy, jaxopt, and derivatives."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest

import bilevel
import optim
from bilevel.inner_solvers.equality_qp import equality_qp
from tests.bilevel.derivatives import assert_derivatives

solve = jax.jit(equality_qp)


def problem(n=6, m=3, seed=0):
    random = np.random.default_rng(seed)
    root = random.normal(size=(n, n))
    return root @ root.T, random.normal(size=n), random.normal(size=(m, n)), random.normal(size=m)


def by_numpy(q, c, a, b):
    m, n = a.shape
    matrix = np.block([[q, a.T], [a, np.zeros((m, m))]])
    return np.split(np.linalg.solve(matrix, np.append(-c, b)), [n])


def test_both_solutions_are_those_of_the_linear_system_and_of_jaxopt():
    q, c, a, b = problem()
    with jax.enable_x64(True):
        (x, y), info = solve(q, c, a, b)
        theirs = jaxopt.EqualityConstrainedQP(tol=1e-10).run(
            params_obj=(jnp.asarray(q), jnp.asarray(c)), params_eq=(jnp.asarray(a), jnp.asarray(b))
        )
    for found, wanted, other in zip((x, y), by_numpy(q, c, a, b), theirs.params[:2], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-9)
        np.testing.assert_allclose(found, other, atol=1e-6)
    x, y = np.asarray(x), np.asarray(y)
    errors = np.append(q @ x + c + a.T @ y, a @ x - b)
    assert info.converged and float(info.residual) < 1e-14
    np.testing.assert_allclose(
        float(info.residual) * np.linalg.norm(np.append(c, b)), np.linalg.norm(errors), atol=1e-13
    )


def test_q_need_be_positive_on_the_null_space_alone():
    q, c, a, b = np.diag([-1.0, 1.0]), np.zeros(2), np.array([[1.0, 0.0]]), np.array([3.0])
    (x, y), _ = solve(q, c, a, b)
    np.testing.assert_allclose(x, [3, 0], atol=1e-6)
    np.testing.assert_allclose(y, [3], rtol=1e-6)


@pytest.mark.slow
def test_derivatives_by_all_four_of_primal_and_dual():
    """Entries of Q are moved one apart from its mirror image, which the symmetric part halves."""
    assert_derivatives(lambda *p: solve(*p)[0], *problem(4, 2), within=1e-8)


@pytest.mark.slow
def test_functions_of_trees_have_the_solution_and_derivatives_of_arrays():
    q, c, a, b = problem()
    with jax.enable_x64(True):

        def by_functions(c, b):
            def times_q(x):
                out = q @ jnp.append(x["u"], x["v"])
                return {"u": out[:5], "v": out[5]}

            (x, y), info = equality_qp(
                times_q,
                {"u": c[:5], "v": c[5]},
                lambda x: [a @ jnp.append(x["u"], x["v"])],
                [b],
                tolerance=1e-13,
            )
            return (jnp.append(x["u"], x["v"]), y[0]), info

        c, b = jnp.asarray(c), jnp.asarray(b)
        (x, y), info = jax.jit(by_functions)(c, b)
        (wanted_x, wanted_y), _ = solve(q, c, a, b)
        assert info.converged
        np.testing.assert_allclose(x, wanted_x, atol=1e-9)
        np.testing.assert_allclose(y, wanted_y, atol=1e-9)
        found = jax.jit(jax.jacrev(lambda c, b: by_functions(c, b)[0][0], (0, 1)))(c, b)
        wanted = jax.jit(jax.jacfwd(lambda c, b: solve(q, c, a, b)[0][0], (0, 1)))(c, b)
        for u, v in zip(found, wanted, strict=True):
            np.testing.assert_allclose(u, v, atol=1e-9)


def test_dependent_rows_are_solved_by_minres_with_the_least_multipliers():
    q, c, a, b = problem(5, 2)
    a, b = np.vstack([a, a[:1]]), np.append(b, b[0])
    with jax.enable_x64(True):
        with pytest.warns(bilevel.NotConvergedWarning, match="equality_qp: stopped at a residual"):
            _, info = equality_qp(q, c, np.zeros_like(a), b)
        assert not info.converged
        (x, y), info = equality_qp(q, c, a, b, solver=optim.minres, tolerance=1e-12)
    assert info.converged
    wanted_x, wanted_y = by_numpy(q, c, a[:2], b[:2])
    np.testing.assert_allclose(x, wanted_x, atol=1e-9)
    np.testing.assert_allclose(y, [wanted_y[0] / 2, wanted_y[1], wanted_y[0] / 2], atol=1e-9)


def test_a_batch_is_its_members():
    problems = [problem(seed=seed) for seed in range(3)]
    batch = tuple(jnp.asarray(np.stack(x), jnp.float32) for x in zip(*problems, strict=True))
    (x, y), info = jax.jit(jax.vmap(equality_qp))(*batch)
    assert x.dtype == jnp.float32 and info.converged.shape == (3,) and info.converged.all()
    for k, one in enumerate(problems):
        wanted = by_numpy(*one)
        np.testing.assert_allclose(x[k], wanted[0], rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(y[k], wanted[1], rtol=2e-3, atol=1e-3)


def test_what_is_not_accepted():
    q, c, a, b = jnp.eye(2), jnp.ones(2), jnp.ones((1, 2)), jnp.ones(1)
    with pytest.raises(ValueError, match=r"q has the shape \(3, 3\); accepted: \(2, 2"):
        equality_qp(jnp.eye(3), c, a, b)
    with pytest.raises(ValueError, match=r"a has the shape \(2,\); accepted: \(1, 2\)"):
        equality_qp(q, c, a[0], b)
    with pytest.raises(ValueError, match=r"equality_qp: c is of int32; accepted: real floats"):
        equality_qp(q, jnp.arange(2), a, b)
    with pytest.raises(ValueError, match=r"equality_qp: q gives"):
        equality_qp(lambda v: (v, v), c, a, b)
