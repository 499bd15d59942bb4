"""The projection onto the doubly stochastic matrices.

::

    P = argmin |P - X|^2 / 2 subject to P >= 0, P 1 = 1, P' 1 = 1

That is `projection_transport` with sums of one; how it converges, its derivatives and its cost are
told there.

*Differences.* From jaxopt's `projection_birkhoff`, those of `projection_transport`. For its
`kl_projection_birkhoff`, call `projection_transport_kl` with ones.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel.projections import arguments
from bilevel.projections.transport import projection_transport


def projection_birkhoff(
    x: ArrayLike, *, tolerance: ArrayLike | None = None, max_steps: ArrayLike = 1000
) -> jax.Array:
    """The nearest matrix of numbers >= 0 whose rows and columns each sum to one.

    Args:
      x: (n, n), real floats.
      tolerance: largest error of a sum; None for 100 units of rounding.
      max_steps: after so many steps without that, the answer is NaN.

    Raises:
      ValueError: x is no square matrix of real floats, or a number is out of its range.

    >>> import bilevel, jax.numpy as jnp
    >>> print(bilevel.projection_birkhoff(jnp.array([[2.0, 0.0], [0.5, 0.5]])))
    [[1. 0.]
     [0. 1.]]
    """
    method = "projection_birkhoff"
    wide, given = arguments.point(method, "x", x, None, None)
    arguments.array(method, "x", x, wide.dtype, len(wide), len(wide))
    ones = jnp.ones(len(wide), wide.dtype)
    plan = projection_transport(wide, ones, ones, tolerance=tolerance, max_steps=max_steps)
    return plan.astype(given)
