"""The dense solve: A column by column, in one batch of products, then its factors.

*Differences.* None.

*Cost.* As many products as there are unknowns n, and one for the residual; 2 n^3 / 3
multiplications; n^2 numbers for A, and what a batch of n products stores. For a few hundred
unknowns, or where a Krylov method takes more than about a third of n products, it is the faster.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optim.solvers import linear


def dense_solve(
    matvec: linear.Operator,
    b: Any,
    *,
    init: Any = None,
    preconditioner: linear.Operator | None = None,
    tolerance: ArrayLike = 1e-5,
    absolute_tolerance: ArrayLike = 0.0,
    max_steps: ArrayLike = 1,
) -> tuple[Any, linear.SolveInfo]:
    """Solves A x = b by Gaussian elimination.

    Args:
      matvec: v -> A v on trees like b, A square and regular.
      b: right-hand side, a pytree of floats.
      init: judged first, and the answer if it is within the tolerance; no start otherwise.
      preconditioner: None; there is nothing to hasten.
      tolerance: norm of the residual to reach, relative to the norm of b.
      absolute_tolerance: norm of the residual that is small enough whatever b is.
      max_steps: at least 1, which is all that is taken.

    Returns:
      (x, info): x like b, and the `optim.SolveInfo` that tells whether it is a solution.

    Raises:
      ValueError: an argument is out of its range, b has a leaf that is not real and floating, or
        init, or what matvec gives, is not shaped as b is. Or a
        preconditioner is given.

    >>> import jax.numpy as jnp, optim
    >>> a = jnp.array([[4.0, 2.0], [0.0, 3.0]])
    >>> x, info = optim.dense_solve(lambda v: a @ v, jnp.array([8.0, 6.0]))
    >>> print(x, info.iterations, info.products, info.converged)
    [1. 2.] 1 3 True
    """
    linear.no_preconditioner("dense_solve", preconditioner)

    def cycle(product: linear.Operator, r: Any, goal: jax.Array, most: jax.Array) -> Any:
        del most
        flat, unravel = linear.ravel(r)
        units = jnp.eye(flat.size, dtype=flat.dtype)
        a = jax.vmap(lambda unit: linear.ravel(product(unravel(unit)))[0], out_axes=1)(units)
        with jax.default_matmul_precision("highest"):
            return unravel(jnp.linalg.solve(a, flat)), 1, flat.size, False

    return linear.solve(
        "dense_solve",
        matvec,
        b,
        cycle,
        init=init,
        tolerance=tolerance,
        absolute_tolerance=absolute_tolerance,
        max_steps=max_steps,
    )
