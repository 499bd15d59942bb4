"""Solvers end at the dual's minimiser, gradients are the true one, and the judge can say no."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.figures import svm_runtime as target

pytestmark = pytest.mark.slow  # like the target's trial

STEPS = {target.GRADIENT: 1000, target.MIRROR: 3000, target.BLOCK: 300}


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def data():
    with jax.enable_x64(True):
        return target.classification(100)


@pytest.fixture(scope="module")
def theta(data):
    return jnp.exp(target.exponent_of(data))


@pytest.fixture(scope="module")
def solutions(data, theta):
    init = jnp.full(data.labels.shape, 0.2)
    return {
        name: np.asarray(jax.jit(solver.solve, static_argnums=3)(init, theta, data, STEPS[name]))
        for name, solver in target.SOLVERS.items()
    }


def by_hand(x, data, theta):
    """Gradient of the dual, and the outer loss."""
    samples, labels, validation, targets, _ = map(np.asarray, data)
    weights = samples.T @ (labels - x) / theta
    return labels - samples @ weights, np.sum((validation @ weights - targets) ** 2) / 2


@pytest.mark.parametrize("solver", target.SOLVERS)
def test_solvers_end_at_the_minimiser(solutions, data, theta, solver):
    x = solutions[solver]
    slope, value = by_hand(x, data, theta)
    np.testing.assert_allclose(target.outer_loss(x, theta, data), value, rtol=1e-10)
    np.testing.assert_allclose(jax.grad(target.dual)(jnp.asarray(x), theta, data), slope, atol=1e-9)
    np.testing.assert_allclose(x.sum(1), 1)
    assert x.min() >= 0
    # Frank-Wolfe's gap bounds how far the dual is above its least value.
    gap = np.sum(slope * x) - slope.min(1).sum()
    assert -1e-9 < gap < 1e-3 * abs(target.dual(jnp.asarray(x), theta, data))
    np.testing.assert_allclose(x, solutions[target.BLOCK], atol=1e-3)


def test_some_constraints_are_active_and_others_are_not(solutions):
    share = np.mean(solutions[target.BLOCK] == 0)
    assert 0.1 < share < 0.5


def test_theta_is_twice_the_mean_square(data, theta):
    assert float(theta) == pytest.approx(2 * np.mean(np.sum(np.square(data.samples), 1)))


def test_a_sweep_is_that_of_the_library(data, theta):
    init = jnp.full(data.labels.shape, 0.2)
    sweep = jax.jit(target.sweep)
    x = sweep(sweep(sweep(init, theta, data), theta, data), theta, data)
    expected = jax.jit(target.solve_by_block, static_argnums=3)(init, theta, data, 3)
    np.testing.assert_allclose(x, expected, atol=1e-12)


@pytest.mark.parametrize(
    "derivative",
    [target.GRADIENT, target.UNROLLED, pytest.param(target.MIRROR, marks=pytest.mark.slow)],
)
def test_gradients_are_those_of_differences(data, derivative):
    exponent, h = target.exponent_of(data), 1e-5
    slope = target.hypergradient(exponent, data, target.BLOCK, derivative, 100)
    loss = jax.jit(lambda e: target.loss(e, data, target.BLOCK, target.UNROLLED, 100))
    differences = (loss(exponent + h) - loss(exponent - h)) / (2 * h)
    # Steps of 1e-5 leave 1e-10 of third derivatives, and rounding of the losses 1e-9.
    np.testing.assert_allclose(slope, differences, rtol=1e-6)


def table(**changes):
    """What holds, by hand, with some numbers changed."""
    numbers = {"error": 1e-6, "unrolled": 1e-6, "kept": 0.5} | changes
    rows = []
    for features in (10, 100):
        for solver, name in target.pairs():
            labels = solver, name, features
            other = name == target.UNROLLED
            kept = 1.0 if other or features == 10 else numbers["kept"]
            error = numbers["unrolled" if other else "error"]
            rows.append((target.ERROR, *labels, 0, error))
            rows.append((target.BYTES, *labels, 0, 2.0 if other else kept))
            ratio = 1.0 if other else 1 / numbers.get(f"{solver}, {name}", 2.0)
            for number, drift in enumerate((1.0, 10.0, 3.0)):
                rows.append((target.SECONDS, *labels, number, drift * ratio))
    columns = (np.array(column) for column in zip(*rows, strict=True))
    return dict(zip(target.COLUMNS, columns, strict=True))


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({}, None),
        ({"error": 1e-2}, 0),
        ({"unrolled": 1e-2}, 0),
        ({f"{target.GRADIENT}, {target.GRADIENT}": 0.9}, 1),
        ({f"{target.MIRROR}, {target.MIRROR}": 0.9}, 2),
        ({f"{target.BLOCK}, {target.MIRROR}": 0.9}, 3),
        ({f"{target.BLOCK}, {target.GRADIENT}": 0.9}, 3),
        ({"kept": 3.0}, 4),
    ],
)
def test_each_part_can_fail(changes, fails):
    parts = target.judge(table(**changes))
    assert [part.holds for part in parts] == [number != fails for number in range(5)]


def test_drift_cancels_within_rounds():
    found = target.slower(table(), target.MIRROR, target.MIRROR)
    np.testing.assert_allclose(found, 2.0)


def test_time_and_memory_of_three_solvers_are_drawn():
    assert len(target.plot(table()).axes) == 6
