"""Surrogates of a function asked for at points: a Gaussian process, and random Fourier features.

The process has the Matern-5/2 kernel. With values y at points p_j, r_j = ||x - p_j||, a = sqrt(5) /
lengthscale, y scaled to [0, 1] and K = (k(||p_j - p_l||)) + noise I::

    k(r) = (1 + a r + a^2 r^2 / 3) exp(-a r)
    grad k(r_j) = slope_j (x - p_j),   slope_j = -(a^2 / 3) (1 + a r_j) exp(-a r_j)
    mean(x) = min y + sum over j of w_j k(r_j),   w = (max y - min y) K^-1 y
    grad mean(x) = sum over j of w_j grad k(r_j)
    variance of the gradient, over coordinates = d a^2 / 3 - sum over jl of
        (K^-1)_jl grad k(r_j) . grad k(r_l)

Of lengthscales, one takes that at which the values are likeliest. The features are those of the
kernel exp(-r^2 / 2), in number M; the weights are of the least norm that fits, up to the noise::

    phi(x) = sqrt(2 / M) cos(W' x + b),   W of standard normal numbers,   b uniform in [0, 2 pi)
    weights = Phi' (Phi Phi' + noise I)^-1 (y - min y)

`known` masks points that are not there, of a buffer that is not full.

*Numbers.* A noise of 1e-6 is less than float32 resolves of a K of many near points: there the
likelihoods that fail are left out, so that shorter lengthscales remain. In float64 all is well.

*Reference.* Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006; Rahimi and
Recht, Random features for large-scale kernel machines, 2007.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular


class Process(NamedTuple):
    """The posterior of a Gaussian process."""

    points: jax.Array  # (points, d)
    known: jax.Array  # (points,), bool
    lengthscale: jax.Array  # ()
    inverse: jax.Array  # (points, points): K^-1, the identity where points are unknown
    weights: jax.Array  # (points,): w, zero where points are unknown


class Features(NamedTuple):
    """Random Fourier features."""

    frequencies: jax.Array  # (d, M): W
    phases: jax.Array  # (M,): b


def matern(squares: jax.Array, lengthscale: jax.Array) -> jax.Array:
    """The kernel at squares of distances."""
    scaled = jnp.sqrt(5 * squares) / lengthscale
    return (1 + scaled + scaled**2 / 3) * jnp.exp(-scaled)


def likeliest_lengthscale(
    points: jax.Array,
    values: jax.Array,
    known: jax.Array,
    lengthscales: jax.Array,
    noise: float,
) -> jax.Array:
    """That of the lengthscales which makes the scaled values likeliest."""
    squares, unit = squared_distances(points, points), _unit(values, known)[0]

    def likelihood(lengthscale: jax.Array) -> jax.Array:
        lower = jnp.linalg.cholesky(_masked(matern(squares, lengthscale), known, noise))
        white = solve_triangular(lower, unit, lower=True)
        found = -(white @ white) / 2 - jnp.sum(jnp.log(jnp.diagonal(lower)))
        return jnp.where(jnp.isnan(found), -jnp.inf, found)

    return lengthscales[jnp.argmax(jax.lax.map(likelihood, lengthscales))]


def matern_process(
    points: jax.Array, values: jax.Array, known: jax.Array, lengthscale: jax.Array, noise: float
) -> Process:
    """The posterior given values at points."""
    unit, spread = _unit(values, known)
    kernel = matern(squared_distances(points, points), lengthscale)
    lower = jnp.linalg.cholesky(_masked(kernel, known, noise))
    inverse = cho_solve((lower, True), jnp.eye(len(points), dtype=points.dtype))
    return Process(points, known, lengthscale, inverse, spread * (inverse @ unit))


def process_slope(process: Process, x: jax.Array) -> jax.Array:
    """The gradient of the posterior's mean at one point."""
    squares = jnp.sum(jnp.square(x - process.points), axis=1)
    by = process.weights * _slopes(process, squares)
    return by @ (x - process.points)


def process_slope_variances(process: Process, xs: jax.Array) -> jax.Array:
    """The variance of the gradient, summed over coordinates, at each of the points `xs`."""
    centre = process.points[0]
    slopes = jnp.where(process.known, _slopes(process, squared_distances(xs, process.points)), 0)
    points, xs = process.points - centre, xs - centre
    # (x - p_j) . (x - p_l) = x . x - x . p_j - x . p_l + p_j . p_l, term by term.
    weighed = slopes @ process.inverse
    near = jnp.sum(xs**2, axis=1) * jnp.sum(weighed * slopes, axis=1)
    cross = jnp.sum(weighed * slopes * (xs @ points.T), axis=1)
    apart = jnp.sum((slopes @ (process.inverse * (points @ points.T))) * slopes, axis=1)
    prior = points.shape[1] * 5 / (3 * process.lengthscale**2)
    return prior - (near - 2 * cross + apart)


def random_features(key: jax.Array, dimension: int, count: int, dtype: jnp.dtype) -> Features:
    """M = count features of the kernel exp(-r^2 / 2)."""
    frequencies, phases = jax.random.split(key)
    return Features(
        jax.random.normal(frequencies, (dimension, count), dtype),
        jax.random.uniform(phases, (count,), dtype, maxval=2 * jnp.pi),
    )


def encoded(features: Features, xs: jax.Array) -> jax.Array:
    """phi of each of the points `xs`: (points, M)."""
    count = features.phases.size
    return (2 / count) ** 0.5 * jnp.cos(xs @ features.frequencies + features.phases)


def feature_weights(
    features: Features, points: jax.Array, values: jax.Array, known: jax.Array, noise: float
) -> jax.Array:
    """The weights that fit values at points: (M,)."""
    rows = encoded(features, points)
    low = jnp.min(jnp.where(known, values, jnp.inf))
    lower = jnp.linalg.cholesky(_masked(rows @ rows.T, known, noise))
    return rows.T @ cho_solve((lower, True), jnp.where(known, values - low, 0))


def features_slope(features: Features, weights: jax.Array, x: jax.Array) -> jax.Array:
    """The gradient of phi . weights at one point."""
    count = features.phases.size
    waves = jnp.sin(x @ features.frequencies + features.phases)
    return -((2 / count) ** 0.5) * (features.frequencies @ (weights * waves))


def squared_distances(xs: jax.Array, points: jax.Array) -> jax.Array:
    """||x - p||^2, (xs, points), with the first point as the origin, from which none is far."""
    a, b = xs - points[0], points - points[0]
    squares = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1) - 2 * a @ b.T
    return jnp.maximum(squares, 0)


def _unit(values: jax.Array, known: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values scaled to [0, 1], zero where unknown, and what they were divided by."""
    low = jnp.min(jnp.where(known, values, jnp.inf))
    spread = jnp.max(jnp.where(known, values, -jnp.inf)) - low
    return jnp.where(known, values - low, 0) / jnp.where(spread > 0, spread, 1), spread


def _slopes(process: Process, squares: jax.Array) -> jax.Array:
    scaled = jnp.sqrt(5 * squares) / process.lengthscale
    return -5 / (3 * process.lengthscale**2) * (1 + scaled) * jnp.exp(-scaled)


def _masked(kernel: jax.Array, known: jax.Array, noise: float) -> jax.Array:
    """The kernel with noise, and the identity for unknown points."""
    both = known[:, None] & known
    return jnp.where(both, kernel, 0) + jnp.diag(jnp.where(known, noise, 1).astype(kernel.dtype))
