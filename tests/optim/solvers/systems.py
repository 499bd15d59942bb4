"""Linear systems with a given condition number, and every solver by its name."""

import functools

import jax
import numpy as np

import optim

SOLVERS = {
    "cg": optim.cg,
    "minres": optim.minres,
    "gmres": optim.gmres,
    "bicgstab": optim.bicgstab,
    "normal_cg": optim.normal_cg,
    "neumann": optim.neumann,
    "dense_solve": optim.dense_solve,
}
KRYLOV = ("cg", "minres", "gmres", "bicgstab", "normal_cg")


def orthogonal(size, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def matrix(kind, condition, size=40):
    """Eigenvalues from 1 / condition to 1; indefinite: of both signs; nonsymmetric: turned by a
    skew part as large as the symmetric one, so that x'A x stays positive."""
    q = orthogonal(size)
    w = np.geomspace(1, 1 / condition, size)
    if kind == "indefinite":
        w = w * np.where(np.arange(size) % 2, -1, 1)
    if kind == "nonsymmetric":
        skew = np.random.default_rng(1).normal(size=(size, size))
        skew = skew - skew.T
        root = q * np.sqrt(w) @ q.T
        return root @ (np.eye(size) + skew / np.linalg.norm(skew, 2)) @ root
    return (q * w) @ q.T


def right_hand_side(size=40):
    return np.random.default_rng(2).normal(size=size)


@functools.cache
def solved(solver, **options):
    """The solver as one compiled function of (matrix, right-hand side, start or None)."""
    return jax.jit(
        lambda a, b, init=None: SOLVERS[solver](lambda v: a @ v, b, init=init, **options)
    )
