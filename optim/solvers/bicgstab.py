"""BiCGSTAB: any A without its transpose, two products a step, little memory.

With M the preconditioner, r^ = r = b - A x, p = v = 0 and rho = alpha = omega = 1 at the start::

    beta = (r^'r / rho) (alpha / omega),   rho = r^'r
    p = r + beta (p - omega v),   v = A M p,   alpha = rho / r^'v
    s = r - alpha v,              t = A M s,   omega = t's / t't
    x = x + alpha M p + omega M s,             r = s - omega t

*Differences.* From the paper: (1) Where rho, r^'v or t's vanish, below 10 u times the norms with u
the dtype's epsilon, it starts again with r^ the residual that it has, so long as that has halved.
(2) It is preconditioned from the right, so that r is the residual of A x = b. (3) It stops where
|r| is 1 / u times what it was: nothing of x is right then.

*Cost.* Two products and two preconditioners a step, 7 vectors. No quantity falls for certain: on
matrices that are nearly skew or indefinite it may fail, and says so; `optim.gmres` then will not.

*Reference.* van der Vorst, Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG, 1992.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optim.solvers import linear
from optim.solvers.linear import axpy, divide, norm, vdot


def bicgstab(
    matvec: linear.Operator,
    b: Any,
    *,
    init: Any = None,
    preconditioner: linear.Operator | None = None,
    tolerance: ArrayLike = 1e-5,
    absolute_tolerance: ArrayLike = 0.0,
    max_steps: ArrayLike = 1000,
) -> tuple[Any, linear.SolveInfo]:
    """Solves A x = b by stabilised bi-conjugate gradients.

    Args:
      matvec: v -> A v on trees like b, A square and regular.
      b: right-hand side, a pytree of floats.
      init: where x starts, a tree like b; zeros by default.
      preconditioner: r -> M r, about the solution of A z = r.
      tolerance: norm of the residual to reach, relative to the norm of b.
      absolute_tolerance: norm of the residual that is small enough whatever b is.
      max_steps: most steps, of two products each.

    Returns:
      (x, info): x like b, and the `optim.SolveInfo` that tells whether it is a solution.

    Raises:
      ValueError: an argument is out of its range, b has a leaf that is not real and floating, or
        init, or what matvec or preconditioner gives, is not shaped as b is.

    >>> import jax.numpy as jnp, optim
    >>> a = jnp.array([[4.0, 2.0], [0.0, 3.0]])
    >>> x, info = optim.bicgstab(lambda v: a @ v, jnp.array([8.0, 6.0]))
    >>> print(x.round(4), info.iterations, info.products, info.converged)
    [1. 2.] 2 5 True
    """
    precondition = linear.preconditioning("bicgstab", preconditioner, b)

    def cycle(product: linear.Operator, r: Any, goal: jax.Array, most: jax.Array) -> Any:
        eps = jnp.finfo(goal.dtype).eps
        shadow, first = r, norm(r)

        def vanishes(inner: jax.Array, x: Any, y: Any) -> jax.Array:
            return ~(jnp.abs(inner) > linear.ROUNDING * eps * norm(x) * norm(y))

        def goes_on(carry: Any) -> jax.Array:
            _, r, *_, steps, broken = carry
            size = norm(r)
            return (size > goal) & (size < first / eps) & (steps < most) & ~broken

        def body(carry: Any) -> Any:
            d, r, p, v, rho_old, alpha, omega, steps, _ = carry
            rho = vdot(shadow, r)
            beta = divide(rho, rho_old) * divide(alpha, omega)
            p = axpy(beta, axpy(-omega, v, p), r)
            p_hat = precondition(p)
            v = product(p_hat)
            against = vdot(shadow, v)
            no_alpha = vanishes(rho, shadow, r) | vanishes(against, shadow, v)
            alpha = jnp.where(no_alpha, 0, divide(rho, against))
            s = axpy(-alpha, v, r)
            s_hat = precondition(s)
            t = product(s_hat)
            inner = vdot(t, s)
            omega = divide(inner, vdot(t, t))
            d = axpy(omega, s_hat, axpy(alpha, p_hat, d))
            broken = no_alpha | vanishes(inner, t, s)
            return d, axpy(-omega, t, s), p, v, rho, alpha, omega, steps + 1, broken

        zeros, one = jax.tree.map(jnp.zeros_like, r), jnp.ones_like(goal)
        start = (zeros, r, zeros, zeros, one, one, one, jnp.int32(0), jnp.bool_(False))
        d, *_, steps, _ = jax.lax.while_loop(goes_on, body, start)
        return d, steps, 2 * steps, jnp.bool_(True)

    return linear.solve(
        "bicgstab",
        matvec,
        b,
        cycle,
        init=init,
        tolerance=tolerance,
        absolute_tolerance=absolute_tolerance,
        max_steps=max_steps,
    )
