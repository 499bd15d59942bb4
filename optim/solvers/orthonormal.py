"""Orthonormal bases for orthogonal iteration: eigenvectors, and the Q of QR where QR is slow.

A step of orthogonal iteration is Q = qr(A Q): the first k columns of the new Q span what the first
k columns of A Q span, for every k. On a CPU or GPU that is `jnp.linalg.qr`, and the eigenvectors
that it starts from are `jnp.linalg.eigh`. A TPU's compiler unrolls both over blocks, and takes
minutes to hours over sizes from 1024 on; there the step is `panel_qr`, and eigenvectors are found
by Jacobi's method.

`panel_qr` is block Gram-Schmidt in loops whose bodies are compiled once, whatever the size. For
each panel of columns P, with Q the columns found before (zero beyond)::

    thrice:  P = P - Q Q' P,  then the same within P, column by column

The first pass finds the panel's part beyond Q, the next two remove what rounding left of Q in it,
however small that part was.

*Differences from QR.* Columns may have the other sign. Where A Q is singular, QR completes the
basis by rounding; `panel_qr` needs columns that are independent to rounding, and `regularized`
makes them so: zero directions stay where they were.

*Cost.* `panel_qr` of an n x n matrix: 12 n^3 flops in products that fill a matrix unit (QR needs
8/3 n^3), and n sequential steps of a panel's size, thrice. Temporaries: two matrices.

*Reference.* Barlow and Smoktunowicz, Reorthogonalized block classical Gram-Schmidt, Numerische
Mathematik 123, 2013; Brent and Luk, The solution of singular-value and symmetric eigenvalue
problems on multiprocessor arrays, 1985 (the Jacobi method that XLA has).
"""

import jax
import jax.numpy as jnp
from jax.lax.linalg import EighImplementation


def eigh(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues (..., n), smallest first, and eigenvectors as columns of a symmetric a."""

    def found(
        a: jax.Array, implementation: EighImplementation | None = None
    ) -> tuple[jax.Array, jax.Array]:
        vectors, values = jax.lax.linalg.eigh(a, implementation=implementation)
        return values, vectors

    return jax.lax.platform_dependent(
        a, tpu=lambda a: found(a, EighImplementation.JACOBI), default=found
    )


def eigenbasis(a: jax.Array) -> jax.Array:
    """Orthonormal eigenvectors of a symmetric a (..., n, n) as columns, largest value first."""
    return eigh(a + 1e-30 * jnp.eye(a.shape[-1], dtype=a.dtype))[1][..., ::-1]


def orthonormalized(x: jax.Array, basis: jax.Array) -> jax.Array:
    """The Q of the QR of x = A basis (..., n, n), A symmetric and semidefinite; a TPU's own way."""
    return jax.lax.platform_dependent(
        x,
        basis,
        tpu=lambda x, basis: panel_qr(regularized(x, basis)),
        default=lambda x, basis: jnp.linalg.qr(x)[0],
    )


def panel_qr(x: jax.Array, width: int = 128) -> jax.Array:
    """The Q of QR of each matrix (..., m, n), m >= n, by panels of `width` columns.

    Args:
      x: columns independent to rounding.
      width: columns that are factored at a time; the matrix unit's width serves best.
    """
    if x.ndim > 2:
        return jax.vmap(lambda x: panel_qr(x, width))(x)
    count = x.shape[-1]
    rows = jnp.pad(x.mT, ((0, -count % width), (0, 0)))  # a TPU slices rows faster than columns

    def body(i: jax.Array, q: jax.Array) -> jax.Array:
        # Rows of x from here on have not been replaced: they are hidden from the projection.
        known = jnp.where(jnp.arange(len(q))[:, None] < i * width, q, 0)
        panel = jax.lax.dynamic_slice_in_dim(q, i * width, width)
        panel = jax.lax.fori_loop(0, 3, lambda _, p: _gram_schmidt(_beyond(p, known)), panel)
        return jax.lax.dynamic_update_slice_in_dim(q, panel, i * width, 0)

    return jax.lax.fori_loop(0, len(rows) // width, body, rows)[:count].mT


def _beyond(x: jax.Array, known: jax.Array) -> jax.Array:
    """The rows of x without their parts along the rows of `known`, orthonormal or zero."""
    overlap = jnp.matmul(x, known.mT, precision="highest")
    return x - jnp.matmul(overlap, known, precision="highest")


def _gram_schmidt(rows: jax.Array) -> jax.Array:
    """Orthonormal rows with the same leading spans, one row after another."""

    def body(i: jax.Array, q: jax.Array) -> jax.Array:
        known = jnp.where(jnp.arange(len(q))[:, None] < i, q, 0)
        row = jax.lax.dynamic_slice_in_dim(q, i, 1)
        for _ in range(2):
            row = _beyond(row, known)
            row = row / jnp.maximum(jnp.linalg.norm(row), jnp.finfo(row.dtype).tiny)
        return jax.lax.dynamic_update_slice_in_dim(q, row, i, 0)

    return jax.lax.fori_loop(0, len(rows), body, rows)


def regularized(x: jax.Array, basis: jax.Array) -> jax.Array:
    """x = A Q with A raised by its rounding, (A + delta I) Q, each column divided by its largest.

    A symmetric, positive semidefinite, Q orthonormal. Eigenvectors of A + delta I are those of A;
    the columns become independent even where A has no inverse, and A = 0 gives the span of Q.
    """
    largest = jnp.abs(x).max((-2, -1), keepdims=True)
    raised = x + (jnp.finfo(x.dtype).eps * largest + 1e-30) * basis
    return raised / jnp.abs(raised).max(-2, keepdims=True)
