"""Conjugate gradients on the normal equations A'A x = A'b, which are never formed.

With p = 0 at the start::

    s = A'r
    p = s + (s's / the previous s's) p
    alpha = s's / |A p|^2
    x = x + alpha p,   r = r - alpha A p

*Differences.* From the paper: it also stops where |s| <= 10 u m |r|, m the largest |A p| / |p| so
far and u the dtype's epsilon: x is then a least-squares solution of a system that has no other.

*Cost.* One product and one with the transpose a step, 5 vectors. The condition number is squared:
where A is symmetric and positive definite, `optim.cg` takes about the square root of the steps at
half the cost. For A without any symmetry whose `optim.gmres` needs too much memory.

*Reference.* Paige and Saunders, LSQR: an algorithm for sparse linear equations and sparse least
squares, 1982, section 7.1 (CGLS).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optim.solvers import linear
from optim.solvers.linear import axpy, divide, norm, vdot


def normal_cg(
    matvec: linear.Operator,
    b: Any,
    *,
    init: Any = None,
    preconditioner: linear.Operator | None = None,
    tolerance: ArrayLike = 1e-5,
    absolute_tolerance: ArrayLike = 0.0,
    max_steps: ArrayLike = 1000,
) -> tuple[Any, linear.SolveInfo]:
    """Solves A x = b by conjugate gradients on A'A x = A'b.

    Args:
      matvec: v -> A v on trees like b, that `jax.linear_transpose` can transpose.
      b: right-hand side, a pytree of floats.
      init: where x starts, a tree like b; zeros by default.
      preconditioner: None; it would have to be transposed as well.
      tolerance: norm of the residual to reach, relative to the norm of b.
      absolute_tolerance: norm of the residual that is small enough whatever b is.
      max_steps: most steps, of two products each.

    Returns:
      (x, info): x like b, and the `optim.SolveInfo` that tells whether it is a solution.

    Raises:
      ValueError: an argument is out of its range, b has a leaf that is not real and floating, or
        init, or what matvec gives, is not shaped as b is. Or a
        preconditioner is given.

    >>> import jax.numpy as jnp, optim
    >>> a = jnp.array([[4.0, 2.0], [0.0, 3.0]])
    >>> x, info = optim.normal_cg(lambda v: a @ v, jnp.array([8.0, 6.0]))
    >>> print(x.round(4), info.iterations, info.products, info.converged)
    [1. 2.] 2 5 True
    """
    linear.no_preconditioner("normal_cg", preconditioner)

    def cycle(product: linear.Operator, r: Any, goal: jax.Array, most: jax.Array) -> Any:
        rounding = linear.ROUNDING * jnp.finfo(goal.dtype).eps
        transpose = jax.linear_transpose(product, r)

        def goes_on(carry: Any) -> jax.Array:
            _, r, _, _, _, steps, descends = carry
            return (norm(r) > goal) & (steps < most) & descends

        def body(carry: Any) -> Any:
            d, r, p, gamma_old, largest, steps, _ = carry
            (s,) = transpose(r)
            gamma = vdot(s, s)
            p = axpy(divide(gamma, gamma_old), p, s)
            q = product(p)
            square = vdot(q, q)
            largest = jnp.maximum(largest, divide(jnp.sqrt(square), norm(p)))
            descends = jnp.sqrt(gamma) > rounding * largest * norm(r)
            alpha = jnp.where(descends, divide(gamma, square), 0)
            d, r = axpy(alpha, p, d), axpy(-alpha, q, r)
            return d, r, p, gamma, largest, steps + 1, descends

        zeros, zero = jax.tree.map(jnp.zeros_like, r), jnp.zeros_like(goal)
        start = (zeros, r, zeros, zero, zero, jnp.int32(0), jnp.bool_(True))
        d, *_, steps, descends = jax.lax.while_loop(goes_on, body, start)
        return d, steps, 2 * steps, descends

    return linear.solve(
        "normal_cg",
        matvec,
        b,
        cycle,
        init=init,
        tolerance=tolerance,
        absolute_tolerance=absolute_tolerance,
        max_steps=max_steps,
    )
