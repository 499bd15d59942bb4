"""Errors about pytrees that no derivative here can take, and the warning of what fell short."""

from typing import Any

import jax
import jax.numpy as jnp

from optim import trees
from optim.solvers import linear


class NotConvergedWarning(UserWarning):
    """A solver stopped before its residual was as small as was asked."""


def floats(method: str, name: str, tree: Any) -> Any:
    """The argument as arrays; an error if one is not real and floating."""
    return linear.floats(method, tree, name)


def like(method: str, function: str, out: Any, y: Any) -> Any:
    """What the function gave, in the dtypes of y; an error if it is not shaped as y is."""
    linear.check_like(method, f"{function} gives", out, y, "y")
    return jax.tree.map(lambda leaf, x: trees.as_dtype(leaf, jnp.result_type(x)), out, y)
