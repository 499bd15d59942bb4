"""The explicit hypergradient: its value, its certificate, what it spends and where it starts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
import optim

from .problems import FEATURES, case, diabetes, exact, ridge_loss


@functools.partial(jax.jit, static_argnums=0)
def measured(problem, penalties, w, batch, tolerance, constants):
    """The hypergradient, its info and the estimate of its error, by tight and by default solves."""
    constants = constants._replace(cross_norm=jnp.max(jnp.abs(jnp.exp(penalties) * w)))
    solve = functools.partial(optim.cg, tolerance=tolerance)
    gradient, state, info = bilevel.hypergradient(
        problem, penalties, w, batch=batch, solve=solve, constants=constants
    )
    estimate = functools.partial(bilevel.hypergradient_error, problem, penalties, w, state, batch)
    tight = functools.partial(optim.cg, tolerance=1e-10)
    return gradient, info, estimate(solve=tight), estimate()


def inexact(name, errors, tolerances=(1e-12,), seed=0):
    """For each relative inner error: true gradient and value, and what `measured` gives."""
    problem, batch, penalties, constants = case(name)
    w, value, gradient = exact(problem, penalties, batch)
    away = jnp.asarray(np.random.default_rng(seed).normal(size=FEATURES))
    away = away * jnp.linalg.norm(w) / jnp.linalg.norm(away)
    for error in errors:
        for tolerance in tolerances:
            out = measured(problem, penalties, w + error * away, batch, tolerance, constants)
            yield error, value, gradient, *out


def test_ridge_on_diabetes_has_the_known_validation_loss_and_derivative():
    with jax.enable_x64(True):
        x, y, x_validation, y_validation = map(jnp.asarray, diabetes())
        problem = bilevel.BilevelProblem(
            outer=lambda log_penalty, w, batch: 2 * ridge_loss(w, *batch),
            inner=lambda log_penalty, w, batch: (
                ridge_loss(w, *batch) + jnp.exp(log_penalty) * jnp.sum(w**2) / 2
            ),
        )
        w = jnp.linalg.solve(x.T @ x / len(y) + jnp.exp(1.0) * jnp.eye(10), x.T @ y / len(y))
        batch = bilevel.BilevelBatch((x_validation, y_validation), (x, y))
        gradient, state, info = bilevel.hypergradient(
            problem, 1.0, w, batch=batch, solve=functools.partial(optim.cg, tolerance=1e-13)
        )
        np.testing.assert_allclose(info.value, 28571.122030, rtol=1e-10)
        np.testing.assert_allclose(gradient, 325.76257253, rtol=1e-10)
        assert info.inner_residual < 1e-12 and jnp.isnan(info.bound)
        error = bilevel.hypergradient_error(problem, 1.0, w, state, batch)
        assert abs(error) < 1e-8


@pytest.mark.parametrize("name", ["ridge", "logistic"])
def test_it_is_the_gradient_of_the_decorated_solver(name):
    with jax.enable_x64(True):
        problem, batch, penalties, _ = case(name)
        w, _, gradient = exact(problem, penalties, batch)
        solve = functools.partial(optim.cg, tolerance=1e-13)

        @bilevel.custom_argmin(
            lambda w, penalties: problem.inner(penalties, w, batch.inner), solve=solve
        )
        def solver(init, penalties):
            return w

        decorated = jax.jit(jax.grad(lambda x: problem.outer(x, solver(w, x), batch.outer)))
        ours, _, info = bilevel.hypergradient(problem, penalties, w, batch=batch, solve=solve)
        np.testing.assert_allclose(ours, gradient, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(decorated(penalties), gradient, rtol=1e-9, atol=1e-11)
        assert info.solve.converged


@pytest.mark.parametrize("name", ["ridge", pytest.param("logistic", marks=pytest.mark.slow)])
def test_the_bound_is_above_the_error(name):
    """Of every direction, inner error and tolerance; below rounding there is no true error."""
    errors = (1.0, 0.3, 1e-1, 1e-2, 1e-4, 1e-8, 0.0)
    with jax.enable_x64(True):
        loose = {error: [] for error in errors}
        for seed in range(4):
            cases = inexact(name, errors, (1e-1, 1e-3, 1e-6, 1e-12), seed)
            for size, _, gradient, ours, info, *_ in cases:
                error = jnp.linalg.norm(ours - gradient)
                assert error <= info.bound + 1e-14 * jnp.linalg.norm(gradient)
                loose[size].append(info.bound / jnp.maximum(error, 1e-14))
        medians = {size: float(np.median(ratios)) for size, ratios in loose.items()}
        print(name, "bound / error, medians:", medians)
        assert all(len(ratios) == 16 for ratios in loose.values())
        # It is of the error's order in the inner error, however loose.
        assert all(1 < median < 1e5 for median in medians.values())
        assert medians[1e-4] < 2 * medians[1e-2]


def bilinear(curvature):
    return lambda x, y, batch: curvature * y**2 / 2 - x * y


# At x = 2: outer, inner, y, its true gradient, the adjoint if not the exact one, and the constants.
TERMS = {
    "inner error, outer_x": (
        lambda x, y, batch: x * y,
        lambda x, y, batch: 3 * (y - 1) ** 2,
        1.2,
        1.0,
        None,
        bilevel.Smoothness(6.0, 0.0, 0.0, 0.0, 0.0, outer_x=1.0),
    ),
    "inner error, cross, v": (
        lambda x, y, batch: y,
        lambda x, y, batch: x * y**2 / 2 - y,
        0.7,
        -1 / 4,
        None,
        bilevel.Smoothness(2.0, 0.7, 1.0, 0.0, 0.0),
    ),
    "cross_norm, inner error, outer_y": (
        lambda x, y, batch: 5 * y**2 / 2,
        bilinear(4.0),
        0.8,
        5 / 4 * 2 / 4,
        None,
        bilevel.Smoothness(4.0, 1.0, 0.0, 0.0, 5.0),
    ),
    "cross_norm, inner error, hessian, v": (
        lambda x, y, batch: y,
        lambda x, y, batch: y**2 / 2 + y**3 / 6 - (x - 2) * y,
        0.01,
        1.0,
        None,
        bilevel.Smoothness(0.99, 1.0, 0.0, 1.0, 0.0),
    ),
    "cross_norm, adjoint residual": (
        lambda x, y, batch: y,
        bilinear(4.0),
        0.5,
        1 / 4,
        0.2,
        bilevel.Smoothness(4.0, 1.0, 0.0, 0.0, 0.0),
    ),
    "cross, inner error, adjoint residual": (
        lambda x, y, batch: y,
        lambda x, y, batch: x * (y - 3) ** 2 / 2 - y,
        3.0,
        -1 / 4,
        0.0,
        bilevel.Smoothness(2.0, 0.0, 1.0, 0.0, 0.0),
    ),
    "cross, inner error, inner error, outer_y": (
        lambda x, y, batch: (y - 3) ** 2 / 2,
        lambda x, y, batch: x * (y - 3) ** 2 / 2 - y,
        3.0,
        -1 / 8,
        None,
        bilevel.Smoothness(2.0, 0.0, 1.0, 0.0, 1.0),
    ),
}


@pytest.mark.parametrize("term", TERMS)
def test_each_term_of_the_bound_is_reached_alone(term):
    """All constants are exact. The missing one, cross (inner error)^2 hessian v, is never alone."""
    outer, inner, y, wanted, v, constants = TERMS[term]

    def solve(matvec, b, **options):
        x, info = optim.cg(matvec, b, tolerance=1e-14)
        return (x if v is None else jnp.asarray(v)), info

    with jax.enable_x64(True):
        call = functools.partial(
            bilevel.hypergradient, bilevel.BilevelProblem(outer, inner), solve=solve
        )
        gradient, _, info = jax.jit(functools.partial(call, constants=constants))(2.0, y)
        error = abs(gradient - wanted)
        assert error > 1e-3
        assert error * (1 - 1e-12) <= info.bound <= 1.05 * error
        without = [
            constants._replace(**{name: 0.0})
            for name, value in constants._asdict().items()
            if name in term.split(", ") and value
        ]
        for fewer in without:
            assert jax.jit(functools.partial(call, constants=fewer))(2.0, y)[2].bound < error / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ridge", "logistic"])
def test_the_estimate_is_the_error_to_first_order(name):
    with jax.enable_x64(True):
        for seed in range(3):
            cases = inexact(name, (5e-3, 1e-3, 1e-4, 1e-6), seed=seed)
            for size, _, gradient, ours, _, tight, default in cases:
                error = jnp.linalg.norm(ours - gradient)
                assert jnp.linalg.norm(ours - gradient - tight) < 2 * size * error + 1e-14
                assert abs(jnp.linalg.norm(default) / error - 1) < 2e-2


def test_the_estimate_includes_the_error_of_the_adjoint():
    """At the minimiser the adjoint's is all there is, and the estimate of it exact."""
    with jax.enable_x64(True):
        ((_, _, gradient, ours, _, tight, _),) = inexact("logistic", (0.0,), (1e-1,))
        error = jnp.linalg.norm(ours - gradient)
        assert error > 1e-3 * jnp.linalg.norm(gradient)
        assert jnp.linalg.norm(ours - gradient - tight) < 1e-8 * error


