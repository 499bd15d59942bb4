"""The projection onto the vectors of a simplex that have few numbers other than zero.

::

    y = argmin |y - x|^2 / 2 subject to y >= 0, sum y = s, at most k numbers of y not zero

The set is not convex, and a solution keeps the k largest numbers of x, which are projected onto the
simplex: with F those of them that stay positive::

    y_F = x_F - (sum x_F - s) / |F|

Of numbers that tie for the k-th place, the first is kept.

*Derivatives.* The last formula's, in x and s, as long as F stays; the second is zero. There is none
where two numbers tie for the k-th place or one of F is zero. At s = 0, y is zero and the derivative
that of a small s.

*Differences.* From jaxopt's `projection_sparse_simplex`: (1) trees; (2) the derivative in s is
right for every s, 0 included, where theirs divides by s; (3) no approximate search.

*Cost.* The k largest of n numbers.

*Reference.* Kyrillidis et al., Sparse projections onto the simplex, 2013.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel import checks
from bilevel.projections import arguments
from optim import trees
from optim.solvers import linear


def projection_sparse_simplex(x: Any, max_nonzeros: int, scale: ArrayLike = 1.0) -> Any:
    """A nearest y >= 0 with the sum `scale` and at most so many numbers that are not zero.

    Args:
      x: a pytree of real floats; -inf for what must be zero.
      max_nonzeros: k, from 1 to the size of x.
      scale: s, at least 0; y is NaN for less.

    Raises:
      ValueError: x has a leaf that is not real and floating, or a number is out of its range.

    >>> import bilevel, jax.numpy as jnp
    >>> print(bilevel.projection_sparse_simplex(jnp.array([0.5, 1.0, 0.75]), 2))
    [0.    0.625 0.375]
    """
    method = "projection_sparse_simplex"
    trees.check_at_least(method, 0, scale=scale)
    flat, unravel = linear.ravel(checks.floats(method, "x", x))
    s = arguments.array(method, "scale", scale, flat.dtype)
    if not 1 <= max_nonzeros <= flat.size:
        raise ValueError(
            f"{method}: max_nonzeros is {max_nonzeros}; accepted: 1 <= max_nonzeros <= {flat.size}."
        )
    flat = flat - jax.lax.stop_gradient(jnp.max(flat))
    largest, places = jax.lax.top_k(jax.lax.stop_gradient(flat), max_nonzeros)
    counts = jnp.arange(1, max_nonzeros + 1).astype(flat.dtype)
    positive = s + counts * largest - jnp.cumsum(largest) > 0
    size = jnp.maximum(jnp.count_nonzero(positive), 1)
    kept = jnp.zeros(flat.shape, bool).at[places].set(jnp.arange(max_nonzeros) < size)
    excess = jnp.sum(jnp.where(kept, flat, 0)) - s
    y = jnp.where(kept, flat - excess / size.astype(flat.dtype), 0)
    y = y + jax.lax.stop_gradient(jnp.maximum(y, 0) - y)
    return unravel(arguments.nan_unless(s >= 0, y))
