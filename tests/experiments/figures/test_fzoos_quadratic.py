"""The minimum is the claimed one, estimates are projections, and the judge can say no."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.figures import fzoos_quadratic as figure

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data():
    return figure.measure(quick=True)


def test_clients_differ_and_their_mean_is_known():
    coefficients, start = figure.problem(0, 30)
    assert coefficients.shape == (5, 2, 30) and coefficients.std(axis=0).min() > 0
    np.testing.assert_allclose(coefficients.mean(axis=0), 1)
    assert start.min() > 0 and start.max() < 1
    lowest = np.full(30, 9.5 / 20)
    with jax.enable_x64(True):
        mean = jnp.mean(
            jax.vmap(figure.loss, (None, 0))(jnp.asarray(lowest), jnp.asarray(coefficients))
        )
        slope = jax.grad(lambda x: figure.loss(x, jnp.ones((2, 30))))(jnp.asarray(lowest))
    np.testing.assert_allclose(mean, figure.least(30))
    np.testing.assert_allclose(slope, 0, atol=1e-12)


def test_an_estimate_is_the_gradients_projection_on_the_directions():
    """On average q / d of the gradient, over q as the estimate is, and never more than 1 / q."""
    with jax.enable_x64(True):
        x, client = jnp.full(40, 0.4), jnp.ones((2, 40))
        gradient = np.asarray(jax.grad(figure.loss)(x, client))
        keys = jax.random.split(jax.random.key(0), 500)
        found = np.asarray(jax.vmap(figure.estimate, (None, None, 0))(x, client, keys))
    # The forward difference adds about probe / 2 times the curvature, 2 in units of the slope -0.6.
    mean = found.mean(axis=0) @ gradient / (gradient @ gradient)
    assert mean == pytest.approx(1 / 40, rel=0.02)
    norms = np.linalg.norm(found, axis=1) / np.linalg.norm(gradient)
    assert norms.max() < 1.1 / 20


def test_all_start_at_one_value_and_never_rise(data):
    gaps = {}
    for method in figure.METHODS:
        for trial in np.unique(data["trial"]):
            chosen = (data["method"] == method) & (data["trial"] == trial)
            values = data["gap"][chosen]
            assert (np.diff(values) <= 0).all() and (values > 0).all()
            gaps.setdefault(trial, set()).add(round(float(values[0]), 9))
    assert all(len(first) == 1 for first in gaps.values())


def test_queries_are_those_that_are_described(data):
    costs = {"FZooS": 106, "RGF, none": 210, "RGF, diff": 230}
    for method, cost in costs.items():
        chosen = (data["method"] == method) & (data["trial"] == 0)
        np.testing.assert_array_equal(np.diff(data["queries"][chosen]), cost)


def test_the_judge_says_no_when_two_methods_change_places(data):
    names = {"FZooS": "RGF, prox", "RGF, prox": "FZooS"}
    swapped = {**data, "method": np.array([names.get(n, n) for n in data["method"]])}
    held = [part.holds for part in figure.judge(data)]
    assert held[1] and held[5]
    assert not any(part.holds for part in figure.judge(swapped))


def test_what_is_never_reached_is_no_success():
    gaps = {"FZooS": [1.0, 0.5], **{name: [1.0, 0.5] for name in figure.METHODS[1:]}}
    rows = [(m, 0, r, r, g) for m, values in gaps.items() for r, g in enumerate(values)]
    names = ("method", "trial", "round", "queries", "gap")
    data = {name: np.array(column) for name, column in zip(names, zip(*rows), strict=True)}
    assert np.isinf(figure.reached(data, "FZooS", "round", 0.1)).all()
    assert not any(part.holds for part in figure.judge(data))
