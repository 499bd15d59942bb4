"""Errors about pytrees that no derivative here can take, and the warning of all solvers."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optim import trees


class NotConvergedWarning(UserWarning):
    """A solver stopped before its residual was as small as was asked."""


def floats(method: str, name: str, tree: Any) -> Any:
    """The argument as arrays; an error if one is not real and floating."""

    def one(path: tuple[Any, ...], leaf: ArrayLike) -> jax.Array:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{method}: {name}{_at(path)} is of {dtype}; accepted: real floats.")
        return trees.as_dtype(leaf, dtype)

    return jax.tree.map_with_path(one, tree)


def like(method: str, function: str, out: Any, y: Any) -> Any:
    """What the function gave, in the dtypes of y; an error if it is not shaped as y is."""
    structure: Any = jax.tree.structure(out)
    wanted: Any = jax.tree.structure(y)
    if structure != wanted:
        raise ValueError(
            f"{method}: {function} gives {structure}; accepted: the structure of y, {wanted}."
        )
    for (path, leaf), x in zip(jax.tree.leaves_with_path(out), jax.tree.leaves(y), strict=True):
        dtype = jnp.result_type(leaf)
        if jnp.shape(leaf) != jnp.shape(x) or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{method}: {function} gives {dtype}{[*jnp.shape(leaf)]}{_at(path)}; "
                f"accepted: a float of the shape that y has, {[*jnp.shape(x)]}."
            )
    return jax.tree.map(lambda leaf, x: trees.as_dtype(leaf, jnp.result_type(x)), out, y)


def _at(path: tuple[Any, ...]) -> str:
    return f" at {trees.path_string(path)!r}" if path else ""
