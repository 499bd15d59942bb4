"""What the inner solvers share: what they report, and the derivative of what they found.

A solver is called as `solver(function, init, ..., tolerance, max_steps, **derivative)` and gives
(x, `InnerInfo`). The function depends on x alone; what else it uses, it closes over. The loop that
looks for x is given constants, and x then has the derivative of the exact solution, by all that was
closed over, through `bilevel.attach_root`, whose options `derivative` holds.
"""

import warnings
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
    x, info = without_derivative(loop, checks.floats(method, "init", init))
    warn_unless_converged(method, info.converged, info.residual)
    return implicit.attach_root(optimality_fn, x, **derivative), info


def without_derivative(fn: Callable[..., Any], *args: Any) -> Any:
    """What fn(*args) gives, as a constant, whatever the arguments and fn's closure carry."""
    program, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    values = jax.core.eval_jaxpr(
        program.jaxpr,
        jax.lax.stop_gradient(program.consts),
        *jax.lax.stop_gradient(jax.tree.leaves(args)),
    )
    return jax.tree.unflatten(jax.tree.structure(out), values)


def warn_unless_converged(method: str, converged: jax.Array, residual: jax.Array) -> None:
    """Warns where the answer is known; under jit and vmap it is in the info alone."""
    if not isinstance(converged, jax.core.Tracer) and not converged.all():
        warnings.warn(
            f"{method}: stopped at a residual of {float(residual.max()):.1e}, above its tolerance.",
            checks.NotConvergedWarning,
            stacklevel=4,
        )
