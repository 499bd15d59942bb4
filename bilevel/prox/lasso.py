"""The operator of the l1 norm: soft thresholding.

With t = scaling * l1reg, number by number::

    y = argmin (y - x)^2 / 2 + t |y| = x - t sign(x) where |x| >= t, else 0

*Derivatives.* Of every order. At |x| = t, where there is none, that of the shrunken side: so t = 0
has the derivative of the identity, at x = 0 too.

*Differences.* From jaxopt: (1) its derivative at x = 0 is 0 for t = 0. (2) A strength that is an
array is taken for a tree of any structure; here it must be a number or have the structure of x.

*Cost.* One pass.

*Reference.* Donoho and Johnstone, 1994; jaxopt 0.8.5, `prox_lasso`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel.prox import separable


def prox_lasso(x: Any, l1reg: Any = 1.0, scaling: ArrayLike = 1.0) -> Any:
    """Shrinks every number towards zero by scaling * l1reg.

    Args:
      x: a pytree of real floats.
      l1reg: the strength, at least 0: a number, or a tree like x whose leaves broadcast to its.
      scaling: the step size, at least 0.

    Raises:
      ValueError: a number is negative, or a tree is not like x, or x is not of real floats.

    >>> import jax.numpy as jnp
    >>> from bilevel.prox.lasso import prox_lasso
    >>> print(prox_lasso(jnp.array([3.0, -0.5, -2.0]), 1.0))
    [ 2.  0. -1.]
    """
    return separable.elementwise("prox_lasso", _shrink, x, scaling, l1reg=l1reg)


def _shrink(x: jax.Array, scaling: jax.Array, l1reg: jax.Array) -> jax.Array:
    t = scaling * l1reg
    return jnp.where(jnp.abs(x) < t, 0, x - jnp.where(x < 0, -t, t))
