"""A hypergradient as exact as is asked: the estimate of its error steers the two solves.

With `bilevel.hypergradient`'s names, each round solves for y to |g_y| <= inner_tolerance and for v
to |r| <= adjoint_tolerance, and estimates the two parts of the gradient's error::

    step = H^-1 g_y,   moved = H^-1 dr/dy step,   missed = H^-1 r
    inner = |d(f_x - C v)/dy step - C moved|      from y
    adjoint = |C missed|                          from v
    goal = max(tolerance |gradient|, absolute_tolerance)

It is done where inner + adjoint <= goal. Else each part above goal / 2 has its tolerance multiplied
by goal / (4 part), within 1e-4 and 1/2, since to first order a part is in proportion to its
residual. The first round asks for the root of the relative tolerance. The next round starts at
y - step, where |g_y| is less there than at y, and at v - moved + missed: so what the estimate cost
is not lost, it was Newton's step for both.

*Differences.* From HOAG, where a sequence of tolerances is given in advance, and from MAID, which
bounds the error by constants that it guesses: (1) the error is estimated to first order, with its
own weights for y and for v, and no constant is needed. (2) It is an estimate: far from y*, where
the first order says little, it may be too small, and the bound of `hypergradient` alone is one.

*Cost.* A round: the inner solve, the hypergradient, three solves to a relative residual of 1e-2,
three products of second order and a gradient of inner. Two rounds in most calls, and one where the
last call's state is given. With warm starts the estimate is the larger part of the work.

*Reference.* Pedregosa, Hyperparameter optimization with approximate gradient, 2016; Salehi et al.,
An adaptively inexact first-order method for bilevel optimization, 2024.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import optim
from bilevel import checks
from bilevel.differentiation.hypergradient import (
    AdjointState,
    HypergradientInfo,
    Smoothness,
    hypergradient,
    linearised,
)
from bilevel.problem import BilevelBatch, BilevelProblem
from optim import trees

LOOSEST = 0.1  # residual asked of the first round, relative to that without a solve
MOST, LEAST = 0.5, 1e-4  # change of a tolerance from one round to the next
FALLS = 0.9  # a residual that a round leaves above this part of the last does not fall
RELAXED = 10.0  # most by which a tolerance changes from one call to the next
ESTIMATED_TO = 1e-2  # residual of the solves for the estimate, relative


class ToleranceState(NamedTuple):
    """Where the next call starts; zeros where nothing is known yet."""

    v: Any  # like y: the adjoint
    inner_tolerance: jax.Array  # (), float32 or wider: of |g_y|
    adjoint_tolerance: jax.Array  # (), float32 or wider: of |f_y - H v|


class ToleranceInfo(NamedTuple):
    """How exact a hypergradient is, and what it took."""

    estimate: jax.Array  # (), inner_part + adjoint_part, about the norm of the gradient's error
    inner_part: jax.Array  # (), norm of the error that y's brings
    adjoint_part: jax.Array  # (), norm of the error that v's brings
    converged: jax.Array  # (), bool: the estimate, by solves that converged, is small enough
    rounds: jax.Array  # (), int32
    products: jax.Array  # (), int32: products with H, those of the estimates included
    evaluations: jax.Array  # (), int32: the inner solver's own, and one a round
    hypergradient: HypergradientInfo  # of the gradient that is returned


class _Steering(NamedTuple):
    start: tuple[Any, Any]  # y and v at which the next solves start
    tolerances: jax.Array  # (2,), of them
    residuals: jax.Array  # (2,), of the last solves
    asked: jax.Array  # (2,), bool: which parts were too large
    again: jax.Array  # (), bool: whether the next round may help
    spent: jax.Array  # (3,), int32: rounds, products, evaluations


class _Estimate(NamedTuple):
    parts: jax.Array  # (2,), from y and from v
    closer: tuple[Any, Any]  # y and v without their errors
    v: Any  # without what is missing at this y
    products: jax.Array  # (), int32
    trusted: jax.Array  # (), bool


def hypergradient_to_tolerance(
    problem: BilevelProblem,
    x: Any,
    y: Any,
    state: ToleranceState | None = None,
    batch: BilevelBatch | None = None,
    *,
    solver: Callable[..., tuple[Any, Any]],
    tolerance: ArrayLike = 1e-2,
    absolute_tolerance: ArrayLike = 0.0,
    max_rounds: ArrayLike = 10,
    solve: Callable[..., tuple[Any, optim.SolveInfo]] = optim.cg,
    preconditioner: Callable[[Any], Any] | None = None,
    constants: Smoothness | None = None,
) -> tuple[Any, Any, ToleranceState, ToleranceInfo]:
    """Solves for y and for the adjoint until the gradient's error is estimated to be small enough.

    Args:
      problem: the functions.
      x: the outer variables.
      y: where the inner solver starts, such as the last y.
      state: what the last call returned, at an x that was near; None at first, or in a loop whose
        carry keeps its structure, a `ToleranceState` of zeros.
      batch: what the functions are given; None for both by default.
      solver: called as solver(objective_fn, init, tolerance=...) -> (y, info), which minimises
        objective_fn(y) to a norm of its gradient of at most `tolerance`, an array; info has
        `evaluations`, a count, as `InnerInfo` has. It is traced. Bring a `max_steps` of your own
        by `functools.partial`.
      tolerance: of the norm of the error, relative to that of the gradient.
      absolute_tolerance: norm of the error that is small enough whatever the gradient is.
      max_rounds: most rounds.
      solve: as for `hypergradient`; its tolerances are set here.
      preconditioner, constants: as for `hypergradient`.

    Returns:
      (gradient, y, state, info): the gradient at the y returned, and a `ToleranceInfo`.
      `info.converged` is False where the rounds ran out, or where the residuals no longer fell: at
      rounding, or at the solver's most steps.

    Raises:
      ValueError: x or y has a leaf that is not real and floating, a tolerance is negative, or
        max_rounds is less than 1.

    >>> import bilevel, jax, types
    >>> problem = bilevel.BilevelProblem(
    ...     outer=lambda x, y, batch: y**2 / 2, inner=lambda x, y, batch: x * y**2 / 2 - y
    ... )
    >>> def descend(objective_fn, init, *, tolerance):
    ...     slope = jax.grad(objective_fn)
    ...     def step(carry):
    ...         return carry[0] - 0.1 * slope(carry[0]), carry[1] + 1
    ...     def goes_on(carry):
    ...         return abs(slope(carry[0])) > tolerance
    ...     y, steps = jax.lax.while_loop(goes_on, step, (init, 0))
    ...     return y, types.SimpleNamespace(evaluations=steps)
    >>> gradient, y, state, info = bilevel.hypergradient_to_tolerance(
    ...     problem, 2.0, 0.0, solver=descend, tolerance=1e-3
    ... )
    >>> print(f"{gradient:.4f} {y:.4f}", info.converged, info.rounds)  # -0.125 at 0.5
    -0.1250 0.5000 True 2
    """
    name = "hypergradient_to_tolerance"
    trees.check_at_least(name, 0, tolerance=tolerance, absolute_tolerance=absolute_tolerance)
    trees.check_at_least(name, 1, max_rounds=max_rounds)
    x, y = checks.floats(name, "x", x), checks.floats(name, "y", y)
    batch = batch or BilevelBatch()

    def objective(y: Any) -> jax.Array:
        return problem.inner(x, y, batch.inner)

    slope = jax.grad(objective)

    def one(last: _Steering) -> tuple[_Steering, tuple[Any, Any, ToleranceState, ToleranceInfo]]:
        y, solved = solver(objective, last.start[0], tolerance=last.tolerances[0])
        f_y = trees.norm(jax.grad(problem.outer, 1)(x, y, batch.outer))
        known = last.tolerances[1]
        known = jnp.where(known > 0, known, _first(tolerance, f_y))
        last = last._replace(tolerances=last.tolerances.at[1].set(known))
        exact = functools.partial(solve, tolerance=0.0, absolute_tolerance=known)
        gradient, adjoint, info = hypergradient(
            problem,
            x,
            y,
            AdjointState(last.start[1]),
            batch,
            solve=exact,
            preconditioner=preconditioner,
            constants=constants,
        )
        loose = functools.partial(solve, tolerance=ESTIMATED_TO, preconditioner=preconditioner)
        estimate = _estimate(problem, x, y, adjoint.v, batch, loose)
        falls = trees.norm(slope(estimate.closer[0])) < info.inner_residual
        start = jax.tree.map(lambda u, v: jnp.where(falls, u, v), estimate.closer, (y, estimate.v))
        goal = _goal(tolerance, absolute_tolerance, gradient)
        residuals = jnp.stack([info.inner_residual, info.adjoint_residual])
        steering, relaxed = _steer(last, estimate.parts, residuals, goal)
        total = jnp.sum(estimate.parts)
        counts = jnp.stack([1, info.products + estimate.products, solved.evaluations + 1])
        spent = last.spent + counts.astype(jnp.int32)
        report = ToleranceInfo(
            estimate=total,
            inner_part=estimate.parts[0],
            adjoint_part=estimate.parts[1],
            converged=(total <= goal) & estimate.trusted,
            rounds=spent[0],
            products=spent[1],
            evaluations=spent[2],
            hypergradient=info,
        )
        state = ToleranceState(adjoint.v, relaxed[0], relaxed[1])
        steering = steering._replace(start=start, spent=spent)
        return steering, (gradient, y, state, report)

    steering = _begin(y, state, trees.norm(slope(y)), tolerance)
    blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, steering)[1])
    _, result = jax.lax.while_loop(
        lambda carry: carry[0].again & (carry[0].spent[0] < max_rounds),
        lambda carry: one(carry[0]),
        (steering, blank),
    )
    return result


def _first(tolerance: ArrayLike, norm: jax.Array) -> jax.Array:
    """The residual to begin with, where it would be `norm` without a solve."""
    asked = trees.as_dtype(tolerance, norm.dtype)
    return norm * jnp.where(asked > 0, jnp.minimum(jnp.sqrt(asked), LOOSEST), LOOSEST)


def _begin(y: Any, state: ToleranceState | None, g_y: jax.Array, tolerance: ArrayLike) -> _Steering:
    tolerances = jnp.stack([_first(tolerance, g_y), jnp.zeros_like(g_y)])
    v = jax.tree.map(jnp.zeros_like, y)
    if state is not None:
        known = jnp.stack([state.inner_tolerance, state.adjoint_tolerance]).astype(g_y.dtype)
        tolerances, v = jnp.where(known > 0, known, tolerances), state.v
    return _Steering(
        start=(y, v),
        tolerances=tolerances,
        residuals=jnp.full_like(tolerances, jnp.inf),
        asked=jnp.zeros(2, bool),
        again=jnp.bool_(True),
        spent=jnp.zeros(3, jnp.int32),
    )


def _estimate(
    problem: BilevelProblem,
    x: Any,
    y: Any,
    v: Any,
    batch: BilevelBatch,
    solve: Callable[..., tuple[Any, optim.SolveInfo]],
) -> _Estimate:
    g_y, r, product = linearised(problem, x, y, v, batch)
    inverse = functools.partial(solve, lambda u: product(u)[1])
    step, first = inverse(g_y)
    _, _, gradient_change, residual_change = product(step)
    moved, second = inverse(residual_change)
    missed, third = inverse(r)
    inner = _minus(gradient_change, product(moved)[0])
    fuller = jax.tree.map(jnp.add, v, missed)
    return _Estimate(
        parts=jnp.stack([trees.norm(inner), trees.norm(product(missed)[0])]),
        closer=(_minus(y, step), _minus(fuller, moved)),
        v=fuller,
        products=first.products + second.products + third.products + 3,
        trusted=first.converged & second.converged & third.converged,
    )


def _goal(tolerance: ArrayLike, absolute_tolerance: ArrayLike, gradient: Any) -> jax.Array:
    norm = trees.norm(gradient)
    relative, absolute = (trees.as_dtype(t, norm.dtype) for t in (tolerance, absolute_tolerance))
    return jnp.maximum(relative * norm, absolute)


def _steer(
    last: _Steering, parts: jax.Array, residuals: jax.Array, goal: jax.Array
) -> tuple[_Steering, jax.Array]:
    """The next round's tolerances and whether it pays; and the tolerances of the next call."""
    asked = parts > goal / 2
    change = goal / (4 * jnp.maximum(parts, jnp.finfo(parts.dtype).tiny))
    reached = jnp.minimum(last.tolerances, residuals)
    tightened = jnp.where(asked, reached * jnp.clip(change, LEAST, MOST), last.tolerances)
    # What was asked for before and did not come is at rounding, or at its solver's end.
    helps = asked & (~last.asked | (residuals < FALLS * last.residuals))
    steering = last._replace(
        tolerances=tightened,
        residuals=residuals,
        asked=asked,
        again=~(jnp.sum(parts) <= goal) & jnp.any(helps),
    )
    used = jnp.maximum(reached, last.tolerances / RELAXED)
    return steering, used * jnp.clip(change, 1 / RELAXED, RELAXED)


def _minus(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.subtract, a, b)
