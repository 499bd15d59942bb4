"""The operator of total variation in one dimension, exact.

With t = scaling * l1reg::

    y = argmin |y - x|^2 / 2 + t sum_i |y_{i+1} - y_i|

By dynamic programming. f_i(b), the least cost of y_1 ... y_i with y_i = b, has a derivative that
increases and is piecewise linear::

    f_1' = b - x_1,   f_{i+1}' = b - x_{i+1} + clip(f_i', -t, t)

With f_i'(l_i) = -t and f_i'(u_i) = t, from the last to the first::

    f_n'(y_n) = 0,   y_i = clip(y_{i+1}, l_i, u_i)

That tells where y jumps, and whether up or down. Each constant piece is then computed anew, which
is more exact and is what derivatives are taken of::

    y = mean of the piece of x + t (sign of the next jump - sign of the last) / length

*Derivatives.* y is linear in x and t as long as its jumps stay, so that is its derivative, and the
second is zero. There is none where two pieces are about to merge or one to break.

*Differences.* From the paper: (1) the pieces are computed anew; (2) the mean is subtracted first,
since sums of x are what rounding errors come from. jaxopt has no such operator.

*Cost.* O(n), one number after the other, which suits a CPU and no accelerator; 7 vectors.

*Reference.* Johnson, A dynamic programming algorithm for the fused lasso and L0-segmentation,
Journal of Computational and Graphical Statistics, 2013.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel.prox import separable
from optim import trees


def prox_total_variation(
    x: ArrayLike, l1reg: ArrayLike = 1.0, scaling: ArrayLike = 1.0
) -> jax.Array:
    """The piecewise constant vector that is nearest for the price of its variation.

    Args:
      x: (n,), real floats.
      l1reg: the strength, at least 0, a number.
      scaling: the step size, at least 0.

    Raises:
      ValueError: a number is negative or none, or x is no vector of real floats.

    >>> import jax.numpy as jnp
    >>> from bilevel.prox.total_variation import prox_total_variation
    >>> print(prox_total_variation(jnp.array([0.0, 1.0, 0.5, 6.0, 5.0]), 1.5))
    [1.   1.   1.   4.75 4.75]
    """
    method = "prox_total_variation"
    trees.check_at_least(method, 0, l1reg=l1reg, scaling=scaling)
    for name, value, axes in (("x", x, 1), ("l1reg", l1reg, 0), ("scaling", scaling, 0)):
        if jnp.ndim(value) != axes:
            wanted = "a vector" if axes else "a number"
            raise ValueError(
                f"{method}: {name} has the shape {jnp.shape(value)}; accepted: {wanted}."
            )
    given = jnp.result_type(separable.checked(method, x))
    dtype = trees.accumulator_dtype(x)
    x = trees.as_dtype(x, dtype)
    if x.size < 2:
        return x.astype(given)
    t = trees.as_dtype(l1reg, dtype) * trees.as_dtype(scaling, dtype)
    found = _dynamic_program(*jax.lax.stop_gradient((x - jnp.mean(x), t)))
    return _pieces(x, t, jnp.sign(jnp.diff(found))).astype(given)


def _pieces(x: jax.Array, t: jax.Array, jumps: jax.Array) -> jax.Array:
    """y from the signs of its jumps."""
    piece = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(jumps != 0)])
    push = t * (jnp.append(jumps, 0) - jnp.append(0, jumps))

    def total(values: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, piece, num_segments=x.size)[piece]

    length = total(jnp.ones_like(x))
    middle = jax.lax.stop_gradient(total(x) / length)
    # The rounding of a long sum is the less, the smaller what is added.
    return middle + total(x - middle + push) / length


class _Line(NamedTuple):
    """A piece of the derivative, slope b + height, and the knot that ends it."""

    slope: jax.Array
    height: jax.Array
    knot: jax.Array


class _Program(NamedTuple):
    """The derivative of f_i: its first and its last piece, and what changes at each knot."""

    i: jax.Array
    up: _Line
    down: _Line
    knots: jax.Array  # (2 n + 3, 3): place, and what slope and height are more after than before
    bounds: jax.Array  # (n, 2): l and u


def _moved(line: _Line, knot: jax.Array, step: int) -> _Line:
    """The next piece, after (step 1) or before (step -1) the line's knot."""
    return _Line(line.slope + step * knot[1], line.height + step * knot[2], line.knot + step)


def _dynamic_program(x: jax.Array, t: jax.Array) -> jax.Array:
    """y, up to rounding. One knot is taken away, or one x and two knots added, a step."""
    n = x.size
    one = jnp.ones((), x.dtype)

    def step(s: _Program) -> _Program:
        left, right = s.knots[jnp.stack([s.up.knot, s.down.knot])]
        some = s.up.knot <= s.down.knot
        before = s.up.slope * left[0] + s.up.height < -t
        after = s.down.slope * right[0] + s.down.height > t
        drop_first, drop_last = some & before, some & ~before & after
        up = _either(drop_first, _moved(s.up, left, 1), s.up)
        down = _either(drop_last, _moved(s.down, right, -1), s.down)
        ready = ~drop_first & ~drop_last
        bounds = jnp.stack([(-t - up.height) / up.slope, (t - down.height) / down.slope])
        bends = jnp.stack([up.slope, -down.slope])
        jumps = jnp.stack([up.height + t, t - down.height])
        # The last row is for what is not wanted.
        at = jnp.where(ready, jnp.stack([up.knot - 1, down.knot + 1]), 2 * n + 2)
        return _Program(
            s.i + ready,
            _either(ready, _Line(one, -t - x[s.i + 1], up.knot - 1), up),
            _either(ready, _Line(one, t - x[s.i + 1], down.knot + 1), down),
            s.knots.at[at].set(jnp.stack([bounds, bends, jumps], axis=1)),
            s.bounds.at[s.i].set(bounds),
        )

    up, down = _Line(one, -x[0], jnp.int32(n + 1)), _Line(one, -x[0], jnp.int32(n))
    knots, bounds = jnp.zeros((2 * n + 3, 3), x.dtype), jnp.zeros((n, 2), x.dtype)
    start = _Program(jnp.int32(0), up, down, knots, bounds)
    end = jax.lax.while_loop(lambda s: s.i < n - 1, step, start)

    def negative(line: _Line) -> jax.Array:
        below = line.slope * end.knots[line.knot, 0] + line.height < 0
        return (line.knot <= end.down.knot) & below

    zero = jax.lax.while_loop(negative, lambda line: _moved(line, end.knots[line.knot], 1), end.up)

    def back(y: jax.Array, bounds: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = jnp.clip(y, bounds[0], bounds[1])
        return y, y

    y = -zero.height / zero.slope
    _, rest = jax.lax.scan(back, y, end.bounds[:-1], reverse=True)
    return jnp.append(rest, y)


def _either(which: jax.Array, a: _Line, b: _Line) -> _Line:
    return _Line(*(jnp.where(which, u, v) for u, v in zip(a, b, strict=True)))
