"""Minimisation in a box: SciPy's L-BFGS-B, jaxopt, and derivatives of the free variables."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest
import scipy.optimize

import bilevel
import optim
from bilevel.inner_solvers.l_bfgs_b import l_bfgs_b
from tests.bilevel.derivatives import assert_derivatives


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def quadratic(size, seed=0):
    random = np.random.default_rng(seed)
    root = random.normal(size=(size, size))
    return root @ root.T / size + 0.1 * np.eye(size), 2 * random.normal(size=size)


@pytest.mark.parametrize(
    ("lower", "upper"), [(-np.inf, np.inf), (-np.inf, 0.5), (0.2, 0.8), (1.5, 3.0), (-0.5, np.inf)]
)
def test_rosenbrock_in_boxes_is_scipys(lower, upper):
    with jax.enable_x64(True):
        start = np.clip(np.array([-1.2, 1.0, -1.2, 1.0]), lower, upper)

        @jax.jit
        def solve(start):
            return l_bfgs_b(rosenbrock, start, lower, upper, tolerance=1e-9)

        x, info = solve(start)
        call = jax.jit(jax.value_and_grad(rosenbrock))
        wanted = scipy.optimize.minimize(
            lambda x: [np.asarray(v) for v in call(x)],
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(lower, upper)] * 4,
            options={"gtol": 1e-10, "ftol": 0, "maxiter": 1000},
        )
        assert info.converged and info.evaluations >= info.iterations
        assert (x >= lower).all() and (x <= upper).all()
        np.testing.assert_allclose(x, wanted.x, atol=1e-7)
        residual = np.linalg.norm(x - np.clip(x - call(x)[1], lower, upper))
        np.testing.assert_allclose(info.residual, residual, atol=1e-13)


@pytest.mark.slow
def test_a_quadratic_program_meets_its_conditions_and_is_jaxopts():
    q, c = quadratic(30)
    with jax.enable_x64(True):

        def objective(x):
            return x @ q @ x / 2 + jnp.asarray(c) @ x

        start = jnp.zeros(30)
        x, info = jax.jit(lambda x: l_bfgs_b(objective, x, 0.0, 1.0, tolerance=1e-10))(start)
        theirs = jaxopt.LBFGSB(objective, tol=1e-6, maxiter=500)
        wanted, _ = theirs.run(start, bounds=(jnp.zeros(30), jnp.ones(30)))
        x = np.asarray(x)
    g = q @ x + c
    assert bool(info.converged) and (x == 0).sum() > 3 and (x == 1).sum() > 3
    np.testing.assert_allclose(g[(x > 0) & (x < 1)], 0, atol=1e-9)
    assert (g[x == 0] >= -1e-9).all() and (g[x == 1] <= 1e-9).all()
    np.testing.assert_allclose(x, wanted, atol=1e-5)


@pytest.mark.slow
def test_derivatives_by_the_objective_and_the_bounds():
    q, c = quadratic(5, seed=5)
    c = c / 2

    @jax.jit
    def solution(c, lower, upper):
        def objective(x):
            v = jnp.append(x["u"], x["v"])
            return v @ q @ v / 2 + c @ v + jnp.sum(v**4) / 10

        return l_bfgs_b(
            objective,
            {"u": jnp.zeros(4), "v": jnp.zeros(())},
            {"u": lower[:4], "v": lower[4]},
            {"u": upper, "v": jnp.inf},
            tolerance=1e-12,
            solve=optim.dense_solve,
        )[0]

    lower, upper = np.linspace(-0.5, -0.4, 5), np.linspace(0.4, 0.5, 4)
    with jax.enable_x64(True):
        x = np.asarray(solution(c, lower, upper)["u"])
    assert (x == lower[:4]).any() and (x == upper).any() and ((x > lower[:4]) & (x < upper)).any()
    assert_derivatives(solution, c, lower, upper, within=1e-7)


def test_vmap_float32_and_bfloat16():
    centres = jnp.array([[0.5, 2.0], [-1.0, 0.25]])

    def solve(centre):
        return l_bfgs_b(lambda x: jnp.sum((x - centre) ** 2), jnp.zeros_like(centre), 0.0, 1.0)

    x, info = jax.jit(jax.vmap(solve))(centres)
    assert x.dtype == jnp.float32 and info.converged.all()
    np.testing.assert_allclose(x, [[0.5, 1], [0, 0.25]], rtol=1e-6)
    x, info = jax.jit(solve)(centres[0].astype(jnp.bfloat16))
    assert x.dtype == jnp.bfloat16 and info.residual.dtype == jnp.float32
    np.testing.assert_array_equal(x, [0.5, 1])


def test_not_converged_is_told():
    with pytest.warns(bilevel.NotConvergedWarning, match="l_bfgs_b: stopped at a residual of"):
        _, info = l_bfgs_b(rosenbrock, jnp.array([-1.2, 1.0]), max_steps=2)
    assert not info.converged and info.iterations == 2


def test_what_is_not_accepted():
    with pytest.raises(ValueError, match=r"l_bfgs_b: history is 0; accepted: history >= 1"):
        l_bfgs_b(jnp.sum, jnp.ones(2), history=0)
    with pytest.raises(ValueError, match=r"l_bfgs_b: upper is PyTreeDef.*accepted: a number, or"):
        l_bfgs_b(jnp.sum, jnp.ones(2), 0.0, {"u": 1.0})
    with pytest.raises(ValueError, match=r"l_bfgs_b: init is of int32; accepted: real floats"):
        l_bfgs_b(jnp.sum, jnp.arange(2))
