"""What the inner solvers share: what they report, and the derivative of what they found.

A solver is called as `solver(function, init, ..., tolerance, max_steps, **derivative)` and gives
(x, `InnerInfo`). The function depends on x alone; what else it uses, it closes over. The loop that
looks for x is given constants, and x then has the derivative of the exact solution, by all that was
closed over, through `bilevel.attach_root`, whose options `derivative` holds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike

from bilevel import checks
from bilevel.differentiation import implicit
from optim import trees


class InnerInfo(NamedTuple):
    """What an inner solver did, and how far it got; nothing here has a derivative."""

    residual: jax.Array  # (), what the solver drives to zero, at the x returned
    iterations: jax.Array  # (), int32: steps
    evaluations: jax.Array  # (), int32: of the function or of its gradient, whichever is called
    converged: jax.Array  # (), bool: residual <= tolerance


def answer(
    method: str,
    optimality_fn: Callable[[Any], Any],
    init: Any,
    loop: Callable[[Any], tuple[Any, InnerInfo]],
    *,
    tolerance: ArrayLike,
    max_steps: ArrayLike,
    **derivative: Any,
) -> tuple[Any, InnerInfo]:
    """Runs a solver's loop, and gives what it found the derivative of the root.

    Args:
      method: the solver's name, in errors and in the warning.
      optimality_fn: zero at the solution; like x.
      init: where the loop starts.
      loop: init -> (x, info).
      tolerance, max_steps: what the loop was built with.
      **derivative: options of `bilevel.attach_root`.

    Raises:
      ValueError: the tolerance is negative, max_steps is less than 1, or init is not of real
        floats.
    """
    trees.check_at_least(method, 0, tolerance=tolerance)
    trees.check_at_least(method, 1, max_steps=max_steps)
    x, info = implicit.without_derivative(loop, checks.floats(method, "init", init))
    checks.warn_unless_converged(f"{method}:", info.converged, info.residual, stacklevel=3)
    return implicit.attach_root(optimality_fn, x, **derivative), info
