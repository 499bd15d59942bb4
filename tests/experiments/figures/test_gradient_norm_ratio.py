"""Ratios are those of a loop in NumPy, the formula is the exact one, and the judge can say no."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order
from experiments.figures import gradient_norm_ratio as target

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data():
    return target.measure(quick=True)


@pytest.mark.parametrize("draw", target.DRAWS)
def test_a_square_is_that_of_the_directions_written_out(draw):
    slope, along = jnp.array([1.0, -2.0, 0.5]), zeroth_order.direction(target.NOISE[draw])
    seed, samples = 5, 2
    z = [
        zeroth_order.perturb(along, {"w": jnp.zeros(3)}, seed * samples + j, 1.0)["w"]
        for j in range(samples)
    ]
    expected = np.mean([np.dot(x, slope) * np.asarray(x) for x in z], axis=0)
    found = target.ours(draw, slope, samples)(jnp.uint32(seed))
    np.testing.assert_allclose(found, expected @ expected, rtol=1e-5)


@pytest.mark.parametrize(("dimension", "samples"), [(3, 1), (2, 2)])
def test_the_formula_for_signs_is_the_mean_over_all_of_them(dimension, samples):
    slope = np.arange(1.0, dimension + 1)
    signs = list(itertools.product([-1, 1], repeat=dimension))
    squares = []
    for chosen in itertools.product(signs, repeat=samples):
        g = np.mean([np.dot(z, slope) * np.array(z) for z in chosen], axis=0)
        squares.append(g @ g)
    ratio = np.mean(squares) / (slope @ slope)
    assert target.expected("+-1", dimension, samples) == pytest.approx(ratio)
    assert target.expected(target.SPHERE, dimension, samples) == pytest.approx(ratio)


@pytest.mark.parametrize("draw", target.DRAWS)
def test_fourth_moments_are_those_of_the_draws(draw):
    noise = target.NOISE[draw]
    words = jax.random.bits(jax.random.key(0), (2**18,), jnp.uint32)
    fourth = np.mean(np.asarray(noise.unit * noise.draw(words), np.float64) ** 4)
    assert fourth == pytest.approx(target.DRAWS[draw], abs=0.08)  # 4 errors: sqrt(96 / 2^18) each


def test_on_the_sphere_one_dimension_has_the_gradient_itself():
    square = target.on_sphere(jnp.array([3.0]), 2)(jnp.uint32(1))
    np.testing.assert_allclose(square, 9.0, rtol=1e-5)


def test_the_judge_says_no_beyond_the_errors(data):
    assert all(part.holds for part in target.judge(data)[:-1])
    off = data | {"ratio": data["ratio"] + 5 * data["standard_error"] + 1e-3 * data["expected"]}
    assert not all(part.holds for part in target.judge(off)[:-1])
    chosen = data["draw"] == "normal"
    exact = data | {"standard_error": 0 * data["ratio"], "ratio": data["expected"]}
    assert target.agrees("", exact, chosen).holds
    wrong = exact | {"ratio": 1.001 * data["expected"]}
    assert not target.agrees("", wrong, chosen).holds


def test_the_last_part_holds_normals_to_the_spheres_formula(data):
    exact = data | {"standard_error": 0 * data["ratio"], "ratio": data["expected"]}
    held = [part.holds for part in target.judge(exact)]
    assert held == [True] * 4 + [False]
