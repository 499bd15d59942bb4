"""The toy's loss is the one described, paths are those of the rules, and the judge can say no."""

import jax
import numpy as np
import pytest

from experiments.figures import sophia_toy as toy
from experiments.figures.descents import descend, steps_until

pytestmark = pytest.mark.slow  # like the target's trial


@pytest.fixture(scope="module")
def data():
    return toy.measure(quick=True)


def test_the_loss_has_its_minimum_and_its_maximum_where_the_text_says():
    with jax.enable_x64(True):
        for x in (0.0, 1.0):
            position = np.array([x, 4.0])
            slope = jax.grad(lambda p: toy.loss(1.0, p))(position)
            np.testing.assert_allclose(slope, 0, atol=1e-12)
        curvature = jax.hessian(lambda p: toy.loss(0.1, p))
        np.testing.assert_allclose(curvature(np.array([1.0, 4.0])), np.diag([68.8, 0.1]))
        signs = [curvature(np.array([x, 0.0]))[0, 0] > 0 for x in (-0.38, -0.36, 0.59, 0.6)]
        assert signs == [True, False, False, True]


def test_gradient_descent_along_the_flat_coordinate_is_geometric(data):
    rate = toy.value(data, "rate", "gradient descent")
    y = toy.path(data, "gradient descent")[:, 1]
    np.testing.assert_allclose(4 - y, 4 * (1 - rate) ** np.arange(len(y)), rtol=1e-6)


def test_sophia_steps_by_its_rate_where_it_is_clipped(data):
    path = toy.path(data, "Sophia")
    rate = toy.value(data, "rate", "Sophia")
    assert np.abs(np.diff(path, axis=0)).max() <= rate * (1 + 1e-9)
    np.testing.assert_allclose(path[1], np.array(toy.START) + rate)  # both are clipped


def test_times_are_from_when_it_stays():
    reached = np.array([[0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 0]], bool)
    np.testing.assert_array_equal(steps_until(reached), [3, 0, 4, np.inf])


def test_runs_start_where_they_are_told():
    paths = descend(toy.METHODS["Adam"], lambda p: (p**2).sum(), np.eye(2), np.array([0.5]), 3)
    assert paths.shape == (2, 1, 4, 2)
    np.testing.assert_array_equal(paths[:, 0, 0], np.eye(2))


def test_the_judge_says_no_when_two_methods_change_places(data):
    names = {"Sophia": "gradient descent", "gradient descent": "Sophia"}
    swapped = {**data, "method": np.array([names.get(n, n) for n in data["method"]])}
    assert [part.holds for part in toy.judge(data)].count(False) == 0
    held = [part.holds for part in toy.judge(swapped)]
    assert not any(held[i] for i in (0, 4, 5))
