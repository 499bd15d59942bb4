"""Proximal and projected gradient: the least f(x) + g(x), by gradients of f and g's operator.

With s the step, y = x and t = 1 at the start::

    x+ = prox_s(y - s grad f(y))
    t+ = (1 + sqrt(1 + 4 t^2)) / 2
    y+ = x+ + (t - 1) / t+ (x+ - x)

and y+ = x+ without acceleration. Momentum is dropped, t+ = 1 and y+ = x+, where it points uphill:
(y - x+)'(x+ - x) > 0.

*Line search.* s is halved until f(x+) <= f(y) + grad f(y)'d + |d|^2 / (2 s), d = x+ - y, and
doubled for the next step where twice s would have passed. Where the values of f are equal up to
rounding, curvature is taken from the gradients: (grad f(x+) - grad f(y))'d <= |d|^2 / s.

*Residual.* |x - prox_s(x - s grad f(x))| / s at the x returned, with the given step, or with s = 1
under the line search. It counts where x was reached without momentum, as the last step's is.

*Differences.* From jaxopt: (1) its error is |x+ - x| / s between two answers, which with momentum
is no residual, and which a long step makes small. (2) Its momentum is never dropped. (3) Its line
search believes f alone, to a slack of one rounding of 1, and doubles s after every step.

*Cost.* A step takes a gradient, an evaluation of f with a derivative along d for each trial of s,
and two calls of prox; with a given step a gradient and one prox. 4 vectors. `evaluations` counts
gradients and trials.

*Reference.* Beck and Teboulle, A fast iterative shrinkage-thresholding algorithm, 2009; O'Donoghue
and Candes, Adaptive restart for accelerated gradient schemes, 2015; jaxopt 0.8.5.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel import checks
from bilevel.differentiation import maps
from bilevel.inner_solvers import solving
from optim import trees
from optim.solvers import linear

TRIALS = 50  # of a step, each half the last


def proximal_gradient(
    objective_fn: Callable[[Any], jax.Array],
    init: Any,
    *,
    prox_fn: Callable[[Any, ArrayLike], Any],
    step: ArrayLike | None = None,
    accelerate: bool = True,
    tolerance: ArrayLike = 1e-3,
    max_steps: ArrayLike = 500,
    **derivative: Any,
) -> tuple[Any, solving.InnerInfo]:
    """Minimises objective_fn(x) + g(x), where prox_fn is the proximal operator of g.

    Momentum asks for objective_fn at points where g may be infinite; where it is not defined there,
    set `accelerate=False`.

    Args:
      objective_fn: x -> a scalar, differentiable.
      init: where x starts, a pytree of floats.
      prox_fn: (x, scaling) -> a tree like x, such as `lambda x, s: bilevel.prox_lasso(x, 0.1, s)`.
      step: positive, at most 1 / L for a gradient of Lipschitz constant L; None for a line search.
      accelerate: whether there is momentum.
      tolerance: of the residual, absolute.
      max_steps: most steps.
      **derivative: options of `bilevel.attach_root`.

    Returns:
      (x, info): x with the derivative of the exact solution by all that the functions close over,
      and the `bilevel.InnerInfo`.

    Raises:
      ValueError: step is not positive, tolerance negative, max_steps less than 1, init is not of
        real floats, or an option of `derivative` is refused.

    >>> import jax, jax.numpy as jnp, bilevel
    >>> def solution(strength):
    ...     x, _ = bilevel.proximal_gradient(
    ...         lambda x: jnp.sum((x - 3.0) ** 2) / 2,
    ...         jnp.zeros(1),
    ...         prox_fn=lambda x, s: bilevel.prox_lasso(x, strength, s),
    ...     )
    ...     return x[0]
    >>> print(f"{solution(1.0):.3f} {jax.grad(solution)(1.0):.3f}")  # 3 - strength
    2.000 -1.000
    """
    loop = _loop("proximal_gradient", objective_fn, prox_fn, step, accelerate, tolerance, max_steps)
    return solving.answer(
        "proximal_gradient",
        _optimality(objective_fn, prox_fn, step),
        init,
        loop,
        tolerance=tolerance,
        max_steps=max_steps,
        **derivative,
    )


def projected_gradient(
    objective_fn: Callable[[Any], jax.Array],
    init: Any,
    *,
    projection_fn: Callable[[Any], Any],
    step: ArrayLike | None = None,
    accelerate: bool = True,
    tolerance: ArrayLike = 1e-3,
    max_steps: ArrayLike = 500,
    **derivative: Any,
) -> tuple[Any, solving.InnerInfo]:
    """`proximal_gradient` for the least objective_fn over a set.

    Args:
      projection_fn: x -> the nearest point of the set, such as `optax.projections` has.
      objective_fn, init, step, accelerate, tolerance, max_steps, **derivative, and what is returned
        and raised: as there.

    >>> import jax, jax.numpy as jnp, bilevel, optax
    >>> def solution(c):
    ...     x, _ = bilevel.projected_gradient(
    ...         lambda x: jnp.sum((x - c) ** 2) / 2,
    ...         jnp.ones(2) / 2,
    ...         projection_fn=optax.projections.projection_simplex,
    ...     )
    ...     return x
    >>> print(solution(jnp.array([1.0, 0.5])))
    [0.75 0.25]
    """

    def prox_fn(x: Any, scaling: ArrayLike) -> Any:
        del scaling
        return projection_fn(x)

    loop = _loop(
        "projected_gradient", objective_fn, prox_fn, step, accelerate, tolerance, max_steps
    )
    return solving.answer(
        "projected_gradient",
        _optimality(objective_fn, prox_fn, step),
        init,
        loop,
        tolerance=tolerance,
        max_steps=max_steps,
        **derivative,
    )


def _optimality(objective_fn: Any, prox_fn: Any, step: ArrayLike | None) -> Callable[[Any], Any]:
    mapped = maps.proximal_gradient_map(objective_fn, prox_fn, 1.0 if step is None else step)
    return lambda x: jax.tree.map(jnp.subtract, x, mapped(x))


class _Carry(NamedTuple):
    found: Any  # where the last gradient was taken
    plain: jax.Array  # (), bool: whether that was without momentum
    residual: jax.Array  # (): at found
    x: Any  # what prox gave last
    y: Any  # where the next gradient is taken
    next_plain: jax.Array  # (), bool: whether y is x
    t: jax.Array  # ()
    step: jax.Array  # ()
    steps: jax.Array  # (), int32
    evaluations: jax.Array  # (), int32


def _loop(
    method: str,
    objective_fn: Callable[[Any], jax.Array],
    prox_fn: Callable[[Any, ArrayLike], Any],
    step: ArrayLike | None,
    accelerate: bool,
    tolerance: ArrayLike,
    max_steps: ArrayLike,
) -> Callable[[Any], tuple[Any, solving.InnerInfo]]:
    if step is not None:
        trees.check_positive(method, step=step)

    def prox(x: Any, scaling: ArrayLike) -> Any:
        return checks.like(method, "prox_fn", prox_fn(x, scaling), x)

    def body(c: _Carry) -> _Carry:
        value, gradient = jax.value_and_grad(objective_fn)(c.y)
        if step is None:
            x, s, following, trials = _search(objective_fn, prox, c.y, value, gradient, c.step)
            mapped, unit = prox(maps.descended(c.y, gradient, 1.0), 1.0), jnp.ones_like(s)
        else:
            s = following = unit = c.step
            x = mapped = prox(maps.descended(c.y, gradient, s), s)
            trials = jnp.int32(0)
        residual = trees.norm(_minus(c.y, mapped)) / unit
        moved = _minus(x, c.x)
        uphill = linear.vdot(_minus(c.y, x), moved) > 0
        longer = (1 + jnp.sqrt(1 + 4 * c.t**2)) / 2
        plain = uphill | (residual <= tolerance) | (c.steps + 2 >= max_steps)
        weight = jnp.where(plain | (not accelerate), 0, (c.t - 1) / longer)
        y = jax.tree.map(lambda u, d: (u + weight.astype(d.dtype) * d).astype(u.dtype), x, moved)
        return _Carry(
            found=c.y,
            plain=c.next_plain,
            residual=residual,
            x=x,
            y=y,
            next_plain=weight == 0,
            t=jnp.where(uphill, 1, longer),
            step=following,
            steps=c.steps + 1,
            evaluations=c.evaluations + 1 + trials,
        )

    def goes_on(c: _Carry) -> jax.Array:
        short = (c.residual > tolerance) | ~c.plain
        return short & ~jnp.isnan(c.residual) & (c.steps < max_steps)

    def loop(init: Any) -> tuple[Any, solving.InnerInfo]:
        dtype = trees.accumulator_dtype(*jax.tree.leaves(init))
        one = jnp.ones((), dtype)
        end = jax.lax.while_loop(
            goes_on,
            body,
            _Carry(
                found=init,
                plain=jnp.bool_(True),
                residual=jnp.inf * one,
                x=init,
                y=init,
                next_plain=jnp.bool_(True),
                t=one,
                step=one if step is None else trees.as_dtype(step, dtype),
                steps=jnp.int32(0),
                evaluations=jnp.int32(0),
            ),
        )
        converged = end.residual <= tolerance
        return end.found, solving.InnerInfo(end.residual, end.steps, end.evaluations, converged)

    return loop


def _search(
    objective_fn: Callable[[Any], jax.Array],
    prox_fn: Callable[[Any, ArrayLike], Any],
    y: Any,
    value: jax.Array,
    gradient: Any,
    step: jax.Array,
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """x, the step that led to it, the step to try next, and the trials made."""

    def trial(s: jax.Array) -> tuple[Any, jax.Array]:
        """x, and curvature along the way to it, times s."""
        x = prox_fn(maps.descended(y, gradient, s), s)
        d = _minus(x, y)
        tangent = jax.tree.map(lambda u, v: u.astype(v.dtype), d, x)
        after, slope = (v.astype(s.dtype) for v in jax.jvp(objective_fn, (x,), (tangent,)))
        before, first = value.astype(s.dtype), linear.vdot(trees.promote(gradient), d)
        rounding = linear.ROUNDING * jnp.finfo(value.dtype).eps * (jnp.abs(before) + jnp.abs(after))
        above = after - before - first
        curvature = jnp.where(jnp.abs(above) > rounding, 2 * above, slope - first)
        return x, s * linear.divide(curvature, linear.vdot(d, d))

    def goes_on(carry: Any) -> jax.Array:
        _, _, ratio, trials = carry
        return ~(ratio <= 1) & (trials < TRIALS)

    def body(carry: Any) -> Any:
        _, s, _, trials = carry
        x, ratio = trial(s / 2)
        return x, s / 2, ratio, trials + 1

    x, ratio = trial(step)
    x, s, ratio, trials = jax.lax.while_loop(goes_on, body, (x, step, ratio, jnp.int32(1)))
    longest = 1 / jnp.finfo(s.dtype).eps
    following = jnp.where((ratio <= 0.5) & (s < longest), 2 * s, s)
    return x, s, following, trials


def _minus(x: Any, y: Any) -> Any:
    return jax.tree.map(jnp.subtract, trees.promote(x), trees.promote(y))
