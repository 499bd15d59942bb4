"""Inverse roots: against NumPy's eigenvalues, with a bad condition, without full rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim.solvers.inverse_root import inverse_root


def matrix(eigenvalues, seed=0):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))[0]
    return (q * eigenvalues) @ q.T


def expected(a, p, added):
    w, q = np.linalg.eigh(a)
    return (q * (np.maximum(w, 0) + added) ** (-1 / p)) @ q.T


def relative_error(ours, truth):
    ours = np.asarray(ours, np.float64)
    return np.linalg.norm(ours - truth, 2) / np.linalg.norm(truth, 2)


@pytest.mark.parametrize("method", ["eigh", "newton"])
@pytest.mark.parametrize("p", [1, 2, 4, 6])
def test_float64_against_numpy(method, p):
    """A batch whose matrices need different numbers of steps."""
    spectra = (np.linspace(1, 2, 6), 1e9 * np.geomspace(1, 1e-8, 6), 1e-6 * np.geomspace(1, 0.1, 6))
    stack = np.stack([matrix(w, seed) for seed, w in enumerate(spectra)]).reshape(3, 1, 6, 6)
    with jax.enable_x64(True):
        ours = inverse_root(jnp.asarray(stack), p, eps=1e-10, method=method)
        assert ours.dtype == jnp.float64 and ours.shape == stack.shape
    for x, a in zip(ours[:, 0], stack[:, 0], strict=True):
        # Rounding of A, 2e-16 of 1, in a direction of 1e-8; Newton stops at 1e-6, squared by then.
        assert relative_error(x, expected(a, p, 1e-10)) < 1e-6


def test_any_root_by_eigenvalues():
    a = matrix(np.array([0.5, 2.0, 3.0]))
    ours = inverse_root(jnp.asarray(a, jnp.float32), 0.7, eps=0.25)
    np.testing.assert_allclose(ours, expected(a, 0.7, 0.25), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["eigh", "newton"])
@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("condition", [1e2, 1e4])
def test_float32_is_as_exact_as_the_docstring_says(method, p, condition):
    a = matrix(np.geomspace(1, 1 / condition, 24))
    truth = expected(a, p, 1e-12)
    ours = inverse_root(jnp.asarray(a, jnp.float32), p, method=method)
    u = np.finfo(np.float32).eps
    factor = 4 if method == "eigh" else 8 / p
    assert relative_error(ours, truth) < factor * u * np.linalg.norm(a) * condition


@pytest.mark.parametrize("p", [2, 4])
def test_without_rank_eigenvalues_that_round_below_eps_become_eps(p):
    """The authors lift all eigenvalues by as much as brings the least one to eps."""
    g = np.random.default_rng(3).normal(size=(12, 5)).astype(np.float32)
    a = jnp.asarray(g) @ jnp.asarray(g).T
    eps = np.float32(1e-12)
    w, q = np.linalg.eigh(np.asarray(a, np.float64))
    ours = np.asarray(inverse_root(a, p, eps=eps), np.float64)
    assert np.isfinite(ours).all()
    # Where there is rank, wrong by a rounding of the largest root, which is that of eps.
    seen = q[:, -5:]
    error = seen.T @ ours @ seen - np.diag(w[-5:] ** (-1 / p))
    assert np.abs(error).max() < np.finfo(np.float32).eps * 1e-12 ** (-1 / p)
    np.testing.assert_allclose(np.linalg.norm(ours, 2), 1e-12 ** (-1 / p), rtol=1e-3)


@pytest.mark.parametrize("rank", [1, 5, 11])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_newton_without_rank_is_bounded_by_the_rounding_that_it_adds(rank, size):
    g = np.random.default_rng(4).normal(size=(12, rank)).astype(np.float32)
    gram = np.float32(size) * (jnp.asarray(g) @ jnp.asarray(g).T)
    ours = np.asarray(inverse_root(gram, 4, method="newton"), np.float64)
    a = np.asarray(gram, np.float64)
    added = 4 * np.finfo(np.float32).eps * np.linalg.norm(a)
    w, q = np.linalg.eigh(a)
    seen = q[:, -rank:]
    truth = (seen * (w[-rank:] + added) ** -0.25) @ seen.T
    assert relative_error(seen @ (seen.T @ ours @ seen) @ seen.T, truth) < 1e-3
    np.testing.assert_allclose(np.linalg.norm(ours, 2), added**-0.25, rtol=0.1)


@pytest.mark.parametrize("method", ["eigh", "newton"])
def test_zeros_have_the_root_of_eps(method):
    ours = inverse_root(jnp.zeros((2, 3, 3)), 2, eps=1e-6, method=method)
    np.testing.assert_allclose(ours, np.tile(1e3 * np.eye(3), (2, 1, 1)), rtol=1e-4, atol=1e-2)


@pytest.mark.slow
def test_a_matrix_that_has_converged_waits_for_the_others():
    """In a batch as alone, to the last digit."""
    with jax.enable_x64(True):
        easy, hard = (jnp.asarray(matrix(np.geomspace(1, low, 5))) for low in (0.5, 1e-6))
        both = inverse_root(jnp.stack([easy, hard]), 4, method="newton")
        alone = inverse_root(easy, 4, method="newton")
        np.testing.assert_allclose(both[0], alone, rtol=1e-13, atol=1e-14)


def test_newton_stops_after_max_steps():
    """One step from z A is z^(1/p) ((1 + 1/p) I - z A / p)."""
    a = matrix(np.array([1.0, 0.5, 0.1]))
    ours = inverse_root(jnp.asarray(a, jnp.float32), 2, method="newton", max_steps=1)
    z = 3 / (2 * np.linalg.norm(a))
    np.testing.assert_allclose(ours, z**0.5 * (1.5 * np.eye(3) - z * a / 2), atol=1e-5)


@pytest.mark.parametrize(
    ("p", "method", "phrase"),
    [
        (2, "schur", "inverse_root: method is 'schur'; accepted: 'eigh', 'newton'."),
        (0, "eigh", "inverse_root: p is 0; accepted by method 'eigh': p > 0."),
        (2.5, "newton", "inverse_root: p is 2.5; accepted by method 'newton': a whole p > 0."),
    ],
)
def test_errors(p, method, phrase):
    with pytest.raises(ValueError, match=phrase):
        inverse_root(jnp.eye(2), p, method=method)
