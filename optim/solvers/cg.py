"""Conjugate gradients: A symmetric and positive definite, one product a step.

With M the preconditioner, r = b - A x and p = 0 at the start::

    z = M r
    p = z + (r'z / the previous r'z) p
    alpha = r'z / p'A p
    x = x + alpha p,   r = r - alpha A p

*Differences.* From the textbook: (1) the residual is recomputed at the end, and the method is
started again where its own was too small (`optim.solvers.linear`). (2) It stops, with the x that it
has, where p'A p <= 10 u m p'p, m the largest |A p| / |p| so far and u the dtype's epsilon: A is
then indefinite, or singular to working precision. It stops likewise where r'M r <= 0.

*Cost.* One product and one preconditioner a step, 5 vectors. Steps for a relative residual of 1e-5:
at most about sqrt(c) (6 + log(c) / 4) for a condition number c, which is 840 at 1e4; float32 cannot
reach it far beyond that, whence the default of 1000 steps.

*Reference.* Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems, 1952.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optim.solvers import linear
from optim.solvers.linear import axpy, divide, norm, vdot


def cg(
    matvec: linear.Operator,
    b: Any,
    *,
    init: Any = None,
    preconditioner: linear.Operator | None = None,
    tolerance: ArrayLike = 1e-5,
    absolute_tolerance: ArrayLike = 0.0,
    max_steps: ArrayLike = 1000,
) -> tuple[Any, linear.SolveInfo]:
    """Solves A x = b by conjugate gradients.

    Several right-hand sides: `jax.vmap` over b; each has its own steps and its own report.

    Args:
      matvec: v -> A v on trees like b, A symmetric and positive definite.
      b: right-hand side, a pytree of floats.
      init: where x starts, a tree like b; zeros by default.
      preconditioner: r -> M r, about the solution of A z = r; M symmetric, positive definite.
      tolerance: norm of the residual to reach, relative to the norm of b.
      absolute_tolerance: norm of the residual that is small enough whatever b is.
      max_steps: most steps.

    Returns:
      (x, info): x like b, and the `optim.SolveInfo` that tells whether it is a solution.

    Raises:
      ValueError: an argument is out of its range, b has a leaf that is not real and floating, or
        init, or what matvec or preconditioner gives, is not shaped as b is.

    >>> import jax.numpy as jnp, optim
    >>> a = jnp.array([[4.0, 2.0], [2.0, 3.0]])
    >>> x, info = optim.cg(lambda v: a @ v, jnp.array([2.0, 5.0]))
    >>> print(x.round(4), info.iterations, info.products, info.converged)
    [-0.5  2. ] 2 3 True
    """
    precondition = linear.preconditioning("cg", preconditioner, b)

    def cycle(product: linear.Operator, r: Any, goal: jax.Array, most: jax.Array) -> Any:
        rounding = linear.ROUNDING * jnp.finfo(goal.dtype).eps

        def goes_on(carry: Any) -> jax.Array:
            _, r, _, _, _, steps, positive = carry
            return (norm(r) > goal) & (steps < most) & positive

        def body(carry: Any) -> Any:
            d, r, p, gamma_old, largest, steps, _ = carry
            z = precondition(r)
            gamma = vdot(r, z)
            p = axpy(divide(gamma, gamma_old), p, z)
            q = product(p)
            curvature, square = vdot(p, q), vdot(p, p)
            largest = jnp.maximum(largest, jnp.sqrt(divide(vdot(q, q), square)))
            noise = rounding * largest * square
            positive = (curvature > noise) & (gamma > 0)
            alpha = jnp.where(positive, divide(gamma, curvature), 0)
            d, r = axpy(alpha, p, d), axpy(-alpha, q, r)
            return d, r, p, gamma, largest, steps + 1, positive

        zeros, zero = jax.tree.map(jnp.zeros_like, r), jnp.zeros_like(goal)
        start = (zeros, r, zeros, zero, zero, jnp.int32(0), jnp.bool_(True))
        d, *_, steps, positive = jax.lax.while_loop(goes_on, body, start)
        return d, steps, steps, positive

    return linear.solve(
        "cg",
        matvec,
        b,
        cycle,
        init=init,
        tolerance=tolerance,
        absolute_tolerance=absolute_tolerance,
        max_steps=max_steps,
    )
