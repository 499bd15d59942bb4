"""Conjugate gradients on the normal equations: against those on them formed, and least squares."""

import jax
import jax.numpy as jnp
import numpy as np

import optim

from .systems import matrix, right_hand_side, solved
from .test_cg import krylov


def test_after_five_steps_the_residual_is_the_least():
    a, b = matrix("nonsymmetric", 10), right_hand_side()
    basis = krylov(a.T @ a, a.T @ b, 5)
    best = basis @ np.linalg.lstsq(a @ basis, b)[0]
    with jax.enable_x64(True):
        call = solved("normal_cg", max_steps=5)
        x, info = call(jnp.asarray(a), jnp.asarray(b))
        np.testing.assert_allclose(x, best, rtol=1e-9, atol=1e-11)
        assert info.iterations == 5 and info.products == 11


def test_equals_cg_on_the_equations_formed():
    a, b = matrix("nonsymmetric", 10), right_hand_side()
    with jax.enable_x64(True):
        ours, _ = solved("normal_cg", max_steps=5)(jnp.asarray(a), jnp.asarray(b))
        formed, _ = solved("cg", max_steps=5)(jnp.asarray(a.T @ a), jnp.asarray(a.T @ b))
        np.testing.assert_allclose(ours, formed, rtol=1e-9, atol=1e-11)


def test_without_a_solution_it_ends_at_least_squares():
    a, b = matrix("nonsymmetric", 10), right_hand_side()
    a[:, 0] = 0
    x, info = solved("normal_cg")(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    best = np.linalg.lstsq(a, b)[0]
    assert not info.converged and info.iterations < 1000
    np.testing.assert_allclose(info.residual, np.linalg.norm(b - a @ best), rtol=1e-4)
    np.testing.assert_allclose(x, best, rtol=1e-2, atol=1e-3)


def test_matvec_may_answer_another_dtype():
    """A product in float32 of bfloat16 vectors, as mixed precision makes it, and its transpose."""
    a = jnp.asarray(matrix("definite", 2, 8), jnp.float32)
    b = jnp.ones(8, jnp.bfloat16)
    x, info = optim.normal_cg(lambda v: a @ v.astype(jnp.float32), b, tolerance=3e-2)
    assert info.converged and x.dtype == jnp.bfloat16
    np.testing.assert_allclose(a @ x.astype(jnp.float32), 1, atol=0.1)
