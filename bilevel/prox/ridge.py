"""The operator of the squared l2 norm: a shrinking factor.

With t = scaling * l2reg, number by number::

    y = argmin (y - x)^2 / 2 + t y^2 / 2 = x / (1 + t)

*Derivatives.* Of every order, everywhere.

*Differences.* From jaxopt: (1) its docstring lacks the half before y^2; its numbers are these.
(2) Strengths may be trees.

*Cost.* One pass.

*Reference.* jaxopt 0.8.5, `prox_ridge`.
"""

from typing import Any

from jax.typing import ArrayLike

from bilevel.prox import separable


def prox_ridge(x: Any, l2reg: Any = 1.0, scaling: ArrayLike = 1.0) -> Any:
    """Divides every number by 1 + scaling * l2reg.

    Args:
      x: a pytree of real floats.
      l2reg: the strength, at least 0: a number, or a tree like x whose leaves broadcast to its.
      scaling: the step size, at least 0.

    Raises:
      ValueError: a number is negative, or a tree is not like x, or x is not of real floats.

    >>> import jax.numpy as jnp
    >>> from bilevel.prox.ridge import prox_ridge
    >>> print(prox_ridge(jnp.array([3.0, -1.0]), 0.5, scaling=2.0))
    [ 1.5 -0.5]
    """
    return separable.elementwise(
        "prox_ridge", lambda x, scaling, l2reg: x / (1 + scaling * l2reg), x, scaling, l2reg=l2reg
    )
