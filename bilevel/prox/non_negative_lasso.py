"""The operator of the l1 norm among numbers that are not negative.

With t = scaling * l1reg, number by number::

    y = argmin_{y >= 0} (y - x)^2 / 2 + t y = max(x - t, 0)

*Derivatives.* Of every order; there is none at x = t, where 0 is given.

*Differences.* From jaxopt: strengths may be trees.

*Cost.* One pass.

*Reference.* jaxopt 0.8.5, `prox_non_negative_lasso`.
"""

from typing import Any

import jax
from jax.typing import ArrayLike

from bilevel.prox import separable


def prox_non_negative_lasso(x: Any, l1reg: Any = 1.0, scaling: ArrayLike = 1.0) -> Any:
    """Subtracts scaling * l1reg from every number, and takes zero for what is negative then.

    Args:
      x: a pytree of real floats.
      l1reg: the strength, at least 0: a number, or a tree like x whose leaves broadcast to its.
      scaling: the step size, at least 0.

    Raises:
      ValueError: a number is negative, or a tree is not like x, or x is not of real floats.

    >>> import jax.numpy as jnp
    >>> from bilevel.prox.non_negative_lasso import prox_non_negative_lasso
    >>> print(prox_non_negative_lasso(jnp.array([3.0, 0.5, -2.0]), 1.0))
    [2. 0. 0.]
    """
    return separable.elementwise(
        "prox_non_negative_lasso",
        lambda x, scaling, l1reg: jax.nn.relu(x - scaling * l1reg),
        x,
        scaling,
        l1reg=l1reg,
    )
