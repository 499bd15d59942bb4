"""What the operators share that treat each number of a pytree alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optim import trees


def elementwise(
    method: str,
    rule: Callable[..., jax.Array],
    x: Any,
    scaling: ArrayLike,
    **strengths: Any,
) -> Any:
    """The tree of rule(leaf of x, scaling, *strengths), in the dtypes of x.

    Args:
      method: the name in errors.
      rule: of arrays of one dtype, float32 or wider.
      x: a pytree of real floats.
      scaling: the step size, a number.
      **strengths: numbers, or trees whose leaves broadcast to those of x.

    Raises:
      ValueError: a number is negative, a leaf of x is not a real float, or a strength is no such
        tree.
    """
    trees.check_at_least(method, 0, scaling=scaling)
    columns = []
    for name, strength in strengths.items():
        for leaf in jax.tree.leaves(strength):
            trees.check_at_least(method, 0, **{name: leaf})
        columns.append(_broadcast(method, name, strength, x))

    def one(leaf: ArrayLike, *others: ArrayLike) -> jax.Array:
        dtype = trees.accumulator_dtype(leaf)
        given = (trees.as_dtype(other, dtype) for other in (leaf, scaling, *others))
        return rule(*given).astype(jnp.result_type(leaf))

    return jax.tree.map(one, checked(method, x), *columns)


def checked(method: str, x: Any) -> Any:
    """The tree, whose leaves must be real floats."""
    for path, leaf in jax.tree.leaves_with_path(x):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            at = f" at {trees.path_string(path)!r}" if path else ""
            raise ValueError(
                f"{method}: x{at} is of {jnp.result_type(leaf)}; accepted: real floats."
            )
    return x


def _broadcast(method: str, name: str, strength: Any, x: Any) -> Any:
    structure: Any = jax.tree.structure(x)
    given: Any = jax.tree.structure(strength)
    if given == jax.tree.structure(0) and jnp.ndim(strength) == 0:
        strength, given = structure.unflatten([strength] * structure.num_leaves), structure
    if given != structure:
        raise ValueError(
            f"{method}: {name} is {given}; accepted: a number, or the structure of x, {structure}."
        )
    for value, leaf in zip(jax.tree.leaves(strength), jax.tree.leaves(x), strict=True):
        shape, wanted = jnp.shape(value), jnp.shape(leaf)
        fits = len(shape) <= len(wanted)
        fits &= all(s in (1, w) for s, w in zip(shape[::-1], wanted[::-1], strict=False))
        if not fits:
            raise ValueError(
                f"{method}: {name} has the shape {shape}; accepted: what broadcasts to {wanted}."
            )
    return strength
