"""The operator of the squared l2 norm among numbers that are not negative.

With t = scaling * l2reg, number by number::

    y = argmin_{y >= 0} (y - x)^2 / 2 + t y^2 / 2 = max(x, 0) / (1 + t)

*Derivatives.* Of every order; there is none at x = 0, where 0 is given.

*Differences.* From jaxopt: (1) its docstring lacks the half before y^2; its numbers are these.
(2) Strengths may be trees.

*Cost.* One pass.

*Reference.* jaxopt 0.8.5, `prox_non_negative_ridge`.
"""

from typing import Any

import jax
from jax.typing import ArrayLike

from bilevel.prox import separable


def prox_non_negative_ridge(x: Any, l2reg: Any = 1.0, scaling: ArrayLike = 1.0) -> Any:
    """Divides every number by 1 + scaling * l2reg, and takes zero for what is negative.

    Args:
      x: a pytree of real floats.
      l2reg: the strength, at least 0: a number, or a tree like x whose leaves broadcast to its.
      scaling: the step size, at least 0.

    Raises:
      ValueError: a number is negative, or a tree is not like x, or x is not of real floats.

    >>> import jax.numpy as jnp
    >>> from bilevel.prox.non_negative_ridge import prox_non_negative_ridge
    >>> print(prox_non_negative_ridge(jnp.array([3.0, -1.0]), 0.5))
    [2. 0.]
    """
    return separable.elementwise(
        "prox_non_negative_ridge",
        lambda x, scaling, l2reg: jax.nn.relu(x) / (1 + scaling * l2reg),
        x,
        scaling,
        l2reg=l2reg,
    )
