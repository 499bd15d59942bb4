"""MINRES: A symmetric, positive or not, one product a step.

The Lanczos process in the inner product of the preconditioner M gives v_k, alpha_k and beta_k with
A V_k = V_(k+1) T_k; reflections (c, s) turn the tridiagonal T_k into an upper triangle R_k::

    r_k = s_k^2 r_(k-1) - c_k phi_k v_(k+1),    phi_k = s_k phi_(k-1)
    x_k = x_(k-1) + c_k phi_(k-1) w_k,          W_k R_k = V_k

which makes |r_k|, in the norm of M, the least in the Krylov space.

*Differences.* From Paige and Saunders: (1) r_k is kept, since with a preconditioner phi_k is not
the norm by which b is judged. (2) Of their stopping rules there are the residual's, and for a
singular A without a solution that of |A r|: where it is below 10 u |A| |r|, u the dtype's epsilon,
or below 10 sqrt(u) |A| |r| and a step gains nothing, with c_k^2 <= 10 u. x is then about a
least-squares solution, and `converged` is False; later steps would only make x larger.

*Cost.* One product and one preconditioner a step, 8 vectors. Where A is positive definite it takes
no fewer steps than `optim.cg` takes to the same error, and stores more.

*Reference.* Paige and Saunders, Solution of sparse indefinite systems of linear equations, 1975.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optim.solvers import linear
from optim.solvers.linear import axpy, divide, norm, times, vdot


def minres(
    matvec: linear.Operator,
    b: Any,
    *,
    init: Any = None,
    preconditioner: linear.Operator | None = None,
    tolerance: ArrayLike = 1e-5,
    absolute_tolerance: ArrayLike = 0.0,
    max_steps: ArrayLike = 1000,
) -> tuple[Any, linear.SolveInfo]:
    """Solves A x = b with the least residual at every step.

    Args:
      matvec: v -> A v on trees like b, A symmetric.
      b: right-hand side, a pytree of floats.
      init: where x starts, a tree like b; zeros by default.
      preconditioner: r -> M r, about the solution of |A| z = r; M symmetric, positive definite.
      tolerance: norm of the residual to reach, relative to the norm of b.
      absolute_tolerance: norm of the residual that is small enough whatever b is.
      max_steps: most steps.

    Returns:
      (x, info): x like b, and the `optim.SolveInfo` that tells whether it is a solution.

    Raises:
      ValueError: an argument is out of its range, b has a leaf that is not real and floating, or
        init, or what matvec or preconditioner gives, is not shaped as b is.

    >>> import jax.numpy as jnp, optim
    >>> a = jnp.array([[0.0, 2.0], [2.0, 3.0]])
    >>> x, info = optim.minres(lambda v: a @ v, jnp.array([4.0, 4.0]))
    >>> print(x.round(4), info.iterations, info.products, info.converged)
    [-1.  2.] 2 3 True
    """
    precondition = linear.preconditioning("minres", preconditioner, b)

    def cycle(product: linear.Operator, r: Any, goal: jax.Array, most: jax.Array) -> Any:
        eps = float(jnp.finfo(goal.dtype).eps)
        rounding = linear.ROUNDING * eps

        def goes_on(c: dict[str, Any]) -> jax.Array:
            unfinished = (norm(c["r"]) > goal) & (c["steps"] < most) & (c["beta"] > 0)
            return unfinished & c["descends"]

        def body(c: dict[str, Any]) -> dict[str, Any]:
            v = times(divide(jnp.ones_like(goal), c["beta"]), c["z"])
            q = axpy(-divide(c["beta"], c["beta_old"]), c["q_old"], product(v))
            alpha = vdot(v, q)
            q = axpy(-divide(alpha, c["beta"]), c["q"], q)
            z = precondition(q)
            beta = jnp.sqrt(jnp.maximum(vdot(q, z), 0))
            # The column of T_k, under the two last reflections and then its own.
            delta = c["cos"] * c["bar"] + c["sin"] * alpha
            gamma_bar = c["sin"] * c["bar"] - c["cos"] * alpha
            epsilon, bar = c["sin"] * beta, -c["cos"] * beta
            gamma = jnp.hypot(gamma_bar, beta)
            cos, sin = divide(gamma_bar, gamma), divide(beta, gamma)
            phi = sin * c["phi"]
            w = axpy(-delta, c["w"], axpy(-c["epsilon"], c["w_old"], v))
            w = times(divide(jnp.ones_like(goal), gamma), w)
            largest = jnp.maximum(c["largest"], jnp.hypot(alpha, beta))
            slope = jnp.hypot(gamma_bar, bar)  # |A r| / |r| before this step
            steep = slope > linear.ROUNDING * eps**0.5 * largest
            descends = (slope > rounding * largest) & (steep | (cos * cos > rounding))
            taken = jnp.where(descends, 1, 0).astype(goal.dtype)
            return {
                "d": axpy(taken * cos * c["phi"], w, c["d"]),
                "r": axpy(-divide(cos * phi, beta), q, times(sin * sin, c["r"])),
                "q_old": c["q"],
                "q": q,
                "z": z,
                "w_old": c["w"],
                "w": w,
                "beta_old": c["beta"],
                "beta": beta,
                "cos": cos,
                "sin": sin,
                "bar": bar,
                "epsilon": epsilon,
                "phi": phi,
                "largest": largest,
                "descends": descends,
                "steps": c["steps"] + 1,
            }

        zeros, zero = jax.tree.map(jnp.zeros_like, r), jnp.zeros_like(goal)
        z = precondition(r)
        beta = jnp.sqrt(jnp.maximum(vdot(r, z), 0))
        start = {name: zeros for name in ("d", "q_old", "w_old", "w")}
        start |= {name: zero for name in ("beta_old", "sin", "bar", "epsilon", "largest")}
        start |= {"r": r, "q": r, "z": z, "beta": beta, "phi": beta, "cos": zero - 1}
        start |= {"steps": jnp.int32(0), "descends": jnp.bool_(True)}
        c = jax.lax.while_loop(goes_on, body, start)
        return c["d"], c["steps"], c["steps"], c["descends"]

    return linear.solve(
        "minres",
        matvec,
        b,
        cycle,
        init=init,
        tolerance=tolerance,
        absolute_tolerance=absolute_tolerance,
        max_steps=max_steps,
    )
