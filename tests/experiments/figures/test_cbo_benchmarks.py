"""The functions have their minima where it is said, success is counted there, the judge says no."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.figures import cbo_benchmarks as figure

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data():
    return figure.measure(quick=True)


@pytest.mark.parametrize("name", sorted(figure.FUNCTIONS))
def test_minima_are_off_the_middle_and_there_are_many(name):
    loss = figure.FUNCTIONS[name]
    np.testing.assert_allclose(loss(jnp.full(3, figure.MINIMUM)), 0, atol=1e-5)
    line = np.array([loss(jnp.full(3, x)) for x in np.arange(-3, 3.01, 0.25)])
    inner = line[1:-1]
    assert ((inner < line[:-2]) & (inner < line[2:])).sum() >= 3
    assert loss(jnp.zeros(3)) > 0.5


def test_known_values():
    np.testing.assert_allclose(figure.rastrigin(jnp.array([2.0, 1.0])), 1, rtol=1e-5)
    np.testing.assert_allclose(figure.rastrigin(jnp.array([1.5, 1.0])), 20.25, rtol=1e-5)
    # At distance one in every coordinate the cosines are one: 20 (1 - exp(-0.2)).
    np.testing.assert_allclose(figure.ackley(jnp.array([2.0, 0.0])), 3.6254, rtol=1e-4)


def test_without_noise_all_collapses_and_with_too_much_all_flies_off(data):
    isotropic = figure.shares(data, "Ackley", "isotropic")
    assert isotropic.shape == (2, len(figure.SIGMAS))
    assert isotropic[1, -1] == 0
    assert figure.shares(data, "Ackley", "anisotropic")[0].max() == 1


def test_the_judge_says_no_when_the_noises_change_places(data):
    names = dict(zip(figure.NOISES, reversed(figure.NOISES)))
    swapped = {**data, "noise": np.array([names[n] for n in data["noise"]])}
    assert any(part.holds for part in figure.judge(data))
    assert not any(part.holds for part in figure.judge(swapped))


def test_a_difference_within_its_error_does_not_hold():
    assert not figure.above("", 0.55, 0.45, 100).holds
    assert figure.above("", 0.65, 0.45, 100).holds
    assert not figure.above("", 0.0, 0.0, 100).holds
