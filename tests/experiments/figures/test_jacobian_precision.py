"""Jacobians and errors are those of the closed forms, and the judge can say no."""

import jax
import numpy as np
import pytest

from experiments.figures import jacobian_precision as target

pytestmark = pytest.mark.slow  # like the target's trial


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
        return {(penalty, theta): problem for penalty, theta, problem in target.problems()}


def by_hand(problem, steps):
    """Errors of a loop in NumPy: J_(t+1) = (1 - eta A) J_t - eta B(x_t)."""
    inputs, outputs, theta = map(np.asarray, problem)
    size = inputs.shape[1]
    a = inputs.T @ inputs + np.diag(np.broadcast_to(theta, size))
    rate, least = 1 / np.linalg.norm(a, 2), 1 / np.linalg.norm(np.linalg.inv(a), 2)

    def b(x):
        return np.diag(x) if theta.ndim else x[:, None]

    best = np.linalg.solve(a, inputs.T @ outputs)
    true = -np.linalg.solve(a, b(best))
    x, through, rows = np.zeros(size), np.zeros_like(true), []
    for _ in range(steps):
        distance = np.linalg.norm(x - best)
        estimate = -np.linalg.solve(a, b(x))
        errors = [np.linalg.norm(j - true, 2) for j in (estimate, through)]
        rows.append((distance / np.linalg.norm(best), *errors, distance / least))
        x, through = x - rate * (a @ (x - best)), through - rate * (a @ through + b(x))
    return dict(zip(("iterate", "implicit", "unrolled", "bound"), np.transpose(rows), strict=True))


@pytest.mark.parametrize("theta", target.THETAS)
@pytest.mark.parametrize("penalty", target.PENALTIES)
def test_errors_are_those_of_a_loop_in_numpy(data, problems, penalty, theta):
    rows = target.of(data, penalty, theta)
    expected = by_hand(problems[penalty, theta], len(rows["step"]))
    np.testing.assert_array_equal(rows["step"], np.arange(len(rows["step"])))
    for name, values in expected.items():
        # x* and the errors' own cancellation: 1e-9 of x* is left, at a precision of 1e-16.
        np.testing.assert_allclose(rows[name], values, rtol=1e-5)


@pytest.mark.parametrize("penalty", target.PENALTIES)
def test_the_true_jacobian_is_the_derivative_of_the_closed_form(problems, penalty):
    problem = problems[penalty, 1.0]
    derivative = jax.jacfwd(lambda theta: problem._replace(theta=theta).minimiser())
    expected = target.columns(derivative(problem.theta))
    np.testing.assert_allclose(problem.jacobian(problem.minimiser()), expected, rtol=1e-9)


def test_runs_end_where_they_are_meant_to(data):
    for rows in target.each(data).values():
        last = rows["step"][-1]
        assert 0 < last < target.STEPS
        assert target.STOP <= rows["iterate"][-1] < 10 * target.STOP


def test_slope_and_ratio_by_hand():
    iterate = np.array([1.0, 1e-3, 1e-6, 1e-7])
    rows = {"iterate": iterate, "implicit": 3 * iterate**2, "unrolled": 3 * iterate**2 * 7}
    assert target.slope(rows) == pytest.approx(2)
    assert target.ratio(rows) == pytest.approx(7)


def test_the_judge_says_no_when_the_two_change_places(data):
    swapped = data | {"implicit": data["unrolled"], "unrolled": data["implicit"]}
    assert all(part.holds for part in target.judge(data))
    assert [part.holds for part in target.judge(swapped)] == [False, True, False, False]


def test_the_judge_says_no_to_a_bound_that_is_far(data):
    far = data | {"bound": 3 * data["bound"]}
    assert [part.holds for part in target.judge(far)] == [True, False, True, True]
