"""The preconditioner of L-BFGS: the inverse of A from pairs of steps and their products.

For pairs s_i, y_i, about A s_i, of the steps that some method took, newest last::

    q = r;   from the newest:  a_i = s_i'q / s_i'y_i,  q = q - a_i y_i
    z = (s'y / y'y of the newest) q
    from the oldest:  z = z + (a_i - y_i'z / s_i'y_i) s_i

*Differences.* A pair with s'y <= 0, as an empty place of a history has, is left out, so that the
preconditioner stays positive.

*Cost.* No product; 2 m vectors for m pairs, and 4 m inner products or updates a call.

*Reference.* Nocedal, Updating quasi-Newton matrices with limited storage, 1980; Morales and
Nocedal, Automatic preconditioning by limited memory quasi-Newton updating, 2000.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optim import trees
from optim.solvers import linear
from optim.solvers.linear import axpy, divide, times, vdot


def lbfgs_preconditioner(s: Any, y: Any) -> linear.Operator:
    """z = H r with H the L-BFGS matrix of a history.

    Args:
      s: steps, a tree like the right-hand side whose leaves have a leading axis of m, oldest first.
      y: the differences of the gradient, or the products A s, alike.

    Raises:
      ValueError: s and y have not one structure and shape, or s no leading axis.

    >>> import jax.numpy as jnp, optim
    >>> a = jnp.diag(jnp.array([4.0, 2.0]))
    >>> s = jnp.eye(2)
    >>> print(optim.lbfgs_preconditioner(s, s @ a)(jnp.array([4.0, 4.0])))
    [1. 2.]
    """
    s = trees.promote(linear.floats("lbfgs_preconditioner", s))
    y = trees.promote(linear.like("lbfgs_preconditioner", "y is", y, s))
    for leaf in jax.tree.leaves(s):
        if leaf.ndim == 0:
            raise ValueError(
                "lbfgs_preconditioner: s has a leaf without axes; accepted: leaves with a leading "
                "axis, one entry a pair."
            )
    curvature, square = jax.vmap(vdot)(s, y), jax.vmap(vdot)(y, y)
    valid = curvature > 0
    newest = jnp.max(jnp.where(valid, jnp.arange(valid.size), -1), initial=-1)
    scale = jnp.where(newest < 0, 1, jnp.where(valid, curvature / square, 0)[newest])
    curvature = jnp.where(valid, curvature, 0)

    def precondition(r: Any) -> Any:
        def newest_first(q: Any, pair: Any) -> tuple[Any, jax.Array]:
            s, y, curvature = pair
            a = divide(vdot(s, q), curvature)
            return axpy(-a, y, q), a

        def oldest_first(z: Any, pair: Any) -> tuple[Any, None]:
            s, y, curvature, a = pair
            return axpy(a - divide(vdot(y, z), curvature), s, z), None

        pairs = (s, y, curvature)
        q, a = jax.lax.scan(newest_first, trees.promote(r), pairs, reverse=True)
        return jax.lax.scan(oldest_first, times(scale, q), (*pairs, a))[0]

    return precondition
