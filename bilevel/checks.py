"""Errors about pytrees that no derivative here can take, and the warning of what fell short."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from optim import trees
from optim.solvers import linear


class NotConvergedWarning(UserWarning):
    """A solver stopped before its residual was as small as was asked."""


def warn_unless_converged(what: str, converged: Any, residual: Any, stacklevel: int) -> None:
    """Warns where the answer is known; under jit and vmap it is in the info alone.

    Args:
      what: the solve, such as "anderson:", with which the sentence begins.
      converged, residual: of one solve, or of several.
      stacklevel: that of `warnings.warn`, seen from the caller.
    """
    if not isinstance(converged, jax.core.Tracer) and not converged.all():
        warnings.warn(
            f"{what} stopped at a residual of {float(residual.max()):.1e}, above its tolerance.",
            NotConvergedWarning,
            stacklevel=stacklevel + 1,
        )


def floats(method: str, name: str, tree: Any) -> Any:
    """The argument as arrays; an error if one is not real and floating."""
    return linear.floats(method, tree, name)


def like(method: str, function: str, out: Any, y: Any) -> Any:
    """What the function gave, in the dtypes of y; an error if it is not shaped as y is."""
    linear.check_like(method, f"{function} gives", out, y, "y")
    return jax.tree.map(lambda leaf, x: trees.as_dtype(leaf, jnp.result_type(x)), out, y)
