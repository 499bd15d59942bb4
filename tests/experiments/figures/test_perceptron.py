"""Runs are those of a loop in numpy, the bound is of the data, and the judge can say no."""

import jax
import numpy as np
import pytest

from experiments.figures import perceptron as target

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data():
    return target.measure(quick=False)


def by_hand(points, direction, rate, most=3000):
    """Losses before each step until all points are on their side, by the margins' weights."""
    theta, losses = np.zeros(points.shape[1]), []
    for t in range(most):
        margins = points @ theta
        losses.append(np.mean(np.logaddexp(0, -margins)))
        if margins.min() > 0:
            break
        weights = direction(margins, t)
        theta = theta + rate * weights @ points
    return np.array(losses)


def logistic(margins, t):
    return 1 / (1 + np.exp(np.minimum(margins, 700))) / len(margins)


def normalized_logistic(margins, t):
    weights = logistic(margins, t)
    return weights / weights.sum()


def batch(margins, t):
    return (np.full(len(margins), 0.5) if t == 0 else margins <= 0) / len(margins)


def normalized_batch(margins, t):
    weights = batch(margins, t)
    return weights / weights.sum()


@pytest.mark.parametrize("problem", [target.WORST, target.DIGITS])
@pytest.mark.parametrize(
    ("method", "direction", "rate"),
    [
        (target.PLAIN, logistic, 100.0),
        (target.NORMALIZED, normalized_logistic, 1.0),
        (target.BATCH, batch, np.inf),
        (target.NORMALIZED_BATCH, normalized_batch, np.inf),
    ],
)
def test_runs_are_those_of_a_loop_in_numpy(data, problem, method, direction, rate):
    points = target.problems()[problem]
    expected = by_hand(points, direction, 1.0 if np.isinf(rate) else rate)
    run = target.of(data, problem, method, rate)
    assert run["iteration"][-1] == len(expected) - 1
    np.testing.assert_allclose(run["loss"], expected[run["iteration"]], rtol=1e-6)


def test_the_papers_table_needs_its_number_of_points():
    """With n = 500 some of the five numbers differ, so the table can fail."""
    with jax.enable_x64(True):
        rows = list(target.rows(target.WORST, target.worst_case(500), 400))
    columns = (np.array(column) for column in zip(*rows, strict=True))
    table = dict(zip(target.COLUMNS, columns, strict=True))
    found = {run: target.iterations(table, target.WORST, *run) for run in target.PAPERS}
    assert found[(target.NORMALIZED, 1.0)] == 15
    assert found[(target.NORMALIZED, 0.1)] != 157


def test_constants_of_the_bound_are_those_of_the_data():
    """R is the longest point and mu the widest margin of any unit vector."""
    points = target.worst_case(10)
    angles = np.linspace(-np.pi, np.pi, 100_001)
    margins = np.min(points @ np.stack([np.cos(angles), np.sin(angles)]), axis=0)
    squares, margin = np.max(np.sum(points**2, axis=1)), margins.max()
    expected = squares / margin**2 + 2 * np.log(19) / (0.5 * margin**2)
    assert target.bound(0.5, 10) == pytest.approx(expected, rel=1e-6)


def test_digits_are_two_classes_with_a_constant():
    points = target.digits()
    assert points.shape == (357, 65)
    assert np.sum(points[:, -1] == 1) == 183 and np.sum(points[:, -1] == -1) == 174


def without_last(data, problem, method, rate):
    """The data as if that run had not separated the classes."""
    mine = (data["problem"] == problem) & (data["method"] == method)
    mine &= np.isclose(data["rate"], rate)
    keep = np.ones(len(mine), bool)
    keep[np.flatnonzero(mine)[-1]] = False
    return {name: column[keep] for name, column in data.items()}


@pytest.mark.parametrize(
    ("run", "fails"),
    [
        ((target.WORST, target.PLAIN, 100.0), 0),
        ((target.WORST, target.NORMALIZED, 0.1), 1),
        ((target.TWO, target.PLAIN, 1000.0), 2),
        ((target.DIGITS, target.NORMALIZED, 1e6), 3),
        ((target.DIGITS, target.PLAIN, 10.0), 4),
    ],
)
def test_each_part_can_fail(data, run, fails):
    assert target.judge(data)[fails].holds
    assert not target.judge(without_last(data, *run))[fails].holds


def test_step_by_step_comparison_on_digits_can_hold_and_fail(data):
    """It fails at one step size; with that run taken from LR+GD it would hold."""
    assert not target.judge(data)[-1].holds
    assert target.judge(without_last(data, target.DIGITS, target.PLAIN, 1e4))[-1].holds


def test_iterations_and_curves_are_drawn(data):
    assert len(target.plot(data).axes) == 4