@pytest.mark.parametrize("name", ["ridge", "logistic"])
def test_the_value_is_of_second_order(name):
    """Ten times the inner error, a hundred times that of the value."""
    with jax.enable_x64(True):
        cases = inexact(name, (1e-1, 1e-2))
        errors = [abs(info.value - value) for _, value, _, _, info, *_ in cases]
        assert 50 < errors[0] / errors[1] < 200


def quadratic(eigenvalues):
    """inner = y'A y / 2 - x'y, outer = b'y: the adjoint is A^-1 b, and so is the gradient."""
    random = np.random.default_rng(2)
    q = np.linalg.qr(random.normal(size=(len(eigenvalues),) * 2))[0]
    a, b = (q * eigenvalues) @ q.T, random.normal(size=len(eigenvalues))
    problem = bilevel.BilevelProblem(
        outer=lambda x, y, batch: jnp.asarray(b, y.dtype) @ y,
        inner=lambda x, y, batch: y @ (jnp.asarray(a, y.dtype) @ y) / 2 - x @ y,
    )
    return problem, a, b


@pytest.mark.slow
def test_products_are_counted():
    """As many steps as distinct eigenvalues, one for the solve's residual, one for the last."""
    calls = []

    def counting(matvec, b, **options):
        return optim.cg(lambda v: (calls.append(v), matvec(v))[1], b, **options)

    with jax.enable_x64(True):
        problem, a, b = quadratic(np.repeat([1.0, 2.0, 5.0, 9.0], 5))
        solve = functools.partial(counting, tolerance=1e-9)
        with jax.disable_jit():
            gradient, _, info = bilevel.hypergradient(
                problem, jnp.zeros(20), jnp.zeros(20), solve=solve
            )
        assert info.solve.iterations == 4 and info.products == 6
        assert len(calls) == 5  # without the last, which is not the solve's
        np.testing.assert_allclose(gradient, np.linalg.solve(a, b), rtol=1e-8)


