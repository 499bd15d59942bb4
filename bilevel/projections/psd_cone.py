"""The projection onto the symmetric positive semi-definite matrices.

With the eigenvalues l and eigenvectors V of the symmetric part of X::

    Y = argmin |Y - X|^2 / 2 subject to Y symmetric, Y >= 0   =   V max(l, 0) V'

*Derivatives.* In the basis V, by divided differences of max(l, 0), which are bounded, and need no
care where eigenvalues repeat::

    (V' dY V)_ij = D_ij (V' dX V)_ij,   D_ij = (max(l_i, 0) + max(l_j, 0)) / (|l_i| + |l_j|)

They are what solves the linearised conditions (2 Y - X) dY + dY (2 Y - X) = Y dX + dX Y of
Y (Y - X) = 0, and as such are differentiated again, to any order. There is no derivative where an
eigenvalue is zero; the one given takes it as negative.

*Differences.* jaxopt has no such function. The derivative of `jnp.linalg.eigh` divides by
l_i - l_j, and is NaN where eigenvalues repeat.

*Cost.* One eigendecomposition; four matrix products for each derivative.

*Reference.* Malick and Sendov, Clarke generalized Jacobian of the projection onto the cone of
positive semidefinite matrices, Set-Valued Analysis, 2006.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import optim
from bilevel.differentiation.implicit import attach_root
from bilevel.projections import arguments


def projection_psd_cone(x: ArrayLike) -> jax.Array:
    """The nearest symmetric matrix without a negative eigenvalue.

    Args:
      x: (n, n), real floats; what is not symmetric in it is dropped.

    Raises:
      ValueError: x is no square matrix of real floats.

    >>> import bilevel, jax.numpy as jnp
    >>> y = bilevel.projection_psd_cone(jnp.array([[0.0, 2.0], [2.0, 0.0]]))
    >>> print(jnp.array_str(y, precision=3))
    [[1. 1.]
     [1. 1.]]
    """
    method = "projection_psd_cone"
    x, given = arguments.point(method, "x", x, None, None)
    x = arguments.array(method, "x", x, x.dtype, len(x), len(x))
    x = (x + x.T) / 2
    values, v = jnp.linalg.eigh(jax.lax.stop_gradient(x))
    sizes = jnp.abs(values)[:, None] + jnp.abs(values)

    def conditions(y: jax.Array, x: jax.Array) -> jax.Array:
        return y @ (y - x) + (y - x) @ y

    def solve(matvec: Any, b: jax.Array, *, preconditioner: Any) -> tuple[Any, optim.SolveInfo]:
        del matvec, preconditioner  # the operator is (2 Y - X) dY + dY (2 Y - X), diagonal here
        zero = jnp.zeros((), jnp.int32)
        dy = jnp.where(sizes > 0, b / jnp.where(sizes > 0, sizes, 1), 0)
        return dy, optim.SolveInfo(zero.astype(b.dtype), zero, zero, jnp.bool_(True))

    with jax.default_matmul_precision("highest"):
        rotated = v.T @ x @ v
        # Diagonal to the last digit, so that small eigenvalues are not lost beside large ones.
        rotated = jnp.diag(values) + (rotated - jax.lax.stop_gradient(rotated))
        y = jnp.diag(jnp.maximum(values, 0))
        y = attach_root(conditions, y, rotated, symmetric=True, solve=solve)
        y = v @ y @ v.T
    return ((y + y.T) / 2).astype(given)
