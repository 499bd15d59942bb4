"""Inverses of triangular matrices: against LAPACK's, over sizes, batched, and their derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim.solvers.triangular import lower_inverse


def factor(n, seed=0):
    """A Cholesky factor of a matrix of condition 1e6."""
    random = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(random.normal(size=(n, n)))
    return np.linalg.cholesky(basis * np.geomspace(1, 1e6, n) @ basis.T)


@pytest.mark.parametrize(
    "n", [1, 13, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 8))]
)
def test_agrees_with_lapack(n):
    matrix = factor(n)
    with jax.enable_x64(True):
        # What is above the diagonal is not read.
        found = np.asarray(lower_inverse(jnp.asarray(matrix + np.triu(np.ones((n, n)), 1))))
    np.testing.assert_allclose(found @ matrix, np.eye(n), atol=1e-12)
    assert not np.triu(found, 1).any()


def test_of_a_batch():
    matrices = jnp.asarray(np.stack([factor(5, seed) for seed in range(3)]), jnp.float32)
    found = jax.jit(jax.vmap(lower_inverse))(matrices)
    np.testing.assert_allclose(found @ matrices, np.tile(np.eye(5), (3, 1, 1)), atol=1e-3)


def test_derivative():
    """d W = -W dL W, the lower triangle of dL alone."""
    with jax.enable_x64(True):
        matrix = jnp.asarray(factor(4))
        change = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)))
        inverse, moved = jax.jvp(lower_inverse, (matrix,), (change,))
        wanted = -inverse @ jnp.tril(change) @ inverse
        np.testing.assert_allclose(moved, wanted, atol=1e-10)
