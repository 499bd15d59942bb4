"""Preconditioners against what each promises: inverses, and fewer steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim

from .systems import matrix, right_hand_side, solved


def steps(a, b, preconditioner=None):
    x, info = optim.cg(lambda v: a @ v, b, preconditioner=preconditioner, tolerance=1e-8)
    assert info.converged
    np.testing.assert_allclose(x, jnp.linalg.solve(a, b), rtol=1e-4, atol=1e-6)
    return int(info.iterations)


def test_jacobi_undoes_the_units_of_the_unknowns():
    with jax.enable_x64(True):
        units = jnp.geomspace(1, 1e3, 40)
        plain = jnp.asarray(matrix("definite", 10))
        scaled, b = units[:, None] * plain * units, jnp.asarray(right_hand_side())
        jacobi = optim.jacobi_preconditioner(jnp.diagonal(scaled))
        assert steps(scaled, b, jacobi) <= 2 * steps(plain, b) < steps(scaled, b)


@pytest.mark.slow
def test_nystrom_takes_out_the_largest_eigenvalues():
    with jax.enable_x64(True):
        q = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (40, 40)))[0]
        w = jnp.concatenate([jnp.geomspace(1e6, 1e3, 6), jnp.linspace(1, 2, 34)])
        a, b = (q * w) @ q.T, jnp.asarray(right_hand_side())
        key = jax.random.key(0)
        nystrom = optim.nystrom_preconditioner(lambda v: a @ v, b, key, rank=12)
        assert steps(a, b, nystrom) < steps(a, b) / 2


def test_nystrom_of_full_rank_is_the_inverse_but_for_its_level():
    with jax.enable_x64(True):
        a, b = jnp.asarray(matrix("definite", 100)), jnp.asarray(right_hand_side())
        nystrom = optim.nystrom_preconditioner(
            lambda v: a @ v, b, jax.random.key(0), rank=40, damping=0.5
        )
        damped = a + 0.5 * jnp.eye(40)
        level = jnp.linalg.eigvalsh(damped)[0]
        np.testing.assert_allclose(nystrom(b), level * jnp.linalg.solve(damped, b), rtol=1e-6)


def test_nystrom_names_a_bad_rank_and_damping():
    b = jnp.ones(3)
    for kwargs, phrase in (({"rank": 0}, "rank is 0"), ({"damping": -1.0}, r"damping is -1\.0")):
        with pytest.raises(ValueError, match=phrase):
            optim.nystrom_preconditioner(lambda v: v, b, jax.random.key(0), **kwargs)


def test_lbfgs_of_conjugate_pairs_is_the_inverse():
    """With s the eigenvectors, y = A s: the two-loop recursion is then exact."""
    with jax.enable_x64(True):
        a = jnp.asarray(matrix("definite", 30, 6))
        s = jnp.linalg.eigh(a)[1].T
        lbfgs = optim.lbfgs_preconditioner(s, s @ a)
        b = jnp.arange(1.0, 7)
        np.testing.assert_allclose(lbfgs(b), jnp.linalg.solve(a, b), rtol=1e-9)


def test_lbfgs_leaves_out_pairs_without_positive_curvature():
    s = jnp.eye(3)[:2]
    kept = optim.lbfgs_preconditioner(s[:1], 2 * s[:1])
    both = optim.lbfgs_preconditioner(s, jnp.array([[2.0, 0, 0], [0, -1.0, 0]]))
    r = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(both(r), kept(r), rtol=1e-6)
    nothing = optim.lbfgs_preconditioner(s, -s)
    np.testing.assert_allclose(nothing(r), r)


def test_a_preconditioner_serves_gmres_too():
    with jax.enable_x64(True):
        a, b = jnp.asarray(matrix("nonsymmetric", 1e4)), jnp.asarray(right_hand_side())
        inverse = jnp.linalg.inv(a)
        x, info = optim.gmres(lambda v: a @ v, b, preconditioner=lambda r: inverse @ r)
        assert info.converged and info.iterations <= 2 < solved("gmres")(a, b)[1].iterations
        np.testing.assert_allclose(a @ x, b, rtol=1e-6, atol=1e-6)
