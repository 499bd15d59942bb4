"""MINRES: the residual that it makes least, indefinite and singular matrices, preconditioners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim

from .systems import matrix, orthogonal, right_hand_side, solved
from .test_cg import krylov


def test_one_step_by_hand():
    """x = (r'A r / |A r|^2) r for r = b = (3, 1), A = diag(1, -2): 7/13 of it."""
    a = jnp.array([1.0, -2.0])
    x, info = optim.minres(lambda v: a * v, jnp.array([3.0, 1.0]), max_steps=1)
    np.testing.assert_allclose(x, 7 / 13 * np.array([3, 1]), rtol=1e-6)
    np.testing.assert_allclose(info.residual, np.hypot(3 - 21 / 13, 1 + 14 / 13), rtol=1e-6)


@pytest.mark.parametrize("kind", ["definite", "indefinite"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_the_residual_is_the_least_at_every_step(kind, steps):
    a, b = matrix(kind, 1e2), right_hand_side()
    basis = krylov(a, b, steps)
    best = basis @ np.linalg.lstsq(a @ basis, b)[0]
    with jax.enable_x64(True):
        x, info = solved("minres", max_steps=steps)(jnp.asarray(a), jnp.asarray(b))
        np.testing.assert_allclose(x, best, rtol=1e-9, atol=1e-10)
        assert info.iterations == steps and info.products == steps + 1


def test_with_a_preconditioner_it_is_the_least_in_its_norm_and_judged_in_the_plain_one():
    a, b = matrix("indefinite", 10), right_hand_side()
    d = np.geomspace(1, 100, 40)
    basis = krylov(a, b, 6, np.diag(1 / d))
    root = np.diag(d**-0.5)
    best = basis @ np.linalg.lstsq(root @ a @ basis, root @ b)[0]
    with jax.enable_x64(True):
        precondition = optim.jacobi_preconditioner(jnp.asarray(d))
        call = jax.jit(
            lambda most: optim.minres(
                lambda v: a @ v, jnp.asarray(b), preconditioner=precondition, max_steps=most
            )
        )
        x, _ = call(6)
        np.testing.assert_allclose(x, best, rtol=1e-8, atol=1e-10)
        # The residual that is carried along is the true one: no step is lost or wasted.
        x, info = call(1000)
        assert info.converged and info.products == info.iterations + 1
        _, short = call(info.iterations - 1)
        assert not short.converged


@pytest.mark.parametrize("wide", [False, True])
def test_singular_without_a_solution_ends_at_least_squares(wide):
    w = np.linspace(-1, 1, 40)
    w[7] = 0
    q = orthogonal(40)
    a, b = (q * w) @ q.T, right_hand_side()
    with jax.enable_x64(wide):
        x, info = solved("minres")(jnp.asarray(a, float), jnp.asarray(b, float))
        x = np.asarray(x, float)
    least = abs(q[:, 7] @ b)
    assert not info.converged and info.iterations < 200
    np.testing.assert_allclose(info.residual, least, rtol=1e-3)
    assert np.linalg.norm(x) < 100 * np.linalg.norm(np.linalg.pinv(a, rcond=1e-6) @ b)


def test_singular_with_a_solution_is_solved():
    w = np.linspace(-1, 1, 40)
    w[7] = 0
    q = orthogonal(40)
    a = jnp.asarray((q * w) @ q.T, jnp.float32)
    b = a @ jnp.ones(40)
    x, info = solved("minres")(a, b)
    assert info.converged
    np.testing.assert_allclose(a @ x, b, atol=1e-3)
