"""The operator of the l2 norm, not squared: a whole tree is shrunk, or is zero.

With t = scaling * l2reg::

    y = argmin |y - x|^2 / 2 + t |y| = (1 - t / |x|) x where |x| >= t, else 0

*Derivatives.* Of every order; there is none at |x| = t, where that of the shrunken side is given.

*Differences.* From jaxopt, whose derivative at x = 0 is NaN; here it is 0, which it is for t > 0,
and 1 for t = 0.

*Cost.* Two passes.

*Reference.* Yuan and Lin, 2006; jaxopt 0.8.5, `prox_group_lasso`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel.prox import separable
from optim import trees
from optim.solvers import linear


def prox_group_lasso(x: Any, l2reg: ArrayLike = 1.0, scaling: ArrayLike = 1.0) -> Any:
    """Shortens the tree by scaling * l2reg, or makes it zero if it is not as long.

    Several groups, such as the rows of a matrix: `jax.vmap`.

    Args:
      x: a pytree of real floats, one group.
      l2reg: the strength, at least 0, a number.
      scaling: the step size, at least 0.

    Raises:
      ValueError: a number is negative or none, or x is not of real floats.

    >>> import jax.numpy as jnp
    >>> from bilevel.prox.group_lasso import prox_group_lasso
    >>> print(prox_group_lasso({"w": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}, 1.0))
    {'b': Array(3.2, dtype=float32), 'w': Array([2.4, 0. ], dtype=float32)}
    """
    trees.check_at_least("prox_group_lasso", 0, l2reg=l2reg, scaling=scaling)
    if jnp.shape(l2reg) != ():
        raise ValueError(
            f"prox_group_lasso: l2reg has the shape {jnp.shape(l2reg)}; accepted: a number."
        )
    flat, unravel = linear.ravel(separable.checked("prox_group_lasso", x))
    t = trees.as_dtype(l2reg, flat.dtype) * trees.as_dtype(scaling, flat.dtype)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(flat), initial=0))
    # Squares of a scaled vector neither overflow nor vanish.
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    square = jnp.sum(jnp.square(flat / unit))
    norm = unit * jnp.sqrt(jnp.where(largest == 0, 1, square))
    short = jnp.where(largest == 0, t > 0, norm < t)
    return unravel(jnp.where(short, 0, 1 - t / norm) * flat)
