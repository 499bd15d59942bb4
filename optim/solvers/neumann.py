"""The Neumann series: x = x + step M (b - A x), as many times as asked.

From zeros and without a preconditioner M, K steps give step (I + B + ... + B^(K-1)) b with
B = I - step A: the truncated series of many bilevel methods, and what differentiating K steps of
gradient descent on a quadratic gives. It converges where all eigenvalues of B are inside the unit
circle: for symmetric A, where 0 < step A < 2; 2 / (least + largest eigenvalue) is the best step.

*Differences.* None; for K terms whatever the residual, `tolerance=0, max_steps=K`. Here x is the
limit, step times the sum, where some papers leave the factor out.

*Cost.* One product and one preconditioner a step, 2 vectors. About c log(1 / tolerance) / 2 steps
at a condition number c and the best step, where `optim.cg` takes its square root.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optim import trees
from optim.solvers import linear


def neumann(
    matvec: linear.Operator,
    b: Any,
    *,
    init: Any = None,
    preconditioner: linear.Operator | None = None,
    tolerance: ArrayLike = 1e-5,
    absolute_tolerance: ArrayLike = 0.0,
    max_steps: ArrayLike = 1000,
    step: ArrayLike = 1.0,
) -> tuple[Any, linear.SolveInfo]:
    """Solves A x = b by the Neumann series, which is Richardson's iteration.

    Args:
      matvec: v -> A v on trees like b, norm(I - step A) < 1.
      b: right-hand side, a pytree of floats.
      init: where x starts, a tree like b; zeros by default.
      preconditioner: r -> M r, about the solution of A z = r.
      tolerance: norm of the residual to reach, relative to the norm of b.
      absolute_tolerance: norm of the residual that is small enough whatever b is.
      max_steps: most steps, the terms of the series.
      step: factor of each term, positive.

    Returns:
      (x, info): x like b, and the `optim.SolveInfo` that tells whether it is a solution.

    Raises:
      ValueError: an argument is out of its range, b has a leaf that is not real and floating, or
        init, or what matvec or preconditioner gives, is not shaped as b is.

    >>> import jax.numpy as jnp, optim
    >>> a = jnp.array([[1.0, 0.0], [0.0, 0.5]])
    >>> x, info = optim.neumann(lambda v: a @ v, jnp.ones(2), tolerance=0, max_steps=3)
    >>> print(x, info.residual, info.iterations, info.products, info.converged)
    [1.   1.75] 0.125 3 3 False
    """
    trees.check_positive("neumann", step=step)
    precondition = linear.preconditioning("neumann", preconditioner, b)

    def cycle(product: linear.Operator, r: Any, goal: jax.Array, most: jax.Array) -> Any:
        del product, most  # the residual that follows each cycle is the next term
        return linear.times(trees.as_dtype(step, goal.dtype), precondition(r)), 1, 0, True

    return linear.solve(
        "neumann",
        matvec,
        b,
        cycle,
        init=init,
        tolerance=tolerance,
        absolute_tolerance=absolute_tolerance,
        max_steps=max_steps,
        falls=jnp.inf,
    )
