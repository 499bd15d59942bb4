"""What projections share: arguments of a shape, and NaN for an answer that there is none of."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel import checks
from optim import trees


def point(method: str, name: str, x: ArrayLike, *shape: int | None) -> tuple[jax.Array, jnp.dtype]:
    """What to project, in float32 or wider, and its dtype; an error if it is not real and floating.

    Args:
      method: the function's name in errors.
      name: the argument's.
      x: real floats.
      *shape: what x must have, None for any length.
    """
    dtype = jnp.result_type(checks.floats(method, name, x))
    return array(method, name, x, trees.accumulator_dtype(x), *shape), dtype


def array(
    method: str, name: str, value: ArrayLike, dtype: jnp.dtype, *shape: int | None
) -> jax.Array:
    """The value in the dtype; an error if it has another shape, where None is any length."""
    given = jnp.shape(value)
    fits = len(given) == len(shape) and all(
        wanted in (None, length) for wanted, length in zip(shape, given, strict=True)
    )
    if not fits:
        wanted = [":" if length is None else str(length) for length in shape]
        raise ValueError(
            f"{method}: {name} has the shape {[*given]}; accepted: [{', '.join(wanted)}]."
        )
    return trees.as_dtype(value, dtype)


def rounding(dtype: jnp.dtype) -> float:
    """The default tolerance: 100 units of rounding."""
    return 100 * float(jnp.finfo(dtype).eps)


def nan_unless(found: jax.Array, y: jax.Array) -> jax.Array:
    """y where it is the answer, else NaN."""
    return y * jnp.where(found, 1, jnp.nan).astype(y.dtype)
