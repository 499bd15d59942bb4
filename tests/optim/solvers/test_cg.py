"""Conjugate gradients: steps by hand, the error that they make least, and matrices not for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim

from .systems import matrix, orthogonal, right_hand_side, solved


def krylov(a, b, steps, m=None):
    """An orthonormal basis of the space that the method searches."""
    m = np.eye(len(b)) if m is None else m
    basis = [m @ b]
    for _ in range(steps - 1):
        basis.append(m @ a @ basis[-1] / np.linalg.norm(basis[-1]))
    return np.linalg.qr(np.stack(basis, axis=1))[0]


def test_two_steps_by_hand():
    """From (2, 1) with A = ((4, 1), (1, 3)) and b = (1, 2), in fractions."""
    a, b = jnp.array([[4.0, 1.0], [1.0, 3.0]]), jnp.array([1.0, 2.0])
    first, info = optim.cg(lambda v: a @ v, b, init=jnp.array([2.0, 1.0]), max_steps=1)
    np.testing.assert_allclose(first, [2 - 73 / 331 * 8, 1 - 73 / 331 * 3], rtol=1e-6)
    assert (int(info.iterations), int(info.products), bool(info.converged)) == (1, 3, False)
    second, info = optim.cg(lambda v: a @ v, b, init=jnp.array([2.0, 1.0]))
    np.testing.assert_allclose(second, [1 / 11, 7 / 11], rtol=1e-5)
    assert (int(info.iterations), int(info.products), bool(info.converged)) == (2, 4, True)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_after_five_steps_the_error_in_the_norm_of_a_is_the_least(preconditioned):
    a, b = matrix("definite", 1e3), right_hand_side()
    d = np.linspace(1, 5, 40)
    basis = krylov(a, b, 5, np.diag(1 / d) if preconditioned else None)
    best = basis @ np.linalg.solve(basis.T @ a @ basis, basis.T @ b)
    with jax.enable_x64(True):
        precondition = optim.jacobi_preconditioner(jnp.asarray(d)) if preconditioned else None
        x, info = optim.cg(
            lambda v: a @ v, jnp.asarray(b), preconditioner=precondition, max_steps=5
        )
        np.testing.assert_allclose(x, best, rtol=1e-9, atol=1e-10)
        assert info.iterations == 5 and info.products == 6


def test_as_many_steps_as_there_are_eigenvalues():
    q = orthogonal(40)
    a = (q * np.repeat([1.0, 3.0, 4.0, 10.0], 10)) @ q.T
    with jax.enable_x64(True):
        _, info = solved("cg", tolerance=1e-9)(jnp.asarray(a), jnp.asarray(right_hand_side()))
        assert info.converged and info.iterations == 4


def test_steps_stay_within_the_bound_of_the_docstring():
    for condition in (1e1, 1e2, 1e3):
        a, b = matrix("definite", condition, 40), right_hand_side(40)
        with jax.enable_x64(True):
            _, info = solved("cg")(jnp.asarray(a), jnp.asarray(b))
            assert info.iterations <= condition**0.5 * (6 + np.log(condition) / 4)


def spectrum(w):
    q = orthogonal(40)
    return jnp.asarray((q * w) @ q.T, jnp.float32)


def test_what_is_not_positive_definite_is_reported_and_left():
    b = jnp.asarray(right_hand_side(), jnp.float32)
    call = solved("cg")
    w = np.linspace(0.1, 1, 40)
    for name, eigenvalues, most in (
        ("indefinite", np.where(np.arange(40) % 2, w, -w), 10),
        ("one is negative", np.r_[-0.01, w[1:]], 40),
        ("negative", -w, 1),
        ("zero", 0 * w, 1),
        ("singular", np.r_[0, w[1:]], 40),
    ):
        x, info = call(spectrum(eigenvalues), b)
        assert not info.converged and info.iterations <= most, name
        assert jnp.isfinite(x).all(), name
        assert info.products == info.iterations + 1, name


def test_singular_with_a_solution_is_solved():
    a = spectrum(np.r_[0, np.linspace(0.1, 1, 39)])
    b = a @ jnp.asarray(right_hand_side(), jnp.float32)
    x, info = solved("cg")(a, b)
    assert info.converged
    np.testing.assert_allclose(a @ x, b, atol=1e-4)


def test_a_preconditioner_that_is_not_positive_is_reported():
    a, b = spectrum(np.linspace(0.1, 1, 40)), jnp.asarray(right_hand_side(), jnp.float32)
    x, info = optim.cg(lambda v: a @ v, b, preconditioner=lambda r: -r)
    assert not info.converged and info.iterations == 1 and (x == 0).all()
