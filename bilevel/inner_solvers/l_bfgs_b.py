"""L-BFGS within a box, by projection in two metrics.

With g the gradient, the bound variables are those within e = min(1e-3, |x - P(x - g)|) of a bound
that -g points out of, where P clips to the box. On the others, H is the L-BFGS matrix of the last
steps, of which it sees these entries alone; on the bound ones it is I. The next x is::

    x(t) = P(x - t H g),   t the first of 1, 1/2, 1/4, ... with f(x(t)) <= f(x) + 1e-4 g'(x(t) - x)

Steps with s'y <= 0 are not remembered, and where no t is found the memory starts anew. That the
metric of the bound variables is apart from that of the others is what makes each such arc one along
which f falls.

*Derivatives.* Of the free variables, with the Hessian of f there; variables at a bound that -g
points out of have the bound's derivative. Where g = 0 at a bound, that of a free variable.

*Differences.* From L-BFGS-B, and jaxopt's: (1) there is no Cauchy point and no subspace problem:
bound variables leave their bounds, and others reach them, many at a step, along the projected arc.
(2) The line search asks for a fall alone, so that the gradient is computed once a trial. (3) The
memory is that of the free variables anew each step, with no compact matrix. (4) A fall of less than
10 units of rounding of f counts as one, so that x becomes as exact as its gradient.

*Cost.* One value and gradient a trial, mostly one a step; 4 history inner products or updates of
vectors a step; 2 history + 6 vectors.

*Reference.* Bertsekas, Projected Newton methods for optimization problems with simple constraints,
1982; Byrd, Lu, Nocedal and Zhu, A limited memory algorithm for bound constrained optimization,
1995; jaxopt 0.8.5.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import optim
from bilevel import checks
from bilevel.inner_solvers import solving
from bilevel.inner_solvers.solving import InnerInfo
from optim import trees
from optim.solvers.linear import vdot

HALVINGS = 30  # most, of one step


def l_bfgs_b(
    objective_fn: Callable[[Any], jax.Array],
    init: Any,
    lower: Any = -jnp.inf,
    upper: Any = jnp.inf,
    *,
    history: int = 10,
    tolerance: ArrayLike = 1e-5,
    max_steps: ArrayLike = 500,
    **derivative: Any,
) -> tuple[Any, InnerInfo]:
    """Minimises in a box, with the derivative by all that objective_fn closes over and the bounds.

    Args:
      objective_fn: x -> a scalar.
      init: where x starts, once clipped to the box; a pytree of floats.
      lower, upper: numbers, or trees like init whose leaves broadcast to its; infinite for none.
      history: steps remembered, at least 1.
      tolerance: of the norm of x - P(x - g), P the projection onto the box and g the gradient.
      max_steps: most steps.
      **derivative: options of `bilevel.attach_root`; A is the Hessian of the free variables.

    Returns:
      (x, info): info is an `InnerInfo` whose residual is that norm.

    Raises:
      ValueError: an argument is out of its range, init is not of real floats, or a tree of bounds
        is not like init.

    >>> import jax, jax.numpy as jnp, bilevel
    >>> def nearest(point):  # in the box
    ...     return bilevel.l_bfgs_b(lambda x: jnp.sum((x - point) ** 2), jnp.zeros(2), 0.0, 1.0)[0]
    >>> print(nearest(jnp.array([0.5, 3.0])))
    [0.5 1. ]
    >>> print(abs(jax.jacobian(nearest)(jnp.array([0.5, 3.0]))))
    [[1. 0.]
     [0. 0.]]
    """
    trees.check_at_least("l_bfgs_b", 1, history=history)
    init = checks.floats("l_bfgs_b", "init", init)
    lower, upper = _bound("lower", lower, init), _bound("upper", upper, init)
    gradient_fn = jax.grad(objective_fn)

    def value(x: Any) -> tuple[jax.Array, Any]:
        f, g = jax.value_and_grad(objective_fn)(x)
        return trees.as_dtype(f, trees.accumulator_dtype(f)), g

    def conditions(x: Any) -> Any:
        at = jax.lax.stop_gradient(x)
        g = gradient_fn(at)
        low = jax.tree.map(lambda x, l, g: (x <= l) & (g > 0), at, lower, g)
        high = jax.tree.map(lambda x, u, g: (x >= u) & (g < 0), at, upper, g)
        sides = (low, high, lower, upper)
        # The bound's own value goes in, whose derivative acts on the free variables' gradient.
        fixed = jax.tree.map(lambda x, a, b, l, u: jnp.where(a, l, jnp.where(b, u, x)), x, *sides)
        bound = jax.tree.map(jnp.logical_or, low, high)
        slopes, excess = gradient_fn(fixed), jax.tree.map(jnp.subtract, x, fixed)
        return jax.tree.map(jnp.where, bound, excess, slopes)

    def loop(x: Any) -> tuple[Any, InnerInfo]:
        return _loop(value, x, lower, upper, history, tolerance, max_steps)

    return solving.answer(
        "l_bfgs_b",
        conditions,
        init,
        loop,
        tolerance=tolerance,
        max_steps=max_steps,
        **{"symmetric": True, **derivative},
    )


class _State(NamedTuple):
    iterations: jax.Array
    evaluations: jax.Array
    moves: jax.Array  # bool: whether the last line search, or one before the memory, succeeded
    x: Any
    f: jax.Array
    g: Any
    steps: Any  # trees like x with a leading axis of history, oldest first
    changes: Any


def _loop(
    value: Callable[[Any], tuple[jax.Array, Any]],
    x: Any,
    lower: Any,
    upper: Any,
    history: int,
    tolerance: ArrayLike,
    max_steps: ArrayLike,
) -> tuple[Any, InnerInfo]:
    def clip(x: Any) -> Any:
        return jax.tree.map(jnp.clip, x, lower, upper)

    def residual(s: _State) -> jax.Array:
        return trees.norm(_less(s.x, clip(_less(s.x, s.g))))

    def step(s: _State) -> _State:
        near = jnp.minimum(1e-3, residual(s))

        def is_free(x: jax.Array, g: jax.Array, l: jax.Array, u: jax.Array) -> jax.Array:
            e = near.astype(x.dtype)
            return ~(((x <= l + e) & (g > 0)) | ((x >= u - e) & (g < 0)))

        free = jax.tree.map(is_free, s.x, s.g, lower, upper)

        def on_free(tree: Any) -> Any:
            return jax.tree.map(lambda v, f: jnp.where(f, v, 0), tree, free)

        inverse = optim.lbfgs_preconditioner(on_free(s.steps), on_free(s.changes))
        d = jax.tree.map(lambda h, g, f: jnp.where(f, h, g), inverse(on_free(s.g)), s.g, free)
        x, f, g, trials, falls = _line_search(value, clip, s, d)
        moved, changed = _less(x, s.x), _less(g, s.g)
        sound = falls & (vdot(moved, changed) > 0)
        steps, changes = (
            # What failed is forgotten; where that was with no memory, there is no more to try.
            jax.tree.map(lambda m: jnp.where(falls, m, 0), _appended(memory, new, sound))
            for memory, new in ((s.steps, moved), (s.changes, changed))
        )
        remembered = trees.any_element(lambda m: m != 0, s.changes)
        x, f, g = (
            jax.tree.map(lambda u, v: jnp.where(falls, u, v), new, old)
            for new, old in ((x, s.x), (f, s.f), (g, s.g))
        )
        moves = falls | remembered
        return _State(s.iterations + 1, s.evaluations + trials, moves, x, f, g, steps, changes)

    def goes_on(s: _State) -> jax.Array:
        return (residual(s) > tolerance) & s.moves & (s.iterations < max_steps)

    x = clip(x)
    f, g = value(x)
    empty = jax.tree.map(lambda v: jnp.zeros((history, *v.shape), trees.accumulator_dtype(v)), x)
    zero, one = jnp.int32(0), jnp.int32(1)
    s = jax.lax.while_loop(goes_on, step, _State(zero, one, jnp.isfinite(f), x, f, g, empty, empty))
    return s.x, InnerInfo(residual(s), s.iterations, s.evaluations, residual(s) <= tolerance)


def _line_search(
    value: Callable[[Any], tuple[jax.Array, Any]], clip: Callable[[Any], Any], s: _State, d: Any
) -> tuple[Any, Any, Any, jax.Array, jax.Array]:
    """The next x, f and g of it, the trials, and whether the last one was a fall."""
    rounding = 10 * jnp.finfo(s.f.dtype).eps * jnp.abs(s.f)

    def trial(t: jax.Array) -> Any:
        x = jax.tree.map(lambda x, d: (x - t.astype(d.dtype) * d).astype(x.dtype), s.x, d)
        x = clip(x)
        f, g = value(x)
        falls = f <= s.f + 1e-4 * vdot(s.g, _less(x, s.x)).astype(f.dtype) + rounding
        return x, f, g, falls & trees.all_finite(g)

    def goes_on(carry: Any) -> jax.Array:
        trials, _, (*_, falls) = carry
        return ~falls & (trials <= HALVINGS)

    def halve(carry: Any) -> Any:
        trials, t, _ = carry
        return trials + 1, t / 2, trial(t / 2)

    one = jnp.ones_like(s.f)
    trials, _, (x, f, g, falls) = jax.lax.while_loop(
        goes_on, halve, (jnp.int32(1), one, trial(one))
    )
    return x, f, g, trials, falls


def _less(x: Any, y: Any) -> Any:
    return jax.tree.map(lambda u, v: trees.promote(u) - trees.promote(v), x, y)


def _appended(memory: Any, new: Any, wanted: jax.Array) -> Any:
    def one(m: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.where(wanted, jnp.concatenate([m[1:], v[None].astype(m.dtype)]), m)

    return jax.tree.map(one, memory, new)


def _bound(name: str, bound: Any, x: Any) -> Any:
    """The bound as a tree like x."""
    structure: Any = jax.tree.structure(bound)
    wanted: Any = jax.tree.structure(x)
    if jax.tree_util.treedef_is_leaf(structure) and jnp.ndim(bound) == 0:
        bound = jax.tree.map(lambda _: bound, x)
    elif structure != wanted:
        raise ValueError(
            f"l_bfgs_b: {name} is {structure}; accepted: a number, or the structure of init, "
            f"{wanted}."
        )

    def one(b: ArrayLike, v: jax.Array) -> jax.Array:
        return jnp.broadcast_to(trees.as_dtype(b, v.dtype), v.shape)

    return jax.tree.map(one, bound, x)
