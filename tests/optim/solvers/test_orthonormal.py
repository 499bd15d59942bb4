"""Orthonormal bases: panels against QR, singular matrices, eigenvectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim.solvers.orthonormal import eigenbasis, orthonormalized, panel_qr, regularized


def symmetric(n, condition, seed=0):
    """A matrix with eigenvalues from 1 to 1 / condition, and its eigenvectors."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    values = np.logspace(0, -np.log10(condition), n)
    return (q * values) @ q.T, q


def near(q, distance):
    """An orthonormal matrix about that far from q."""
    noise = np.random.default_rng(1).normal(size=q.shape) / np.sqrt(len(q))
    return np.linalg.qr(q + distance * noise)[0]


def same_signs(q, reference):
    return q * np.sign(np.sum(q * reference, -2, keepdims=True))


@pytest.mark.parametrize("n", [3, 40, 64, 150])
def test_panels_equal_qr_where_columns_are_independent(n):
    x = np.random.default_rng(0).normal(size=(n, n))
    with jax.enable_x64(True):
        q = np.asarray(panel_qr(jnp.asarray(x), 32))
    np.testing.assert_allclose(q.T @ q, np.eye(n), atol=1e-14)
    r = q.T @ x
    np.testing.assert_allclose(np.tril(r, -1), 0, atol=1e-12)  # every leading span is kept
    np.testing.assert_allclose(same_signs(q, np.linalg.qr(x)[0]), np.linalg.qr(x)[0], atol=1e-11)


def test_panels_of_a_tall_matrix_and_of_a_stack():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50, 40)), jnp.float32)
    q = panel_qr(x, 16)
    np.testing.assert_allclose(q.mT @ q, np.broadcast_to(np.eye(40), (2, 40, 40)), atol=1e-6)
    np.testing.assert_allclose(np.tril(np.asarray(q.mT @ x), -1), 0, atol=2e-5)


@pytest.mark.parametrize("condition", [1e1, 1e4, 1e8, 1e12])
@pytest.mark.parametrize("distance", [0.01, 10.0])
def test_in_float32_panels_are_as_exact_as_qr(condition, distance):
    """Leading columns as near to float64's QR, the rest as orthonormal."""
    n = 150
    a, q = symmetric(n, condition)
    basis = near(q, distance)
    reference = np.linalg.qr(a @ basis)[0]
    x, basis = (jnp.asarray(m, jnp.float32) for m in (a.astype(np.float32) @ basis, basis))
    found = {"panel": panel_qr(regularized(x, basis), 32), "qr": jnp.linalg.qr(x)[0]}
    errors, gaps = {}, {}
    for name, single in found.items():
        value = np.asarray(single, np.float64)
        errors[name] = np.abs(same_signs(value, reference) - reference)[:, : n // 3].max()
        gaps[name] = np.abs(value.T @ value - np.eye(n)).max()
    assert gaps["panel"] <= 2 * gaps["qr"] < 1e-5
    assert errors["panel"] <= 3 * errors["qr"] + 1e-6, errors


@pytest.mark.parametrize("rank", [0, 1, 5, 40])
def test_panels_of_a_singular_factor_are_orthonormal_and_keep_null_directions(rank):
    n = 60
    a, q = symmetric(n, 10.0)
    a = (q[:, :rank] * np.linspace(2, 1, rank)) @ q[:, :rank].T
    basis = jnp.asarray(q, jnp.float32)
    new = panel_qr(regularized(jnp.asarray(a, jnp.float32) @ basis, basis), 16)
    np.testing.assert_allclose(new.T @ new, np.eye(n), atol=2e-6)
    np.testing.assert_allclose(same_signs(np.asarray(new), q)[:, :rank], q[:, :rank], atol=1e-5)
    if rank == 0:
        np.testing.assert_allclose(same_signs(np.asarray(new), q), q, atol=1e-6)


def test_rows_and_columns_of_zeros_are_no_trouble():
    a = jnp.zeros((40, 40)).at[3, 3].set(1e-20).at[7, 7].set(1e20)
    new = panel_qr(regularized(a, jnp.eye(40)), 16)
    np.testing.assert_allclose(new.T @ new, np.eye(40), atol=1e-6)


@pytest.mark.slow
def test_orthogonal_iteration_by_either_way_finds_the_eigenvectors():
    a, q = symmetric(20, 1e6)
    with jax.enable_x64(True):
        a, start = jnp.asarray(a), jnp.asarray(near(q, 0.3))
        for step in (orthonormalized, lambda x, basis: panel_qr(regularized(x, basis), 8)):
            basis = start
            for _ in range(60):
                basis = step(a @ basis, basis)
            np.testing.assert_allclose(same_signs(np.asarray(basis), q), q, atol=1e-9)


def test_eigenvectors_come_largest_first_and_zero_has_some():
    a, q = symmetric(8, 100.0)
    with jax.enable_x64(True):
        basis = np.asarray(eigenbasis(jnp.asarray(np.stack([a, a]))))
    np.testing.assert_allclose(same_signs(basis[1], q), q, atol=1e-10)
    zero = eigenbasis(jnp.zeros((3, 3)))
    np.testing.assert_allclose(zero.T @ zero, np.eye(3), atol=1e-6)