@pytest.mark.slow
def test_an_adjoint_that_did_not_converge_warns_where_that_is_known():
    problem, *_ = quadratic(np.geomspace(1, 100, 20))
    zeros = jnp.zeros(20)
    short = functools.partial(bilevel.hypergradient, solve=functools.partial(optim.cg, max_steps=2))
    with pytest.warns(
        bilevel.NotConvergedWarning, match=r"hypergradient: the adjoint solve stopped at a residual"
    ):
        *_, info = short(problem, zeros, zeros)
    assert not info.solve.converged
    *_, info = jax.jit(functools.partial(short, problem))(zeros, zeros)
    assert not info.solve.converged


def test_a_warm_start_spends_less_and_from_the_solution_nothing():
    with jax.enable_x64(True):
        problem, *_ = quadratic(np.geomspace(1, 100, 20))
        zeros = jnp.zeros(20)
        call = jax.jit(functools.partial(bilevel.hypergradient, problem))
        _, state, cold = call(zeros, zeros, bilevel.init_adjoint(zeros))
        near = bilevel.AdjointState(1.001 * state.v)
        _, _, warm = call(zeros, zeros, near)
        _, again, same = call(zeros, zeros, state)
        assert warm.products < cold.products - 2
        assert (int(same.solve.iterations), int(same.products)) == (0, 2)
        np.testing.assert_array_equal(again.v, state.v)
        _, _, none = bilevel.hypergradient(problem, zeros, zeros)
        assert none.products == cold.products - 1


def test_the_adjoint_residual_is_true_in_float32_at_a_condition_of_1e4():
    problem, a, b = quadratic(np.geomspace(1e-4, 1, 30))
    zeros = jnp.zeros(30, jnp.float32)
    a, b = (np.float64(np.float32(u)) for u in (a, b))
    for tolerance in (1e-2, 1e-5):
        solve = functools.partial(optim.cg, tolerance=tolerance)
        _, state, info = jax.jit(
            lambda x, y, solve=solve: bilevel.hypergradient(problem, x, y, solve=solve)
        )(zeros, zeros)
        v = np.float64(state.v)
        true = np.linalg.norm(b - a @ v)
        assert info.adjoint_residual.dtype == jnp.float32
        # H v is rounded by 6e-8 |H| |v|, on the average over its 30 terms.
        np.testing.assert_allclose(info.adjoint_residual, true, atol=6e-8 * np.linalg.norm(v))


