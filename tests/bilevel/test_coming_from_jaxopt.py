"""Solvers of jaxopt, optimistix, optax and SciPy, each differentiated by our rule.

The minimiser of |A y - b|^2 / 2 + exp(penalties) . y^2 / 2, a lasso and a quadratic program are
known in closed form. The solvers' own derivatives are turned off where they can be.
"""

import functools

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import optimistix
import pytest
import scipy.optimize

import bilevel
import optim

RANDOM = np.random.default_rng(0)
A, B = RANDOM.normal(size=(6, 3)), RANDOM.normal(size=6)
PENALTIES = np.array([-0.5, 0.3, 0.1])
DIRECTION = np.array([0.4, -1.0, 0.7])
tight_cg = functools.partial(optim.cg, tolerance=1e-13)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def residuals(y, penalties):
    return jnp.concatenate([A @ y - B, jnp.exp(penalties / 2) * y])


def objective(y, penalties):
    return jnp.sum(residuals(y, penalties) ** 2) / 2


def closed_form(penalties):
    return jnp.linalg.solve(A.T @ A + jnp.diag(jnp.exp(penalties)), A.T @ B)


def by_jaxopt(solver, **options):
    def solve(init, penalties):
        return solver(objective, implicit_diff=False, **options).run(init, penalties).params

    return solve


def by_optax(init, penalties):
    tx = optax.sgd(0.05, momentum=0.8, nesterov=True)
    gradient = jax.grad(objective)

    def far(carry):
        return jnp.linalg.norm(gradient(carry[0], penalties)) > 1e-11

    def step(carry):
        y, state = carry
        updates, state = tx.update(gradient(y, penalties), state, y)
        return optax.apply_updates(y, updates), state

    return jax.lax.while_loop(far, step, (init, tx.init(init)))[0]


def by_scipy(init, penalties):
    """On NumPy's arrays, as nothing of JAX's tracing can pass."""
    exact = np.exp(np.asarray(penalties))

    def value_and_grad(y):
        error = A @ y - B
        return (error @ error + exact @ y**2) / 2, A.T @ error + exact * y

    options = {"gtol": 1e-11, "ftol": 0, "maxiter": 500}
    return scipy.optimize.minimize(
        value_and_grad, np.asarray(init), jac=True, method="L-BFGS-B", options=options
    ).x


def by_scipy_in_a_callback(init, penalties):
    return jax.pure_callback(by_scipy, init, init, penalties, vmap_method="sequential")


def by_optimistix(function, solver):
    def solve(init, penalties):
        return getattr(optimistix, function)(
            {"least_squares": residuals, "minimise": objective}.get(function, jax.grad(objective)),
            solver(rtol=1e-12, atol=1e-12),
            init,
            args=penalties,
        ).value

    return solve


SOLVERS = {
    "jaxopt.LBFGS": by_jaxopt(jaxopt.LBFGS, tol=1e-11, maxiter=200),
    "jaxopt.GradientDescent": by_jaxopt(
        jaxopt.GradientDescent, stepsize=0.05, acceleration=False, tol=1e-11, maxiter=2000
    ),
    "optimistix.BFGS": by_optimistix("minimise", optimistix.BFGS),
    "optimistix.LevenbergMarquardt": by_optimistix("least_squares", optimistix.LevenbergMarquardt),
    "optimistix.Newton": by_optimistix("root_find", optimistix.Newton),
    "optax.sgd": by_optax,
    "scipy.optimize.minimize in a callback": by_scipy_in_a_callback,
}


def loss_of(solution):
    return lambda penalties: jnp.sum(jnp.sin(solution(penalties)))


def ours(solver):
    decorated = bilevel.custom_argmin(objective, solve=tight_cg)(solver)
    return lambda penalties: decorated(jnp.zeros(3), penalties)


