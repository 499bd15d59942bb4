"""GMRES: the least residual, cycles and their last step, matrices without an inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim

from .systems import matrix, right_hand_side, solved
from .test_cg import krylov


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_residual_is_the_least_at_every_step(steps, preconditioned):
    a, b = matrix("nonsymmetric", 1e2), right_hand_side()
    m = np.diag(1 / np.linspace(1, 5, 40)) if preconditioned else np.eye(40)
    basis = m @ krylov(a @ m, b, steps)
    best = basis @ np.linalg.lstsq(a @ basis, b)[0]
    with jax.enable_x64(True):
        inverse = jnp.asarray(m)
        x, info = optim.gmres(
            lambda v: a @ v, jnp.asarray(b), preconditioner=lambda r: inverse @ r, max_steps=steps
        )
        np.testing.assert_allclose(x, best, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(info.residual, np.linalg.norm(b - a @ best), rtol=1e-9)
        assert info.iterations == steps and info.products == steps + 1


def test_it_stops_within_a_cycle_at_the_step_that_is_enough():
    a, b = matrix("nonsymmetric", 10), right_hand_side()
    with jax.enable_x64(True):
        call = jax.jit(
            lambda most: optim.gmres(lambda v: a @ v, jnp.asarray(b), restart=40, max_steps=most)
        )
        _, info = call(1000)
        assert info.converged and info.iterations < 40 and info.products == info.iterations + 1
        _, short = call(info.iterations - 1)
        assert not short.converged and short.iterations == info.iterations - 1


@pytest.mark.slow
def test_a_restart_is_a_start_from_what_was_found():
    a, b = matrix("nonsymmetric", 1e2), right_hand_side()
    with jax.enable_x64(True):
        call = solved("gmres", restart=4, max_steps=4, tolerance=0)
        x = None
        for _ in range(3):
            x, _ = call(jnp.asarray(a), jnp.asarray(b), jnp.zeros(40) if x is None else x)
        whole, info = solved("gmres", restart=4, max_steps=10, tolerance=0)(
            jnp.asarray(a), jnp.asarray(b)
        )
        longer, twelve = solved("gmres", restart=4, max_steps=12, tolerance=0)(
            jnp.asarray(a), jnp.asarray(b)
        )
        np.testing.assert_allclose(longer, x, rtol=1e-9, atol=1e-12)
        assert (int(twelve.iterations), int(twelve.products)) == (12, 15)
        # The last cycle has two steps left.
        assert (int(info.iterations), int(info.products)) == (10, 13)
        assert info.residual > twelve.residual and not (whole == longer).all()


def test_a_space_that_is_exhausted_holds_the_solution():
    """b is a sum of two eigenvectors."""
    a = jnp.diag(jnp.array([1.0, 2.0, 3.0, 4.0]))
    x, info = optim.gmres(lambda v: a @ v, jnp.array([1.0, 0.0, 3.0, 0.0]), tolerance=0)
    np.testing.assert_allclose(x, [1, 0, 1, 0], atol=1e-6)
    assert info.iterations <= 6 and info.residual < 1e-6


def test_a_cyclic_shift_needs_every_step():
    """The textbook's worst case: no progress before the last step."""
    shift = lambda v: jnp.roll(v, 1)  # noqa: E731
    b = jnp.zeros(8).at[0].set(1.0)
    _, info = optim.gmres(shift, b, max_steps=7)
    assert info.residual == 1 and not info.converged
    x, info = optim.gmres(shift, b)
    assert info.converged and info.iterations == 8
    np.testing.assert_allclose(shift(x), b, atol=1e-6)
    # Restarted too early, it stands still and says so at once.
    _, info = optim.gmres(shift, b, restart=4)
    assert not info.converged and info.iterations == 4


def test_singular_is_reported_and_left():
    nilpotent = jnp.zeros((4, 4)).at[1, 0].set(1.0)
    call = solved("gmres")
    for a, b in ((nilpotent, jnp.eye(4)[0]), (nilpotent, jnp.eye(4)[1]), (0 * nilpotent, b_ones())):
        x, info = call(a, b)
        assert not info.converged and info.iterations <= 2 and (x == 0).all()
    # Singular, with the solution in reach.
    x, info = call(jnp.diag(jnp.array([0.0, 1.0, 2.0, 3.0])), jnp.array([0.0, 1.0, 1.0, 1.0]))
    assert info.converged
    np.testing.assert_allclose(x, [0, 1, 0.5, 1 / 3], atol=1e-5)


def b_ones():
    return jnp.ones(4)


def test_restart_below_one_is_named():
    with pytest.raises(ValueError, match="gmres: restart is 0; accepted: restart >= 1"):
        optim.gmres(lambda v: v, jnp.ones(2), restart=0)
