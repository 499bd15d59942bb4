"""Broyden's good method with a limited memory, for a root fn(y) = 0.

With H about the inverse of the Jacobian, d = -H fn(y), s = t d and z = fn(y + s) - fn(y)::

    y = y + s,   H = H + (s - H z) (s'H) / (s'H z)

H is scale I plus the last `memory` such terms. The step t of iteration k is the first of 1, 1/2,
1/4, ... with::

    |fn(y + t d)| <= (1 + 3 / (k + 1)^1.5 - 1e-4 t^2) |fn(y)|

which lets the norm rise, since d need not be a direction in which it falls, yet keeps it bounded,
the slack having a finite sum. Where t was halved 10 times, H is of no use: it starts anew, with
scale = s'z / z'z.

*Differences.* From the papers: (1) a term with |s'H z| < 1e-6 |H's| |z| is left out; (2) the fall
that is asked for is in proportion to |fn(y)|, so that units do not matter; (3) the slack and the
restart are ours, chosen so that nine small problems, the usual ones among them, all converge.
From jaxopt's `Broyden`: (1) its line search differentiates fn, and asks for Wolfe's conditions of
|fn|^2. (2) Its H starts as I. (3) Its memory is as long as its most steps.

*Cost.* One call of fn a step and one for each time t is halved; 4 memory inner products or updates
of vectors a step; 2 memory + 3 vectors.

*Reference.* Broyden, A class of methods for solving nonlinear simultaneous equations, 1965; Li and
Fukushima, A derivative-free line search and global convergence of Broyden-like method for nonlinear
equations, 2000; jaxopt 0.8.5.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel import checks
from bilevel.inner_solvers import solving
from bilevel.inner_solvers.solving import InnerInfo
from optim import trees
from optim.solvers.linear import axpy, divide, times, vdot

HALVINGS = 30  # most, of one step
RESTARTS = 10  # halvings of a step after which the inverse starts anew


def broyden(
    fn: Callable[[Any], Any],
    init: Any,
    *,
    memory: int = 20,
    scale: ArrayLike | None = None,
    tolerance: ArrayLike = 1e-5,
    max_steps: ArrayLike = 500,
    **derivative: Any,
) -> tuple[Any, InnerInfo]:
    """Finds fn(y) = 0, with the derivative of the root by all that fn closes over.

    Args:
      fn: y -> a tree like y.
      init: where y starts, a pytree of floats.
      memory: terms of the inverse remembered, at least 1.
      scale: of the inverse at the start, not zero, and negative where the Jacobian is; by default
        f'J f / |J f|^2 with f = fn(init) and one product with the Jacobian J.
      tolerance: of |fn(y)|, the Euclidean norm.
      max_steps: most steps.
      **derivative: options of `bilevel.attach_root`; A is dfn/dy, and by default GMRES's.

    Returns:
      (y, info): info is an `InnerInfo` whose residual is |fn(y)|.

    Raises:
      ValueError: an argument is out of its range, init is not of real floats, or fn gives no tree
        like it.

    >>> import jax, bilevel
    >>> def root(x):
    ...     return bilevel.broyden(lambda y: y**3 - x, 1.0)[0]
    >>> print(f"{root(8.0):.4f} {jax.grad(root)(8.0):.4f}")  # 1 / (3 * 2**2)
    2.0000 0.0833
    """
    trees.check_at_least("broyden", 1, memory=memory)

    def value(y: Any) -> Any:
        return checks.like("broyden", "fn", fn(y), y)

    def loop(y: Any) -> tuple[Any, InnerInfo]:
        f = trees.promote(value(y))
        norm = trees.norm(f)
        goal = trees.as_dtype(tolerance, norm.dtype)
        first = _scale(value, y, f) if scale is None else trees.as_dtype(scale, norm.dtype)

        def step(s: _State) -> _State:
            d = times(-jnp.ones_like(norm), _product(s.scale, s.left, s.right, s.f))
            y, f, after, halvings = _line_search(value, s, d)
            moved = jax.tree.map(lambda u, v: trees.promote(u) - trees.promote(v), y, s.y)
            changed = jax.tree.map(jnp.subtract, f, s.f)
            # The transpose of H swaps the factors of its terms.
            right = _product(s.scale, s.right, s.left, moved)
            left = jax.tree.map(jnp.subtract, moved, _product(s.scale, s.left, s.right, changed))
            by = vdot(right, changed)
            sound = jnp.abs(by) > 1e-6 * trees.norm(right) * trees.norm(changed)
            at = jnp.where(sound, s.terms % memory, memory)  # the latter writes nothing
            anew = halvings >= RESTARTS
            kept = jnp.where(anew, 0, 1).astype(norm.dtype)
            return _State(
                s.iterations + 1,
                s.evaluations + 1 + halvings,
                jnp.isfinite(after),
                y,
                f,
                after,
                jnp.where(anew, _ratio(moved, changed), s.scale),
                s.terms + sound,
                times(kept, _put(s.left, at, times(divide(jnp.ones_like(by), by), left))),
                times(kept, _put(s.right, at, right)),
            )

        def goes_on(s: _State) -> jax.Array:
            return (s.norm > goal) & s.moved & (s.iterations < max_steps)

        empty = jax.tree.map(lambda v: jnp.zeros((memory, *v.shape), v.dtype), f)
        zero, one = jnp.int32(0), jnp.int32(1)
        start = _State(zero, one, jnp.isfinite(norm), y, f, norm, first, zero, empty, empty)
        s = jax.lax.while_loop(goes_on, step, start)
        return s.y, InnerInfo(s.norm, s.iterations, s.evaluations, s.norm <= goal)

    return solving.answer(
        "broyden", value, init, loop, tolerance=tolerance, max_steps=max_steps, **derivative
    )


def _scale(value: Callable[[Any], Any], y: Any, f: Any) -> jax.Array:
    """The number nearest to the inverse of the Jacobian along fn(y)."""
    along = jax.tree.map(lambda u, v: u.astype(v.dtype), f, y)
    return _ratio(f, trees.promote(jax.jvp(value, (y,), (along,))[1]))


def _ratio(moved: Any, changed: Any) -> jax.Array:
    """The number that is nearest to H with H changed = moved; 1 if that is zero."""
    found = divide(vdot(moved, changed), vdot(changed, changed))
    return jnp.where((found == 0) | ~jnp.isfinite(found), 1, found)


class _State(NamedTuple):
    iterations: jax.Array
    evaluations: jax.Array
    moved: jax.Array  # bool: whether the last step was one
    y: Any
    f: Any  # fn(y)
    norm: jax.Array  # of f
    scale: jax.Array
    terms: jax.Array  # how many were ever added
    left: Any  # H = scale I + sum_j left_j right_j'; trees like f, a leading axis of memory
    right: Any


def _line_search(value: Callable[[Any], Any], s: _State, d: Any) -> tuple[Any, Any, Any, Any]:
    """The next y, fn of it, the norm of that, and how often the step was halved."""
    slack = 3 / (1 + s.iterations.astype(s.norm.dtype)) ** 1.5

    def trial(t: jax.Array) -> tuple[Any, Any, jax.Array]:
        y = jax.tree.map(lambda v, w: v.astype(w.dtype), axpy(t, d, trees.promote(s.y)), s.y)
        f = trees.promote(value(y))
        return y, f, trees.norm(f)

    def too_long(carry: Any) -> jax.Array:
        halvings, t, (_, _, norm) = carry
        return ~(norm <= (1 + slack - 1e-4 * t**2) * s.norm) & (halvings < HALVINGS)

    def halve(carry: Any) -> Any:
        halvings, t, _ = carry
        return halvings + 1, t / 2, trial(t / 2)

    one = jnp.ones_like(s.norm)
    halvings, _, (y, f, norm) = jax.lax.while_loop(too_long, halve, (jnp.int32(0), one, trial(one)))
    return y, f, norm, halvings


def _product(scale: jax.Array, left: Any, right: Any, v: Any) -> Any:
    """scale v + sum_j left_j (right_j'v)."""
    c = jax.vmap(vdot, (0, None))(right, v)
    return jax.tree.map(
        lambda u, m: scale.astype(u.dtype) * u + jnp.tensordot(c.astype(u.dtype), m, 1), v, left
    )


def _put(memory: Any, at: jax.Array, new: Any) -> Any:
    return jax.tree.map(lambda m, v: m.at[at].set(v, mode="drop"), memory, new)
