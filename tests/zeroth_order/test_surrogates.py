"""Surrogates against numpy's closed forms, automatic derivatives, and their kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zeroth_order import surrogates

NOISE = 1e-6


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def data(count=12, dimension=3):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(count, dimension)) + 5.0
    return points, np.sin(points).sum(axis=1), np.ones(count, bool)


def process(lengthscale=1.3):
    return surrogates.matern_process(*map(jnp.asarray, data()), jnp.asarray(lengthscale), NOISE)


def kernel(a, b, lengthscale):
    r = np.sqrt(5) * np.linalg.norm(a[:, None] - b, axis=2) / lengthscale
    return (1 + r + r**2 / 3) * np.exp(-r)


def mean(found, x):
    """The posterior's mean, but for its offset."""
    squares = jnp.sum(jnp.square(x - found.points), axis=1)
    return surrogates.matern(squares, found.lengthscale) @ found.weights


def test_the_posterior_by_hand():
    points, values, _ = data()
    x, lengthscale, low, spread = np.full(3, 5.2), 1.3, values.min(), np.ptp(values)
    gram = kernel(points, points, lengthscale) + NOISE * np.eye(12)
    weights = spread * np.linalg.solve(gram, (values - low) / spread)
    found = process(lengthscale)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-8)
    a, apart = np.sqrt(5) / lengthscale, x - points
    r = np.linalg.norm(apart, axis=1)
    slope = (weights * -(a**2) / 3 * (1 + a * r) * np.exp(-a * r)) @ apart
    np.testing.assert_allclose(surrogates.process_slope(found, jnp.asarray(x)), slope, rtol=1e-8)
    by_derivative = jax.grad(lambda x: mean(found, x))(jnp.asarray(x))
    np.testing.assert_allclose(by_derivative, slope, rtol=1e-8)
    # At a point that was asked for, but for the noise, the mean is the value.
    np.testing.assert_allclose(mean(found, found.points[3]) + low, values[3], atol=1e-4)


@pytest.mark.slow
def test_the_variance_of_the_slope_is_that_of_the_kernels_derivatives():
    found = process()
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)) + 5.0)

    def k(x, y):
        return surrogates.matern(jnp.sum(jnp.square(x - y)), found.lengthscale)

    for x, variance in zip(xs, surrogates.process_slope_variances(found, xs), strict=True):
        crossed = jax.vmap(jax.grad(k), (None, 0))(x, found.points)
        # At zero itself the square root has no derivative.
        prior = -jax.hessian(k)(x + 1e-5, x)
        expected = jnp.trace(prior - crossed.T @ found.inverse @ crossed)
        np.testing.assert_allclose(variance, expected, rtol=1e-4)
        assert 0 < variance < 3 * 5 / (3 * 1.3**2)


@pytest.mark.slow
def test_points_that_are_not_known_change_nothing():
    points, values, known = data()
    more = np.concatenate([points, np.full((3, 3), 7.0)])
    padded = (more, np.append(values, [9.0, -9.0, 1e3]), np.append(known, [False] * 3))
    found = surrogates.matern_process(*map(jnp.asarray, padded), jnp.asarray(1.3), NOISE)
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)) + 5.0)
    slope, variances = surrogates.process_slope, surrogates.process_slope_variances
    np.testing.assert_allclose(slope(found, xs[0]), slope(process(), xs[0]), rtol=1e-9)
    np.testing.assert_allclose(variances(found, xs), variances(process(), xs), rtol=1e-9)
    grid = jnp.asarray([0.1, 1.0, 10.0])
    chosen = [
        surrogates.likeliest_lengthscale(*map(jnp.asarray, given), grid, NOISE)
        for given in (padded, data())
    ]
    assert chosen[0] == chosen[1]
    features = surrogates.random_features(jax.random.key(0), 3, 50, jnp.float64)
    weights = [
        surrogates.feature_weights(features, *map(jnp.asarray, given), NOISE)
        for given in (padded, data())
    ]
    np.testing.assert_allclose(*weights, rtol=1e-8, atol=1e-10)


def test_the_lengthscale_is_the_likeliest():
    points, values, known = data(40)
    grid = np.array([0.1, 0.5, 2.0, 8.0, 32.0])
    unit = (values - values.min()) / np.ptp(values)

    def likelihood(lengthscale):
        gram = kernel(points, points, lengthscale) + NOISE * np.eye(40)
        return -unit @ np.linalg.solve(gram, unit) / 2 - np.linalg.slogdet(gram)[1] / 2

    found = surrogates.likeliest_lengthscale(
        *map(jnp.asarray, (points, values, known, grid)), NOISE
    )
    assert found == grid[np.argmax([likelihood(g) for g in grid])]
    assert found not in (grid[0], grid[-1])


@pytest.mark.slow
def test_a_kernel_that_single_precision_cannot_factorize_is_not_chosen():
    points, values, known = data(60)
    grid = jnp.asarray([0.5, 1e3], jnp.float32)
    single = [jnp.asarray(a, jnp.float32) for a in (points, values)]
    gram = surrogates.matern(surrogates.squared_distances(single[0], single[0]), grid[1])
    assert jnp.isnan(jnp.linalg.cholesky(gram + NOISE * jnp.eye(60, dtype=jnp.float32))).any()
    assert surrogates.likeliest_lengthscale(*single, jnp.asarray(known), grid, NOISE) == grid[0]


def test_features_stand_for_the_kernel():
    points, _, _ = data()
    near = jnp.asarray(points) / 2
    features = surrogates.random_features(jax.random.key(0), 3, 40_000, jnp.float64)
    rows = surrogates.encoded(features, near)
    squares = ((points[:, None] - points) ** 2).sum(axis=2) / 4
    # Each entry is a mean of 40,000 terms of deviation below sqrt(1.5): 0.006, of which four.
    np.testing.assert_allclose(rows @ rows.T, np.exp(-squares / 2), atol=0.025)


@pytest.mark.slow
def test_features_fit_the_values_and_their_slope_is_the_derivative():
    points, values, known = map(jnp.asarray, data())
    features = surrogates.random_features(jax.random.key(0), 3, 400, jnp.float64)
    weights = surrogates.feature_weights(features, points, values, known, 1e-10)
    fitted = surrogates.encoded(features, points) @ weights
    np.testing.assert_allclose(fitted, values - values.min(), atol=1e-5)
    x = points[0] + 0.1
    expected = jax.grad(lambda x: surrogates.encoded(features, x[None])[0] @ weights)(x)
    np.testing.assert_allclose(
        surrogates.features_slope(features, weights, x), expected, rtol=1e-10
    )
    # Of least norm: they lie in the span of the features at the points.
    rows = np.asarray(surrogates.encoded(features, points))
    np.testing.assert_allclose(rows.T @ np.linalg.lstsq(rows.T, weights)[0], weights, atol=1e-9)
