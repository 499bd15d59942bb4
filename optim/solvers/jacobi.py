"""Jacobi's preconditioner: the residual over the diagonal of A."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optim import trees
from optim.solvers import linear


def jacobi_preconditioner(diagonal: Any, *, damping: ArrayLike = 0.0) -> linear.Operator:
    """z = r / (|diagonal| + damping), and z = r where that is zero.

    It helps where the unknowns have different units, and little otherwise. An estimate of the
    diagonal may be negative where A is positive; the absolute value keeps the preconditioner
    positive, as `optim.cg` and `optim.minres` need it.

    Args:
      diagonal: of A, a tree like the right-hand side.
      damping: added to it, at least 0.

    Raises:
      ValueError: damping is a negative number.

    >>> import jax.numpy as jnp, optim
    >>> precondition = optim.jacobi_preconditioner({"w": jnp.array([2.0, -4.0, 0.0])})
    >>> print(precondition({"w": jnp.ones(3)})["w"])
    [0.5  0.25 1.  ]
    """
    trees.check_at_least("jacobi_preconditioner", 0, damping=damping)

    def inverse(entry: ArrayLike) -> jax.Array:
        entry = trees.as_dtype(entry, trees.accumulator_dtype(entry))
        size = jnp.abs(entry) + trees.as_dtype(damping, entry.dtype)
        return jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 1)

    weights = jax.tree.map(inverse, diagonal)

    def precondition(r: Any) -> Any:
        linear.like("jacobi_preconditioner", "the residual is", r, diagonal)
        return jax.tree.map(lambda w, x: w * x.astype(w.dtype), weights, r)

    return precondition
