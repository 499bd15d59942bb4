"""Isotonic regression: the nearest vector whose entries are in order.

With weights w, `isotonic_l2` gives, and with an entropy in place of the square `isotonic_kl`::

    argmin sum_i w_i (v_i - y_i)^2              where v_1 <= ... <= v_n
    argmin sum_i exp(y_i - v_i) + exp(w_i) v_i  where v_1 <= ... <= v_n

By pooling adjacent violators: each number begins as a block, and a block that is less than the one
before it is joined to that, until none is. On a block B, v is one number::

    l2: sum_B w_i y_i / sum_B w_i,   kl: log sum_B exp(y_i) - log sum_B exp(w_i)

which is computed anew at the end, and is what derivatives are taken of.

*Derivatives.* Of every order, by y and the weights, of the blocks as they are. Where two blocks
have the same value, which is where there is none, that of two blocks.

*Differences.* From jaxopt's `isotonic_l2_pav`: (1) it runs where JAX does, not in a callback that
takes one row of a batch at a time. (2) Its derivative joins blocks that differ by less than 1e-8,
and costs O(n^2). (3) There are weights. (4) No y_min and y_max: clip the result. jaxopt has no kl.

*Cost.* 2 n - 1 steps of O(1), one after the other, which suits a CPU and no accelerator; a batch
takes them together, in 2 n - 1 steps too.

*Reference.* Best, Chakravarti and Ubhaya, Minimizing separable convex functions subject to simple
chain constraints, 2000; Blondel, Teboul, Berthet and Djolonga, Fast differentiable sorting and
ranking, 2020.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel import checks
from optim import trees


def isotonic_l2(
    y: ArrayLike, weights: ArrayLike | None = None, increasing: bool = True
) -> jax.Array:
    """The vector in order that is nearest to y in the weighted square.

    Args:
      y: (n,), real floats.
      weights: (n,), positive; ones by default.
      increasing: whether the entries never decrease; else they never increase.

    Raises:
      ValueError: y or weights is no vector of real floats, or their sizes differ.

    >>> import jax, jax.numpy as jnp, bilevel
    >>> y = jnp.array([1.0, 3.0, 2.0, 5.0])
    >>> print(bilevel.isotonic_l2(y))
    [1.  2.5 2.5 5. ]
    >>> print(jax.jacobian(bilevel.isotonic_l2)(y)[1])
    [0.  0.5 0.5 0. ]
    """
    dtype = jnp.result_type(_vector("isotonic_l2", "y", y))
    other = jnp.ones(jnp.shape(y), dtype) if weights is None else weights
    y, weights = _pair("isotonic_l2", y, "weights", other)
    return _in_order(y, weights, increasing, _mean, lambda b: b[0], _join_means).astype(dtype)


def isotonic_kl(y: ArrayLike, w: ArrayLike, increasing: bool = True) -> jax.Array:
    """The vector in order that is nearest to y - w in the relative entropy.

    Args:
      y: (n,), real floats, logarithms.
      w: (n,), logarithms of the weights.
      increasing: whether the entries never decrease; else they never increase.

    Raises:
      ValueError: y or w is no vector of real floats, or their sizes differ.

    >>> import jax.numpy as jnp, bilevel
    >>> y = jnp.log(jnp.array([1.0, 3.0, 2.0, 5.0]))
    >>> print(jnp.exp(bilevel.isotonic_kl(y, jnp.zeros(4))).round(4))
    [1.  2.5 2.5 5. ]
    """
    dtype = jnp.result_type(_vector("isotonic_kl", "y", y))
    y, w = _pair("isotonic_kl", y, "w", w)
    found = _in_order(y, w, increasing, _log_ratio, lambda b: b[0] - b[1], jnp.logaddexp)
    return found.astype(dtype)


def _vector(method: str, name: str, value: ArrayLike) -> jax.Array:
    if jnp.ndim(value) != 1:
        shape = jnp.shape(value)
        raise ValueError(f"{method}: {name} has the shape {shape}; accepted: a vector.")
    return checks.floats(method, name, value)


def _pair(method: str, y: ArrayLike, name: str, other: ArrayLike) -> tuple[jax.Array, jax.Array]:
    y, other = _vector(method, "y", y), _vector(method, name, other)
    if y.shape != other.shape:
        raise ValueError(
            f"{method}: {name} has the shape {other.shape}; accepted: that of y, {y.shape}."
        )
    dtype = trees.accumulator_dtype(y, other)
    return y.astype(dtype), other.astype(dtype)


def _in_order(
    y: jax.Array,
    weights: jax.Array,
    increasing: bool,
    pooled: Callable[..., jax.Array],
    value: Callable[[jax.Array], jax.Array],
    join: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    if y.size < 2:
        return pooled(y, weights, jnp.zeros(y.size, int))
    if not increasing:
        y, weights = y[::-1], weights[::-1]
    points = jax.lax.stop_gradient(jnp.stack([y, weights], axis=1))
    v = pooled(y, weights, _blocks(points, value, join))
    # The values computed anew may be out of order, by rounding alone; not so what is returned.
    v = v + jax.lax.stop_gradient(jax.lax.cummax(v) - v)
    return v if increasing else v[::-1]


class _Stack(NamedTuple):
    """The blocks of the first points, the last on top."""

    points: jax.Array  # how many are in blocks
    size: jax.Array  # how many blocks
    blocks: jax.Array  # (n, 2): each block's two numbers
    starts: jax.Array  # (n,): each block's first point


def _blocks(
    points: jax.Array,
    value: Callable[[jax.Array], jax.Array],
    join: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """(n,) integers from 0, the block of each point."""
    n = len(points)

    def step(_: jax.Array, s: _Stack) -> _Stack:
        last, top = s.blocks[s.size - 2], s.blocks[s.size - 1]
        joins = (s.size > 1) & (value(last) > value(top))
        grows = ~joins & (s.points < n)
        # An index of n writes nothing: with a select in its place a batch would copy its stacks.
        at = jnp.where(joins, s.size - 2, jnp.where(grows, s.size, n))
        new = jnp.where(joins, join(last, top), points[s.points])
        return _Stack(
            s.points + grows,
            s.size - joins + grows,
            s.blocks.at[at].set(new, mode="drop"),
            s.starts.at[jnp.where(grows, s.size, n)].set(s.points, mode="drop"),
        )

    one = jnp.int32(1)
    start = _Stack(one, one, jnp.zeros_like(points).at[0].set(points[0]), jnp.zeros(n, jnp.int32))
    # The first point is in; each of the others is added once and joined at most once.
    end = jax.lax.fori_loop(0, 2 * (n - 1), step, start)
    starts = jnp.where(jnp.arange(n) < end.size, end.starts, n)
    firsts = jnp.zeros(n, jnp.int32).at[starts].set(1, mode="drop")
    return jnp.cumsum(firsts) - 1


def _join_means(last: jax.Array, top: jax.Array) -> jax.Array:
    """The block of both, of (mean, weight)."""
    weight = last[1] + top[1]
    return jnp.stack([last[0] + (top[0] - last[0]) * (top[1] / weight), weight])


def _mean(y: jax.Array, weights: jax.Array, block: jax.Array) -> jax.Array:
    def total(values: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, block, num_segments=y.size)[block]

    weight = total(weights)
    middle = jax.lax.stop_gradient(total(weights * y) / weight)
    # The rounding of a long sum is the less, the smaller what is added.
    return middle + total(weights * (y - middle)) / weight


def _log_ratio(y: jax.Array, w: jax.Array, block: jax.Array) -> jax.Array:
    def log_total(values: jax.Array) -> jax.Array:
        most = jax.lax.stop_gradient(jax.ops.segment_max(values, block, num_segments=y.size))[block]
        total = jax.ops.segment_sum(jnp.exp(values - most), block, num_segments=y.size)[block]
        return most + jnp.log(total)

    return log_total(y) - log_total(w)
