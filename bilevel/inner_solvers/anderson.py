"""Anderson acceleration of a fixed point y = fn(y).

With r = fn(y) - y, the last steps s_j of y and the changes t_j of r, and mixing b::

    c = argmin |r - sum_j c_j t_j|^2 + regularization sum_j (c_j |t_j|)^2
    y = y + b r - sum_j c_j (s_j + b t_j)

that is the step b r from where the residual would be least if fn were linear.

*Differences.* From jaxopt's `AndersonAcceleration`: (1) it accelerates from the second step on, and
not when its history is full. (2) It stores changes, whose inner products do not cancel as those of
residuals do, and (3) its regularization, at least 10 units of rounding, is relative to each of
them: theirs is absolute, and stops the acceleration once r is about its square root. (4) x is what
`info.residual` was measured at, not fn of it. (5) No mixing_frequency.

*Cost.* One call of fn a step, one more at the start; 2 history inner products a step; 2 history + 2
vectors.

*Reference.* Walker and Ni, Anderson acceleration for fixed-point iterations, 2011; jaxopt 0.8.5.
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
from optim.solvers.linear import divide, vdot


def anderson(
    fn: Callable[[Any], Any],
    init: Any,
    *,
    history: int = 5,
    mixing: ArrayLike = 1.0,
    regularization: ArrayLike = 1e-10,
    tolerance: ArrayLike = 1e-5,
    max_steps: ArrayLike = 100,
    **derivative: Any,
) -> tuple[Any, InnerInfo]:
    """Finds y = fn(y), with the derivative of the fixed point by all that fn closes over.

    Args:
      fn: y -> a tree like y.
      init: where y starts, a pytree of floats.
      history: changes remembered, at least 1.
      mixing: how much of the residual is added, positive; 1 is the step of y = fn(y).
      regularization: at least 0.
      tolerance: of |fn(y) - y|, the Euclidean norm.
      max_steps: most steps.
      **derivative: options of `bilevel.attach_root`; A is I - dfn/dy, and by default GMRES's.

    Returns:
      (y, info): info is an `InnerInfo` whose residual is |fn(y) - y|.

    Raises:
      ValueError: an argument is out of its range, init is not of real floats, or fn gives no tree
        like it.

    >>> import jax, jax.numpy as jnp, bilevel
    >>> def solution(x):
    ...     return bilevel.anderson(lambda y: x * jnp.cos(y), 0.5)[0]
    >>> y, slope = jax.value_and_grad(solution)(1.0)
    >>> print(f"{y:.4f} {slope:.4f} {jnp.cos(y) / (1 + jnp.sin(y)):.4f}")
    0.7391 0.4416 0.4416
    """
    trees.check_at_least("anderson", 1, history=history)
    trees.check_positive("anderson", mixing=mixing)
    trees.check_at_least("anderson", 0, regularization=regularization)

    def residual(y: Any) -> Any:
        out = trees.promote(checks.like("anderson", "fn", fn(y), y))
        return jax.tree.map(jnp.subtract, out, trees.promote(y))

    def optimality(y: Any) -> Any:
        return jax.tree.map(lambda r: -r, residual(y))

    def loop(y: Any) -> tuple[Any, InnerInfo]:
        r = residual(y)
        dtype = trees.norm(r).dtype
        goal, b = trees.as_dtype(tolerance, dtype), trees.as_dtype(mixing, dtype)
        ridge = jnp.maximum(trees.as_dtype(regularization, dtype), 10 * jnp.finfo(dtype).eps)

        def step(s: _State) -> _State:
            c = _coefficients(s, ridge)
            move = jax.tree.map(lambda r: b.astype(r.dtype) * r, s.r)
            move = jax.tree.map(
                lambda d, u, v: d - jnp.tensordot(c.astype(d.dtype), u + b.astype(d.dtype) * v, 1),
                move,
                s.steps,
                s.changes,
            )
            y = jax.tree.map(lambda v, d: (v.astype(d.dtype) + d).astype(v.dtype), s.y, move)
            r = residual(y)
            moved = jax.tree.map(lambda u, v: trees.promote(u) - trees.promote(v), y, s.y)
            changed = jax.tree.map(jnp.subtract, r, s.r)
            at = s.iterations % history
            changes = _put(s.changes, at, changed)
            row = jax.vmap(vdot, (0, None))(changes, changed)
            products = s.products.at[at].set(row).at[:, at].set(row)
            return _State(s.iterations + 1, y, r, _put(s.steps, at, moved), changes, products)

        def goes_on(s: _State) -> jax.Array:
            norm = trees.norm(s.r)
            return (norm > goal) & jnp.isfinite(norm) & (s.iterations < max_steps)

        empty = jax.tree.map(lambda v: jnp.zeros((history, *v.shape), v.dtype), r)
        start = _State(jnp.int32(0), y, r, empty, empty, jnp.zeros((history, history), dtype))
        end = jax.lax.while_loop(goes_on, step, start)
        norm = trees.norm(end.r)
        return end.y, InnerInfo(norm, end.iterations, end.iterations + 1, norm <= goal)

    return solving.answer(
        "anderson", optimality, init, loop, tolerance=tolerance, max_steps=max_steps, **derivative
    )


class _State(NamedTuple):
    iterations: jax.Array
    y: Any
    r: Any  # fn(y) - y
    steps: Any  # trees like r with a leading axis of history
    changes: Any
    products: jax.Array  # (history, history): inner products of the changes


def _coefficients(s: _State, ridge: jax.Array) -> jax.Array:
    """(history,), zero in places that are empty still."""
    lengths = jnp.sqrt(jnp.diag(s.products))
    scaled = divide(s.products, jnp.outer(lengths, lengths)) + ridge * jnp.eye(lengths.size)
    # A place that is empty, or whose change was zero, has a row of zeros and an answer of zero.
    wanted = divide(jax.vmap(vdot, (0, None))(s.changes, s.r), lengths)
    with jax.default_matmul_precision("highest"):
        return divide(jnp.linalg.solve(scaled.astype(ridge.dtype), wanted), lengths)


def _put(memory: Any, at: jax.Array, new: Any) -> Any:
    return jax.tree.map(lambda m, v: m.at[at].set(v), memory, new)
