"""BiCGSTAB: its equations replayed in NumPy, and where they break down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim

from .systems import matrix, right_hand_side, solved


@pytest.mark.parametrize("preconditioned", [False, True])
def test_agrees_with_numpy(preconditioned):
    a, b = matrix("nonsymmetric", 1e2), right_hand_side()
    m = np.diag(1 / np.linspace(1, 5, 40)) if preconditioned else np.eye(40)
    x, r, p, v = np.zeros(40), b, np.zeros(40), np.zeros(40)
    rho = alpha = omega = 1.0
    for _ in range(6):
        beta, rho = (b @ r / rho) * (alpha / omega), b @ r
        p = r + beta * (p - omega * v)
        v = a @ m @ p
        alpha = rho / (b @ v)
        s = r - alpha * v
        t = a @ m @ s
        omega = t @ s / (t @ t)
        x, r = x + alpha * m @ p + omega * m @ s, s - omega * t
    with jax.enable_x64(True):
        inverse = jnp.asarray(m)
        ours, info = optim.bicgstab(
            lambda v: a @ v, jnp.asarray(b), preconditioner=lambda r: inverse @ r, max_steps=6
        )
        np.testing.assert_allclose(ours, x, rtol=1e-9, atol=1e-11)
        assert info.iterations == 6 and info.products == 13


def test_a_breakdown_is_reported_and_left():
    """r'A r = 0 for every r where A is skew, and A r = 0 where it is zero."""
    skew = np.random.default_rng(0).normal(size=(40, 40))
    skew = jnp.asarray(skew - skew.T, jnp.float32)
    for a in (skew, 0 * skew):
        x, info = solved("bicgstab")(a, jnp.asarray(right_hand_side(), jnp.float32))
        assert not info.converged and info.iterations <= 2
        np.testing.assert_allclose(x, 0, atol=1e-5)


def test_without_a_solution_it_ends_and_says_so():
    w = np.linspace(0, 1, 40)
    a = jnp.diag(jnp.asarray(w, jnp.float32))
    _, info = solved("bicgstab")(a, jnp.ones(40))
    assert not info.converged and info.iterations < 1000
