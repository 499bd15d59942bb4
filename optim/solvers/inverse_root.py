"""Inverse p-th roots of symmetric positive semidefinite matrices, batched.

By eigenvalues, for any p > 0, with A + eps I = Q diag(w) Q'::

    A^(-1/p) = Q diag((w + s)^(-1/p)) Q',   s = eps - min(w) if min(w) < eps else 0

so that rounding below eps, or below zero, becomes eps. By the coupled Newton iteration, for a whole
p, products alone, with c = (p + 1) / (2 |A|) in the Frobenius norm::

    X = c^(1/p) I,   M = c A
    T = (1 + 1/p) I - M / p,   X = X T,   M = T^p M      until M = I

*Differences.* From Meta's code: (1) Newton's iteration adds no less than 4 u |A| to the diagonal,
u the dtype's epsilon: an eigenvalue below that may be negative by rounding, and from there the
iteration diverges. (2) A matrix also stops when it is near its root and no longer
comes nearer, since float32 does not always reach the tolerance; others of the batch go on.

*Cost and accuracy.* Eigenvalues: about 9 d^3 multiplications, few of them in products, slow on an
accelerator; on a TPU Jacobi's method, since a TPU's compiler takes minutes to hours over the other
from d = 1024 on. Newton: 3 + log2 p products of d^3 a step, 10 to 40 steps, more the worse the
condition. Of the result for an eigenvalue w, a part of about u |A| / w is wrong by eigenvalues, and
of 4 u |A| / (p w) by Newton: in float32, at a condition of 1e4, some 1e-4 and 1e-3. Directions
below u |A| are noise. Newton bounds it by (4 u |A|)^(-1/p); eigenvalues, as in the authors' code,
by eps^(-1/p) alone, for eps = 1e-12 and p = 4 by 1000; u times that is lost in all directions.

*Reference.* Guo and Higham, A Schur-Newton method for the matrix pth root and its inverse, 2006;
facebookresearch/optimizers@f60660661194, distributed_shampoo/preconditioner/matrix_functions.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax.linalg import EighImplementation
from jax.typing import ArrayLike

from optim import trees

METHODS = ("eigh", "newton")
_ROUNDING = 4  # what Newton adds to the diagonal at least, in units of u |A|
_NEAR = 1e-2  # of the identity, entry by entry: from there on Newton converges or rounds


def check(caller: str, p: float, method: str) -> None:
    """Raises ValueError on a root or a method that is not accepted."""
    if method not in METHODS:
        raise ValueError(f"{caller}: method is {method!r}; accepted: 'eigh', 'newton'.")
    if not p > 0 or (method == "newton" and _whole(p) is None):
        accepted = "p > 0" if method == "eigh" else "a whole p > 0"
        raise ValueError(f"{caller}: p is {p}; accepted by method {method!r}: {accepted}.")


def inverse_root(
    a: jax.Array,
    p: float,
    *,
    eps: ArrayLike = 1e-12,
    method: str = "eigh",
    max_steps: int = 100,
    tolerance: float = 1e-6,
) -> jax.Array:
    """(A + eps I)^(-1/p) of each matrix, in the dtype of a.

    Args:
      a: (..., d, d), symmetric.
      p: the root, positive; whole for "newton".
      eps: added to the diagonal, positive.
      method: "eigh" or "newton".
      max_steps: of Newton's iteration.
      tolerance: largest entry of M - I at which Newton stops.

    Raises:
      ValueError: p or method is not as said above.
    """
    check("inverse_root", p, method)
    eps = trees.as_dtype(eps, a.dtype)
    # An accelerator would round the factors of float32 products, which are what roots amplify.
    with jax.default_matmul_precision("highest"):
        if method == "eigh":
            return _by_eigenvalues(a, p, eps)
        return _by_newton(a, round(p), eps, max_steps, tolerance)


def _whole(p: float) -> int | None:
    """The whole number that p is but for rounding, as of 1 / 0.2."""
    return round(p) if p > 0 and abs(p - round(p)) < 1e-9 * p else None


def _by_eigenvalues(a: jax.Array, p: float, eps: jax.Array) -> jax.Array:
    def found(
        a: jax.Array, implementation: EighImplementation | None = None
    ) -> tuple[jax.Array, jax.Array]:
        q, w = jax.lax.linalg.eigh(a, implementation=implementation)
        return w, q

    # As for the bases in `optim.solvers.orthonormal`, whose vectors come without their values.
    w, q = jax.lax.platform_dependent(
        a + eps * jnp.eye(a.shape[-1], dtype=a.dtype),
        tpu=lambda a: found(a, EighImplementation.JACOBI),
        default=found,
    )
    least = w[..., :1]  # in ascending order
    w = jnp.where(least < eps, (w - least) + eps, w)
    return (q * (w ** (-1 / p))[..., None, :]) @ q.mT


def _by_newton(a: jax.Array, p: int, eps: jax.Array, max_steps: int, tolerance: float) -> jax.Array:
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)
    size = jnp.sqrt(jnp.sum(jnp.square(a), (-2, -1), keepdims=True))
    a = a + jnp.maximum(eps, _ROUNDING * jnp.finfo(a.dtype).eps * size) * eye
    scale = (p + 1) / (2 * jnp.sqrt(jnp.sum(jnp.square(a), (-2, -1), keepdims=True)))

    def distance(m: jax.Array) -> jax.Array:
        return jnp.abs(m - eye).max((-2, -1), keepdims=True)

    def goes_on(carry: Any) -> jax.Array:
        *_, moves, step = carry
        return moves.any() & (step < max_steps)

    def body(carry: Any) -> Any:
        x, m, error, moves, step = carry
        t = (1 + 1 / p) * eye - m / p
        new_m = jnp.linalg.matrix_power(t, p) @ m
        new_m = (new_m + new_m.mT) / 2
        new_error = distance(new_m)
        better = moves & ((error > _NEAR) | (new_error < error))
        x, m = jnp.where(better, x @ t, x), jnp.where(better, new_m, m)
        error = jnp.where(better, new_error, error)
        return x, m, error, better & (error > tolerance), step + 1

    x, m = scale ** (1 / p) * eye, scale * a
    error = distance(m)
    x, *_ = jax.lax.while_loop(goes_on, body, (x, m, error, error > tolerance, jnp.int32(0)))
    return (x + x.mT) / 2
