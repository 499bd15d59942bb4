"""The operator of a set's indicator: the projection onto it, whatever the step.

*Derivatives.* The projection's.

*Differences.* From jaxopt's `make_prox_from_projection`: projections there take one argument beside
x, here as in optax several, so that `hyperparams` is their tuple.

*Cost.* The projection's.
"""

from collections.abc import Callable
from typing import Any

from jax.typing import ArrayLike


def prox_from_projection(projection: Callable[..., Any]) -> Callable[..., Any]:
    """The projection in the form prox(x, hyperparams, scaling) that proximal methods call.

    Args:
      projection: of (x, *hyperparams), from here, from `optax.projections`, or your own.

    Returns:
      (x, hyperparams=(), scaling=1.0) -> projection(x, *hyperparams). It raises ValueError on
      hyperparams that are no tuple.

    >>> import jax.numpy as jnp, optax
    >>> from bilevel.prox.from_projection import prox_from_projection
    >>> prox = prox_from_projection(optax.projections.projection_box)
    >>> print(prox(jnp.array([3.0, 0.5]), (0.0, 1.0), 0.1))
    [1.  0.5]
    """

    def prox(x: Any, hyperparams: tuple[Any, ...] = (), scaling: ArrayLike = 1.0) -> Any:
        del scaling
        if not isinstance(hyperparams, tuple):
            raise ValueError(
                f"prox_from_projection: hyperparams is {hyperparams!r}; "
                f"accepted: a tuple of the projection's arguments after x."
            )
        return projection(x, *hyperparams)

    return prox
