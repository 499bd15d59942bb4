"""The projection onto a simplex in the Kullback-Leibler divergence, for mirror descent.

::

    y = argmin sum y log y - y - x y subject to y >= 0, sum y = s   =   s exp(x) / sum exp(x)

It is the y nearest to exp(x) in KL(y, exp(x)); a step of mirror descent from z against the gradient
g is the projection of log z - step g.

*Derivatives.* Those of softmax, of any order.

*Differences.* jaxopt has no such function, and writes softmax where its mirror descent needs it.

*Cost.* That of softmax.
"""

from typing import Any

import jax
from jax.typing import ArrayLike

from bilevel import checks
from bilevel.projections import arguments
from optim import trees
from optim.solvers import linear


def projection_simplex_kl(x: Any, scale: ArrayLike = 1.0) -> Any:
    """The y >= 0 with the sum `scale` that is nearest to exp(x) in relative entropy.

    Args:
      x: a pytree of real floats, logarithms; -inf for what must be zero.
      scale: s, at least 0; y is NaN for less.

    Raises:
      ValueError: x has a leaf that is not real and floating, or scale is negative or no number.

    >>> import bilevel, jax.numpy as jnp
    >>> y = bilevel.projection_simplex_kl(jnp.log(jnp.array([1.0, 3.0])), 2.0)
    >>> print(jnp.array_str(y, precision=3))
    [0.5 1.5]
    """
    method = "projection_simplex_kl"
    trees.check_at_least(method, 0, scale=scale)
    flat, unravel = linear.ravel(checks.floats(method, "x", x))
    s = arguments.array(method, "scale", scale, flat.dtype)
    return unravel(arguments.nan_unless(s >= 0, s * jax.nn.softmax(flat)))
