"""Problems with solutions in closed form, as functions of the data."""

import jax
import jax.numpy as jnp
import numpy as np

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(12, 4))
SUPPORT, SIGNS = np.array([0, 2]), np.array([1.0, -1.0])
STRENGTHS = np.array([0.4, 0.5])


def least_squares(w, x, y):
    return jnp.sum((x @ w - y) ** 2) / (2 * len(y))


def elastic_net_target():
    """y for which (2, 0, -1.5, 0) is the elastic net of X, y and STRENGTHS."""
    w = np.array([2.0, 0.0, -1.5, 0.0])
    slope = 0.4 * np.array([1 + 0.5 * 2, 0.3, -1 - 0.5 * 1.5, -0.5])
    return X @ (w + np.linalg.solve(X.T @ X / 12, slope))


def elastic_net(strengths, x, y):
    """The solution wherever its support and signs are as there."""
    x = x[:, SUPPORT]
    matrix = x.T @ x / len(y) + strengths[0] * strengths[1] * jnp.eye(2)
    w = jnp.linalg.solve(matrix, x.T @ y / len(y) - strengths[0] * SIGNS)
    return jnp.zeros(4, w.dtype).at[SUPPORT].set(w)


SIMPLEX_Y = X @ np.array([0.5, -0.4, 0.3, 0.6])


def on_the_simplex(x, y):
    """The least squares with w >= 0, sum w = 1, wherever w_1 alone is zero, as at X, SIMPLEX_Y."""
    inside = np.array([0, 2, 3])
    x = x[:, inside]
    u, v = jnp.linalg.solve(x.T @ x, jnp.stack([x.T @ y, jnp.ones(3)], axis=1)).T
    return jnp.zeros(4, u.dtype).at[inside].set(u + v * (1 - jnp.sum(u)) / jnp.sum(v))


def svm_dual(beta, strength, x, y):
    """The dual of the multiclass support vector machine, on a simplex for each example."""
    v = x.T @ (y - beta)
    return jnp.sum(v**2) / (2 * strength) + jnp.vdot(beta, y - 1)


def simplex_residual(function, beta):
    """How far rows of a point are from the minimum of a convex function over simplices: the gap."""
    gradient = jax.grad(function)(beta)
    return jnp.vdot(beta, gradient) - jnp.sum(jnp.min(gradient, axis=1))
