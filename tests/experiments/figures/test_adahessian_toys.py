"""The functions have the minima that the table measures from, and the judge can say no."""

import jax
import numpy as np
import pytest

from experiments.figures import adahessian_toys as toys

pytestmark = pytest.mark.slow  # like the target's trial


@pytest.fixture(scope="module")
def data():
    return toys.measure(quick=True)


def test_minima_are_where_distances_are_measured_from():
    for plane in toys.PLANES.values():
        minimum = np.array(plane.minimum)
        assert plane.loss(minimum) == pytest.approx(0, abs=1e-5)
        np.testing.assert_allclose(jax.grad(plane.loss)(minimum), 0, atol=1e-5)
    assert toys.ripples(np.zeros(1)) == 0
    assert toys.ripples(np.array([0.525])) == pytest.approx(0.525**2 + 0.0525, rel=1e-5)


def test_results_are_of_the_last_positions(data):
    for name, plane in toys.PLANES.items():
        for method in toys.METHODS:
            mine = toys.chosen(data, name, method)
            end = np.array([data["x"][mine][-1], data["y"][mine][-1]])
            distance = np.linalg.norm(end - np.array(plane.minimum))
            assert toys.result(data, name, method) == pytest.approx(distance)
            assert (data["x"][mine][0], data["y"][mine][0]) == plane.start
    for method in toys.ON_RIPPLES:
        mine = toys.chosen(data, "ripples", method)
        share = np.mean(np.abs(data["y"][mine]) <= toys.NEAR)
        assert toys.result(data, "ripples", method) == pytest.approx(share)


def test_the_judge_says_no_when_two_methods_change_places(data):
    names = {"AdaHessian": "gradient descent", "gradient descent": "AdaHessian"}
    averaged = {"b2 = 0": "b2 = 0.999", "b2 = 0.999": "b2 = 0"}
    swapped = {
        **data,
        "method": np.array(
            [
                (averaged if function == "ripples" else names).get(method, method)
                for function, method in zip(data["function"], data["method"], strict=True)
            ]
        ),
    }
    assert [part.holds for part in toys.judge(data)][0::2] == [True, True]
    assert not any(part.holds for part in toys.judge(swapped))