def test_it_does_not_claim_what_a_recursive_residual_claims():
    """Conjugate gradients that never recompute: float32, condition 1e4."""
    problem, a, b = quadratic(np.geomspace(1e-4, 1, 30))

    def recursive(matvec, b, **options):
        def step(carry):
            v, r, p, steps = carry
            q = matvec(p)
            alpha = (r @ r) / (p @ q)
            after = r - alpha * q
            return v + alpha * p, after, after + (after @ after) / (r @ r) * p, steps + 1

        goal = 1e-6 * jnp.linalg.norm(b)
        v, r, _, steps = jax.lax.while_loop(
            lambda carry: (jnp.linalg.norm(carry[1]) > goal) & (carry[3] < 1000),
            step,
            (jnp.zeros_like(b), b, b, jnp.int32(0)),
        )
        claimed = jnp.linalg.norm(r)
        return v, optim.SolveInfo(claimed, steps, steps, claimed <= goal)

    zeros = jnp.zeros(30, jnp.float32)
    _, state, info = jax.jit(lambda x, y: bilevel.hypergradient(problem, x, y, solve=recursive))(
        zeros, zeros
    )
    a, b = (np.float64(np.float32(u)) for u in (a, b))
    true = np.linalg.norm(b - a @ np.float64(state.v))
    assert info.solve.converged and true > 100 * info.solve.residual
    np.testing.assert_allclose(info.adjoint_residual, true, rtol=0.5)


def test_trees_and_a_preconditioner():
    """The Hessian is diagonal, so that its inverse is a preconditioner and one step is enough."""
    scale = {"a": jnp.array([1.0, 50.0]), "b": jnp.array(400.0)}
    problem = bilevel.BilevelProblem(
        outer=lambda x, y, batch: jnp.sum(y["a"]) + 2 * y["b"],
        inner=lambda x, y, batch: sum(
            jnp.sum(s * v**2 / 2) - x[0] * jnp.sum(v)
            for s, v in zip(scale.values(), y.values(), strict=True)
        ),
    )
    y = jax.tree.map(lambda s: 1 / s, scale)
    gradient, state, info = bilevel.hypergradient(
        problem,
        (jnp.float32(1.0),),
        y,
        preconditioner=lambda r: jax.tree.map(jnp.divide, r, scale),
    )
    assert info.solve.iterations == 1 and info.inner_residual < 1e-5
    np.testing.assert_allclose(gradient[0], 1 + 1 / 50 + 2 / 400, rtol=1e-6)
    assert jax.tree.structure(state.v) == jax.tree.structure(y)


def test_the_state_goes_through_a_scan():
    with jax.enable_x64(True):
        problem, a, b = quadratic(np.geomspace(1, 100, 20))

        def step(carry, _):
            x, state = carry
            y = jnp.linalg.solve(a, x)
            gradient, state, info = bilevel.hypergradient(problem, x, y, state)
            return (x - 0.1 * gradient, state), info.products

        start = (jnp.ones(20), bilevel.init_adjoint(jnp.ones(20)))
        (x, _), products = jax.jit(lambda carry: jax.lax.scan(step, carry, None, 3))(start)
        assert (products[1:] == 2).all() and products[0] > 10
        np.testing.assert_allclose(x, 1 - 0.3 * np.linalg.solve(a, b), rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((1j, 1.0), {}, r"hypergradient: x is of complex64; accepted: real floats\."),
        ((1.0, 1j), {}, r"hypergradient: y is of complex64; accepted: real floats\."),
        (
            (1.0, 1.0),
            {"constants": bilevel.Smoothness(0.0, 1.0, 1.0, 1.0, 1.0)},
            r"hypergradient: mu is 0\.0; accepted: mu > 0\.",
        ),
        (
            (1.0, 1.0),
            {"constants": bilevel.Smoothness(1.0, 1.0, 1.0, -1.0, 1.0)},
            r"hypergradient: hessian is -1\.0; accepted: hessian >= 0\.",
        ),
    ],
)
def test_errors_name_the_argument_the_value_and_what_is_accepted(arguments, options, message):
    problem = bilevel.BilevelProblem(lambda x, y, batch: y, lambda x, y, batch: (y - x) ** 2)
    with pytest.raises(ValueError, match=message):
        bilevel.hypergradient(problem, *arguments, **options)