def check(solver, compile=True):
    """Value, gradient, forward derivative and Hessian times a direction, in one program."""

    def derivatives(solution):
        def run(point, direction):
            return jax.jvp(jax.value_and_grad(loss_of(solution)), (point,), (direction,))

        return jax.jit(run) if compile else run

    point, direction = jnp.asarray(PENALTIES), jnp.asarray(DIRECTION)
    found = jax.tree.leaves(derivatives(ours(solver))(point, direction))
    wanted = jax.tree.leaves(derivatives(closed_form)(point, direction))
    for u, v in zip(found, wanted, strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", SOLVERS)
def test_derivatives_around_every_solver(name):
    check(SOLVERS[name])


@pytest.mark.slow
def test_scipy_without_tracing():
    check(lambda init, penalties: jnp.asarray(by_scipy(init, penalties)), compile=False)


@pytest.mark.slow
def test_vmap_around_the_callback():
    points = jnp.stack([jnp.asarray(PENALTIES), jnp.asarray(PENALTIES) + 1])
    out = jax.jit(jax.vmap(jax.grad(loss_of(ours(by_scipy_in_a_callback)))))(points)
    wanted = jax.vmap(jax.grad(loss_of(closed_form)))(points)
    np.testing.assert_allclose(out, wanted, rtol=1e-8)


def smooth(y, _):
    return jnp.sum((A @ y - B) ** 2) / 2


@pytest.mark.slow
def test_proximal_gradient_on_a_lasso():
    """On the support S, A_S' (A_S y - b) + strength sign(y_S) = 0, and elsewhere y is zero."""
    strength = 0.8

    def shrink(y, strength, scaling=1.0):
        return bilevel.prox_lasso(y, strength, scaling)

    def step(y, strength):
        return shrink(y - 0.05 * jax.grad(smooth)(y, None), strength, 0.05)

    # With a line search it gains no more than half of the digits.
    options = {"stepsize": 0.05, "acceleration": False, "tol": 1e-13, "maxiter": 5000}
    solver = jaxopt.ProximalGradient(smooth, shrink, implicit_diff=False, **options)

    @bilevel.custom_fixed_point(step, solve=optim.dense_solve)
    def lasso(init, strength):
        return solver.run(init, strength, None).params

    y, slope = jax.jvp(lambda s: lasso(jnp.zeros(3), s), (strength,), (1.0,))
    kept = np.flatnonzero(y)
    assert 0 < len(kept) < 3
    part, signs = A[:, kept], np.sign(y[kept])
    np.testing.assert_allclose(
        y[kept], np.linalg.solve(part.T @ part, part.T @ B - strength * signs), rtol=1e-9
    )
    wanted = np.zeros(3)
    wanted[kept] = -np.linalg.solve(part.T @ part, signs)
    np.testing.assert_allclose(slope, wanted, rtol=1e-9)
    pulled = jax.jacrev(lambda s: lasso(jnp.zeros(3), s))(strength)
    np.testing.assert_allclose(pulled, wanted, rtol=1e-9)


@pytest.mark.slow
def test_osqp_on_a_quadratic_program():
    """Of its minimiser and multiplier the derivative is that of the system of optimality."""
    q, c, e, d = A.T @ A, np.array([1.0, -2.0, 0.5]), np.ones((1, 3)), np.array([0.7])
    osqp = jaxopt.OSQP(tol=1e-10, maxiter=4000)

    def conditions(pair, c, d):
        y, multiplier = pair
        return q @ y + c + e.T @ multiplier, e @ y - d

    @bilevel.custom_root(conditions, symmetric=True, solve=optim.dense_solve)
    def program(init, c, d):
        del init
        found = osqp.run(params_obj=(jnp.asarray(q), c), params_eq=(jnp.asarray(e), d)).params
        return found.primal, found.dual_eq

    def exact(c, d):
        system = jnp.block([[q, e.T], [e, jnp.zeros((1, 1))]])
        solution = jnp.linalg.solve(system, jnp.concatenate([-c, d]))
        return solution[:3], solution[3:]

    init = (jnp.zeros(3), jnp.zeros(1))
    found = jax.jit(jax.jacfwd(functools.partial(program, init), argnums=(0, 1)))(c, d)
    wanted = jax.jacfwd(exact, argnums=(0, 1))(jnp.asarray(c), jnp.asarray(d))
    for u, v in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(program(init, c, d)[0], exact(c, d)[0], rtol=1e-6)
