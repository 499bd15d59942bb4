"""GMRES: any A without its transpose, one product a step, a memory of `restart` vectors.

From V_1 = r / |r|, Arnoldi's process gives A M V_k = V_(k+1) H_k with V orthonormal and M the
preconditioner; rotations Q turn H_k into an upper triangle R_k, and::

    |r_k| = |r| |(Q e_1)_(k+1)|,   y = R_k^-1 (|r| Q e_1)_(1..k),   x = x + M V_k y

is the least residual in the space. After `restart` steps all starts anew from the x that it has.

*Differences.* From Saad and Schultz: (1) preconditioned from the right, so that r is the residual
of A x = b. (2) Each vector is made orthogonal to the others twice, by products with all of them at
once, which is as good as Householder's way and fast on an accelerator. (3) Q is stored, so that a
column is rotated by one product. jax.scipy's looks at the residual between cycles alone, and so
always spends whole cycles.

*Cost.* One product and one preconditioner a step; at step k 4 k inner products or updates of
vectors; `restart` + 3 vectors. Restarted, it may stand still where A is indefinite, and says so.

*Reference.* Saad and Schultz, GMRES: a generalized minimal residual algorithm for solving
nonsymmetric linear systems, 1986; Giraud, Langou, Rozloznik and van den Eshof, Rounding error
analysis of the classical Gram-Schmidt orthogonalization process, 2005.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optim import trees
from optim.solvers import linear
from optim.solvers.linear import divide, norm, times

HIGHEST = jax.lax.Precision.HIGHEST


def gmres(
    matvec: linear.Operator,
    b: Any,
    *,
    init: Any = None,
    preconditioner: linear.Operator | None = None,
    tolerance: ArrayLike = 1e-5,
    absolute_tolerance: ArrayLike = 0.0,
    max_steps: ArrayLike = 1000,
    restart: int = 30,
) -> tuple[Any, linear.SolveInfo]:
    """Solves A x = b by the generalised minimal residual method.

    Args:
      matvec: v -> A v on trees like b, A square and regular.
      b: right-hand side, a pytree of floats.
      init: where x starts, a tree like b; zeros by default.
      preconditioner: r -> M r, about the solution of A z = r.
      tolerance: norm of the residual to reach, relative to the norm of b.
      absolute_tolerance: norm of the residual that is small enough whatever b is.
      max_steps: most steps.
      restart: steps of a cycle, and vectors stored.

    Returns:
      (x, info): x like b, and the `optim.SolveInfo` that tells whether it is a solution.

    Raises:
      ValueError: an argument is out of its range, b has a leaf that is not real and floating, or
        init, or what matvec or preconditioner gives, is not shaped as b is.

    >>> import jax.numpy as jnp, optim
    >>> a = jnp.array([[4.0, 2.0], [0.0, 3.0]])
    >>> x, info = optim.gmres(lambda v: a @ v, jnp.array([8.0, 6.0]))
    >>> print(x.round(4), info.iterations, info.products, info.converged)
    [1. 2.] 2 3 True
    """
    trees.check_at_least("gmres", 1, restart=restart)
    precondition = linear.preconditioning("gmres", preconditioner, b)
    size = min(restart, max(1, sum(jnp.size(leaf) for leaf in jax.tree.leaves(b))))

    def cycle(product: linear.Operator, r: Any, goal: jax.Array, most: jax.Array) -> Any:
        dtype, first = goal.dtype, norm(r)
        rounding = linear.ROUNDING * jnp.finfo(dtype).eps

        def goes_on(carry: Any) -> jax.Array:
            _, _, q, k, regular = carry
            left = first * jnp.abs(q[k, 0])
            return (left > goal) & (k < jnp.minimum(size, most)) & regular

        def body(carry: Any) -> Any:
            basis, triangle, q, k, _ = carry
            w = product(precondition(jax.tree.map(lambda v: v[k], basis)))
            before = norm(w)
            column = jnp.zeros(size + 1, dtype)
            for _ in range(2):
                part = project(basis, w)
                column, w = column + part, jax.tree.map(jnp.subtract, w, combine(part, basis))
            after = norm(w)
            after = jnp.where(after > rounding * before, after, 0)
            w = times(divide(jnp.ones_like(after), after), w)
            basis = jax.tree.map(lambda v, new: v.at[k + 1].set(new), basis, w)
            column = jnp.matmul(q, column.at[k + 1].set(after), precision=HIGHEST)
            length = jnp.hypot(column[k], column[k + 1])
            cos, sin = divide(column[k], length), divide(column[k + 1], length)
            rows = cos * q[k] + sin * q[k + 1], cos * q[k + 1] - sin * q[k]
            column = column.at[k].set(length).at[k + 1].set(0)
            regular = length > rounding * before
            # Without a pivot the step adds nothing, and the residual stays as it was.
            q = jnp.where(regular, q.at[k].set(rows[0]).at[k + 1].set(rows[1]), q)
            triangle = triangle.at[:, k].set(jnp.where(regular, column[:size], triangle[:, k]))
            return basis, triangle, q, k + 1, regular

        basis = jax.tree.map(lambda v: jnp.zeros((size + 1, *v.shape), v.dtype).at[0].set(v), r)
        basis = times(divide(jnp.ones_like(first), first), basis)
        start = (basis, jnp.eye(size, dtype=dtype), jnp.eye(size + 1, dtype=dtype))
        carry = (*start, jnp.int32(0), jnp.bool_(True))
        basis, triangle, q, k, regular = jax.lax.while_loop(goes_on, body, carry)
        used = jnp.arange(size, dtype=k.dtype) < jnp.where(regular, k, k - 1)
        with jax.default_matmul_precision("highest"):
            y = jax.scipy.linalg.solve_triangular(triangle, jnp.where(used, first * q[:size, 0], 0))
        d = precondition(combine(jnp.append(y, jnp.zeros(1, dtype)), basis))
        return d, k, k, regular

    return linear.solve(
        "gmres",
        matvec,
        b,
        cycle,
        init=init,
        tolerance=tolerance,
        absolute_tolerance=absolute_tolerance,
        max_steps=max_steps,
        falls=1.0,
    )


def project(basis: Any, w: Any) -> jax.Array:
    """The inner product of w with each vector of the basis, which are stacked."""
    parts = [
        jnp.tensordot(v, u, axes=u.ndim, precision=HIGHEST)
        for v, u in zip(jax.tree.leaves(basis), jax.tree.leaves(w), strict=True)
    ]
    dtype = trees.accumulator_dtype(*parts)
    return sum((part.astype(dtype) for part in parts[1:]), start=parts[0].astype(dtype))


def combine(weights: jax.Array, basis: Any) -> Any:
    """The sum of the basis' vectors with these weights."""
    return jax.tree.map(
        lambda v: jnp.tensordot(weights.astype(v.dtype), v, axes=1, precision=HIGHEST), basis
    )
