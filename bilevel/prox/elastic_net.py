"""The operator of the elastic net: soft thresholding, then a shrinking factor.

With (l1reg, gamma) = hyperparams and t = scaling * l1reg, number by number::

    y = argmin (y - x)^2 / 2 + t (|y| + gamma y^2 / 2)
      = (x - t sign(x)) / (1 + t gamma) where |x| >= t, else 0

*Derivatives.* Of every order; there is none at |x| = t, where that of the shrunken side is given.

*Differences.* From jaxopt: (1) there a strength that is no Python float, such as 1 or a traced
number, is an error for trees. (2) As for `prox_lasso`.

*Cost.* One pass.

*Reference.* Zou and Hastie, 2005; jaxopt 0.8.5, `prox_elastic_net`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel.prox import separable


def prox_elastic_net(
    x: Any, hyperparams: tuple[Any, Any] = (1.0, 1.0), scaling: ArrayLike = 1.0
) -> Any:
    """Shrinks every number towards zero, by a constant and by a factor.

    Args:
      x: a pytree of real floats.
      hyperparams: (l1reg, gamma), at least 0: numbers, or trees like x whose leaves broadcast to
        its.
      scaling: the step size, at least 0.

    Raises:
      ValueError: a number is negative, or a tree is not like x, or x is not of real floats.

    >>> import jax.numpy as jnp
    >>> from bilevel.prox.elastic_net import prox_elastic_net
    >>> print(prox_elastic_net(jnp.array([3.0, -0.5, -2.0]), (1.0, 1.0)))
    [ 1.   0.  -0.5]
    """
    l1reg, gamma = hyperparams
    return separable.elementwise("prox_elastic_net", _shrink, x, scaling, l1reg=l1reg, gamma=gamma)


def _shrink(x: jax.Array, scaling: jax.Array, l1reg: jax.Array, gamma: jax.Array) -> jax.Array:
    t = scaling * l1reg
    return jnp.where(jnp.abs(x) < t, 0, (x - jnp.where(x < 0, -t, t)) / (1 + t * gamma))
