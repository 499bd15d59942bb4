"""Derivatives of T steps by differentiating the steps: in reverse, forward, or the last ones alone.

With y_{t+1} = step(y_t, t; x), and A_t and B_t the Jacobians of step in y and in x at y_t::

    dy_{t+1} = A_t dy_t + B_t dx            forward: T times, from the first step on
    a_t = A_t' a_{t+1},  x_bar += B_t' a_{t+1}      reverse: T times, from the last step back

Reverse mode needs every y_t. It keeps the first of every `checkpoint_every` steps and computes the
others again. Forward mode keeps none, and carries all columns of dy/dx along. Truncated, the first
T - last steps count as a constant: on a quadratic what is left out falls as |A|^last.

*Differences.* (1) From `bilevel.attach_root`: this is the derivative of y_T, of which that of the
solution is the limit; it is biased where y_T is far from there, and costs T steps more, but it asks
for no solve, and for no Hessian that has an inverse. (2) Forward mode is offered to `jax.grad`
too, by a rule whose derivative runs along with the steps.

*Cost.* Reverse: each step once forward, once again and once back; T / checkpoint_every + 1 states,
and what `checkpoint_every` steps keep. `unroll(jax.checkpoint(step), ...)` makes that one step, for
one more step forward. Forward: a tangent of each step and each number of x (and of `init`) that is
differentiated; as many states, whatever T is.

*Reference.* Franceschi et al., Forward and reverse gradient-based hyperparameter optimization,
2017; Shaban et al., Truncated back-propagation for bilevel optimization, 2019.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from bilevel.differentiation import implicit
from optim import trees
from optim.solvers import linear

MODES = ("reverse", "forward")

Step = Callable[[Any, jax.Array], Any]


def unroll(
    step_fn: Step,
    init: Any,
    num_steps: int,
    *,
    mode: str = "reverse",
    checkpoint_every: int | None = None,
    last: int | None = None,
) -> Any:
    """The last of num_steps steps from init, with the derivative of the steps themselves.

    Args:
      step_fn: (y, t) -> the next y, t the number of the step from 0 on, int32. What it closes over
        is differentiated as init is; both modes work under `jax.grad` and `jax.jvp`, and twice.
      init: the first y; a pytree, with integers where one likes, such as an optimizer's state.
      num_steps: T, a number.
      mode: "reverse", or "forward", which is for few numbers to differentiate by: it has their
        whole Jacobian even where one direction of it was asked for.
      checkpoint_every: of how many steps reverse mode keeps one state; about the root of T by
        default; num_steps to keep all and compute nothing again.
      last: how many of the last steps are differentiated; all by default.

    Returns:
      y_T, like init.

    Raises:
      ValueError: a number is out of its range, mode is another word, checkpoint_every comes with
        forward mode, or step_fn gives another structure, shape or dtype than init.

    >>> import jax, bilevel
    >>> def halfway(x, **options):  # of x and y, eight times: y_8 = x (1 - 1 / 256)
    ...     return bilevel.unroll(lambda y, t: (x + y) / 2, 0.0, 8, **options)
    >>> print(jax.grad(halfway)(2.0), jax.grad(lambda x: halfway(x, mode="forward"))(2.0))
    0.99609375 0.99609375
    >>> print(jax.grad(lambda x: halfway(x, last=2))(2.0))
    0.75
    """
    trees.check_at_least("unroll", 0, num_steps=num_steps)
    if mode not in MODES:
        raise ValueError(f"unroll: mode is {mode!r}; accepted: {', '.join(MODES)}.")
    if mode == "forward" and checkpoint_every is not None:
        raise ValueError(
            f"unroll: checkpoint_every is {checkpoint_every} in forward mode, which keeps no "
            "states; accepted: None."
        )
    differentiated = num_steps
    if last is not None:
        trees.check_at_least("unroll", 0, last=last)
        differentiated = min(last, num_steps)
    every = checkpoint_every
    if every is None:
        every = max(1, math.isqrt(differentiated))
    trees.check_at_least("unroll", 1, checkpoint_every=every)
    y = jax.tree.map(jnp.asarray, init)
    _check_step(step_fn, y)
    first = num_steps - differentiated
    if first:
        y = implicit.without_derivative(lambda y: _steps(step_fn, y, 0, first), y)
    if mode == "forward":
        return _forward(step_fn, y, first, differentiated)
    return _reverse(step_fn, y, first, differentiated, every)


def _check_step(step_fn: Step, y: Any) -> None:
    def described(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: f"{leaf.dtype}{[*leaf.shape]}", tree)

    out, wanted = described(jax.eval_shape(step_fn, y, jnp.int32(0))), described(y)
    if jax.tree.flatten(out) != jax.tree.flatten(wanted):
        raise ValueError(f"unroll: step_fn gives {out}; accepted: what init is, {wanted}.")


def _hoisted(step_fn: Step, y: Any) -> tuple[Callable[..., Any], list[Any]]:
    """step_fn as a function of (what it closes over, y, t), and what it closes over.

    All of it, integers too, which `jax.closure_convert` leaves where they are: in a rule of its own
    a traced integer would outlive its trace.
    """
    structure: Any = jax.tree.structure(y)
    closed = jax.make_jaxpr(step_fn)(y, jnp.int32(0))

    def pure(constants: list[Any], y: Any, t: jax.Array) -> Any:
        step = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, constants))
        return structure.unflatten(step(*jax.tree.leaves(y), t))

    return pure, [jnp.asarray(constant) for constant in closed.consts]


def _steps(step_fn: Step, y: Any, first: Any, num_steps: int) -> Any:
    numbers = first + jnp.arange(num_steps, dtype=jnp.int32)
    return jax.lax.scan(lambda y, t: (step_fn(y, t), None), y, numbers)[0]


def _reverse(step_fn: Step, y: Any, first: int, num_steps: int, every: int) -> Any:
    if every >= num_steps:
        return _steps(step_fn, y, first, num_steps)
    whole, rest = divmod(num_steps, every)

    def some(y: Any, first: Any, number: int) -> Any:
        return jax.checkpoint(lambda y, first: _steps(step_fn, y, first, number))(y, first)

    starts = first + every * jnp.arange(whole, dtype=jnp.int32)
    y, _ = jax.lax.scan(lambda y, start: (some(y, start, every), None), y, starts)
    return some(y, jnp.int32(first + every * whole), rest) if rest else y


def _forward(step_fn: Step, y: Any, first: int, num_steps: int) -> Any:
    pure, constants = _hoisted(step_fn, y)

    def plain(constants: Any, y: Any) -> Any:
        return _steps(functools.partial(pure, constants), y, first, num_steps)

    run = jax.custom_jvp(plain)

    def rule(primals: Any, tangents: Any) -> tuple[Any, Any]:
        structure: Any
        leaves, structure = jax.tree.flatten(primals)
        moved = dict(enumerate(jax.tree.leaves(tangents)))
        moved = {i: move for i, move in moved.items() if not isinstance(move, SymbolicZero)}
        flat, unravel = linear.ravel([leaves[i] for i in moved])
        along, _ = linear.ravel(list(moved.values()))

        def outcome(flat: jax.Array) -> tuple[list[jax.Array], Any]:
            given = dict(enumerate(leaves)) | dict(zip(moved, unravel(flat), strict=True))
            y = plain(*structure.unflatten(given.values()))
            return [leaf for leaf in jax.tree.leaves(y) if _is_float(leaf)], y

        jacobians, y = jax.jacfwd(outcome, has_aux=True)(flat)
        columns = iter(jacobians)

        def tangent(leaf: jax.Array) -> Any:
            if not _is_float(leaf):
                return np.zeros(leaf.shape, jax.dtypes.float0)
            return jnp.tensordot(next(columns), along, 1, precision="highest").astype(leaf.dtype)

        return y, jax.tree.map(tangent, y)

    run.defjvp(rule, symbolic_zeros=True)
    return run(constants, y)


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
