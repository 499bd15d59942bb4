"""Runs are those of a loop in NumPy, approximations what they are called, the judge is fair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.figures import gradient_normalized_smoothness as target

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def data():
    return target.measure(quick=True)


@pytest.fixture(scope="module")
def problems():
    with jax.enable_x64(True):
        return target.problems(quick=True)


def descended(problem, method, steps):
    """Residuals of a loop with dense matrices, as the papers' algorithms have it."""
    value, gradient = (jax.jit(f) for f in (problem.loss, jax.grad(problem.loss)))
    size = len(problem.start)
    euclidean = problem.metric is None or method == target.GRADIENT
    b = np.eye(size) if euclidean else np.asarray(jax.vmap(problem.metric.product)(np.eye(size)))
    x, radius, m, residuals = problem.start, 1.0, 1.0, []
    for _ in range(steps):
        residuals.append(float(value(x)) - problem.least)
        g = np.asarray(gradient(x))
        norm = np.sqrt(g @ np.linalg.solve(b, g))
        for _ in range(40):
            if method == target.EXACT:
                shift = norm / (radius + 1e-8)
            else:
                shift = m * norm if method == target.SUPER else m
            newton = method in (target.EXACT, target.SUPER)
            h = np.asarray(problem.hessian(x)) if newton else np.zeros((size, size))
            d = -np.linalg.solve(h + shift * b, g)
            there = np.asarray(gradient(x + d))
            dual = there @ np.linalg.solve(b, there)
            fall = float(value(x)) - float(value(x + d))
            accepted = {
                target.EXACT: fall >= dual / (8 * shift),
                target.SUPER: -(there @ d) >= dual / (4 * shift),
            }.get(method, -fall <= g @ d + shift / 2 * d @ b @ d)
            factor = 4 if method == target.SUPER else 2
            radius *= 2 if accepted else 0.5
            m = max(m / factor, 1e-5) if accepted else m * factor
            if accepted:
                x = x + d
                break
    return np.array(residuals)


@pytest.mark.parametrize(
    "method", [target.EXACT, target.SUPER, target.GAUSS_NEWTON, target.GRADIENT]
)
@pytest.mark.parametrize("name", [target.EQUATIONS, target.LOG_SUM_EXP])
def test_runs_are_those_of_a_loop_in_numpy(data, problems, name, method):
    mine = target.of(data, name, method)
    steps = min(8, mine.sum())
    expected = descended(problems[name], method, steps)
    np.testing.assert_allclose(data["residual"][mine][:steps], expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", target.CALLED)
def test_hessians_and_approximations_are_what_they_are_called(problems, name):
    problem = problems[name]
    x = jnp.asarray(problem.start) + 0.1
    gradient, exact, hessian, approximation = jax.jit(
        lambda x: (
            jax.grad(problem.loss)(x),
            jax.hessian(problem.loss)(x),
            problem.hessian(x),
            problem.approximation(x),
        )
    )(x)
    np.testing.assert_allclose(hessian, exact, rtol=1e-9, atol=1e-9)
    if name == target.LOG_SUM_EXP:
        expected = exact + jnp.outer(gradient, gradient)
    elif name == target.EQUATIONS:
        # |u|^4 / 4 of linear u: |u|^2 A'A + 2 A'u u'A, whose last term is kept.
        scale, vector = approximation
        approximation, square = scale * jnp.outer(vector, vector), jnp.sqrt(4 * problem.loss(x))
        expected = exact - square * (
            problem.metric.product(jnp.eye(x.size)) - 1e-8 * jnp.eye(x.size)
        )
    else:
        power = 5 if name == target.ROSENBROCK else 4
        norm = (power * problem.loss(x)) ** (1 / power)
        residuals = ROSENBROCK if name == target.ROSENBROCK else CHEBYSHEV
        u, jacobian = residuals(x), jax.jacobian(residuals)(x)
        np.testing.assert_allclose(norm, jnp.linalg.norm(u), rtol=1e-12)
        inner = norm ** (power - 2) * jnp.eye(u.size)
        inner += (power - 2) * norm ** (power - 4) * jnp.outer(u, u)
        expected = jacobian.T @ inner @ jacobian
    np.testing.assert_allclose(approximation, expected, rtol=1e-7, atol=1e-7)


def ROSENBROCK(x):
    return jnp.stack([x[0] - 1, 10 * (x[0] ** 2 - x[1])])


def CHEBYSHEV(x):
    return jnp.concatenate([(x[:1] - 1) / 2, 2 * x[:-1] ** 2 - 1 - x[1:]])


def test_the_optima_are_those_that_residuals_are_taken_from(problems):
    ones = {target.ROSENBROCK: 2, target.CHEBYSHEV: 20}
    for name, size in ones.items():
        assert problems[name].loss(jnp.ones(size)) == problems[name].least == 0
    problem = problems[target.LOG_SUM_EXP]
    zero = jnp.zeros(len(problem.start))
    assert jnp.abs(jax.grad(problem.loss)(zero)).max() < 1e-14
    assert problem.loss(zero) == pytest.approx(problem.least, abs=1e-14)


def table(**counts):
    """Runs on log-sum-exp that reach the residual at the step given, or never for None."""
    rows = []
    for method, count in counts.items():
        name = getattr(target, method)
        for step in range(5):
            reached = count is not None and step >= count
            rows.append((target.LOG_SUM_EXP, name, step, 1e-9 if reached else 1.0, 2.0, step))
    columns = ("problem", "method", "step", "residual", "radius", "tries")
    return {
        name: np.array(column)
        for name, column in zip(columns, zip(*rows, strict=True), strict=True)
    }


def test_steps_are_counted_to_the_first_residual_that_is_small():
    data = table(EXACT=3, GRADIENT=None)
    assert target.steps(data, target.LOG_SUM_EXP, target.EXACT) == 3
    assert target.steps(data, target.LOG_SUM_EXP, target.GRADIENT) == np.inf


def test_orders_and_shares_by_hand():
    never = float("inf")
    assert target.in_order("", {"a": 1.0, "b": 2.0, "c": never}).holds
    assert not target.in_order("", {"a": 2.0, "b": 2.0}).holds
    assert not target.in_order("", {"a": 1.0, "b": never, "c": never}).holds
    assert not target.in_order("", {"a": never, "b": 3.0}).holds
    assert target.at_most("", {"a": 1.0, "b": 10.0}, 0.1).holds
    assert target.at_most("", {"a": 1.0, "b": never}, 0.1).holds
    assert not target.at_most("", {"a": 1.1, "b": 10.0}, 0.1).holds
    assert not target.at_most("", {"a": never, "b": never}, 0.1).holds
    assert target.in_order("", {"a": 1.0, "b": never}).measured == "a 1, b never"


def test_a_radius_that_shrinks_does_not_hold():
    data = table(EXACT=3, APPROXIMATE=4)
    assert target.radius_stays(data).holds
    small = data["radius"].copy()
    small[(data["method"] == target.EXACT) & (data["step"] == 1)] = 0.5
    part = target.radius_stays(data | {"radius": small})
    assert not part.holds and "least of exact Hessian 0.5" in part.measured


def test_every_part_of_the_quick_trial_can_be_judged_and_drawn(data):
    parts = target.judge(data)
    assert len(parts) == 10
    spoiled = data | {
        "residual": np.where(data["method"] == target.GRADIENT, data["residual"], 1.0)
    }
    assert not any(part.holds for part in target.judge(spoiled) if "radius" not in part.claim)
    assert len(target.plot(data).axes) == 4
