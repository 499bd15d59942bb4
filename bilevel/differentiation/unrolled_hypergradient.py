"""Inner steps, and a hypergradient through them or at their end: one word chooses which.

Through the steps it is the derivative of y_T, by `bilevel.unroll`; at their end that of the
minimiser, by `bilevel.hypergradient` at y_T. The first is biased where y_T is far from the
minimiser, the second by as much as g_y there says.

*Cost.* Of T inner gradients, and of `unroll`'s derivative or of `hypergradient`.

*Reference.* Franceschi et al., Forward and reverse gradient-based hyperparameter optimization,
2017.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim
from bilevel import checks
from bilevel.differentiation.hypergradient import (
    AdjointState,
    HypergradientInfo,
    hypergradient,
    init_adjoint,
)
from bilevel.differentiation.unrolled import MODES, unroll
from bilevel.problem import BilevelBatch, BilevelProblem
from optim import trees


def unrolled_hypergradient(
    problem: BilevelProblem,
    x: Any,
    y: Any,
    state: AdjointState | None = None,
    batch: BilevelBatch | None = None,
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    mode: str = "reverse",
    checkpoint_every: int | None = None,
    last: int | None = None,
    **options: Any,
) -> tuple[Any, Any, AdjointState, HypergradientInfo]:
    """Takes inner steps from y, and the gradient of outer in x through them or at their end.

    One word, `mode`, chooses between the derivative of the steps and that of the minimiser.

    Args:
      problem: the functions.
      x: the outer variables.
      y: where the inner steps start.
      state: the last adjoint; of use to the implicit mode alone.
      batch: what the functions are given, at every step the same; None for both by default.
      optimizer: of the inner steps, such as `optax.sgd(0.1)`; its state starts anew at each call.
      num_steps: how many.
      mode: "reverse" or "forward", as `unroll` has them, or "implicit", for `hypergradient` at the
        last y.
      checkpoint_every, last: for `unroll`.
      **options: solve, preconditioner, constants for `hypergradient`, in the implicit mode.

    Returns:
      (gradient, y, state, info): gradient like x, the last y, the adjoint and the
      `HypergradientInfo`. Unrolled there is no adjoint: the state is what it was, or zeros, the
      value is outer at the last y, adjoint_residual and bound are NaN, and products counts those
      that differentiating the steps takes.

    Raises:
      ValueError: x or y has a leaf that is not real and floating, mode is another word, an option
        is of another mode, or as `unroll` says.

    >>> import bilevel, optax
    >>> problem = bilevel.BilevelProblem(
    ...     outer=lambda x, y, batch: y**2 / 2, inner=lambda x, y, batch: x * y**2 / 2 - y
    ... )
    >>> for mode in ("reverse", "forward", "implicit"):  # the limit is -1 / x**3
    ...     gradient, *_ = bilevel.unrolled_hypergradient(
    ...         problem, 2.0, 0.0, optimizer=optax.sgd(0.25), num_steps=6, mode=mode
    ...     )
    ...     print(f"{mode} {gradient:.4f}")
    reverse -0.1096
    forward -0.1096
    implicit -0.1211
    """
    name = "unrolled_hypergradient"
    if mode not in (*MODES, "implicit"):
        raise ValueError(f"{name}: mode is {mode!r}; accepted: {', '.join(MODES)}, implicit.")
    if mode == "implicit" and not (last is None and checkpoint_every is None):
        raise ValueError(
            f"{name}: mode is 'implicit' with checkpoint_every {checkpoint_every} and last {last}; "
            "accepted: None for both."
        )
    if mode != "implicit" and options:
        raise ValueError(
            f"{name}: mode is {mode!r} with {', '.join(options)}; accepted: the options of "
            "hypergradient in the mode 'implicit' alone."
        )
    x, y = checks.floats(name, "x", x), checks.floats(name, "y", y)
    batch = batch or BilevelBatch()
    inner_gradient = jax.grad(problem.inner, argnums=1)

    def slope(x: Any, y: Any) -> Any:
        return inner_gradient(x, y, batch.inner)

    start = (y, optimizer.init(y))

    def solution(x: Any, **keywords: Any) -> Any:
        def step(carry: Any, t: jax.Array) -> Any:
            del t
            y, inner_state = carry
            updates, inner_state = optimizer.update(slope(x, y), inner_state, y)
            return optax.apply_updates(y, updates), inner_state

        return unroll(step, start, num_steps, **keywords)[0]

    if mode == "implicit":
        y = solution(x)
        gradient, adjoint, info = hypergradient(problem, x, y, state, batch, **options)
        return gradient, y, adjoint, info

    def loss(x: Any) -> tuple[jax.Array, Any]:
        y = solution(x, mode=mode, checkpoint_every=checkpoint_every, last=last)
        return problem.outer(x, y, batch.outer), y

    (value, y), gradient = jax.value_and_grad(loss, has_aux=True)(x)
    inner_residual = trees.norm(slope(x, y))
    directions = sum(leaf.size for leaf in jax.tree.leaves(x)) if mode == "forward" else 1
    differentiated = jnp.int32(num_steps if last is None else min(last, num_steps))
    unknown = jnp.full_like(inner_residual, jnp.nan)
    products = directions * differentiated
    info = HypergradientInfo(
        value=value,
        inner_residual=inner_residual,
        adjoint_residual=unknown,
        products=products,
        bound=unknown,
        solve=optim.SolveInfo(unknown, differentiated, products, jnp.bool_(False)),
    )
    return gradient, y, state or init_adjoint(y), info
