"""The projection onto a box cut by one linear equation.

With one multiplier tau, and w of any sign::

    y = argmin |y - x|^2 / 2 subject to l <= y <= u, <w, y> = c
    y_i = clip(x_i + tau w_i, l_i, u_i),   <w, y(tau)> = c

<w, y(tau)> increases and is piecewise linear. Bisection among its sorted breakpoints, (l - x) / w
and (u - x) / w, finds the piece on which it is c; there the numbers at a bound are known, and tau
follows from the others, F, by::

    tau = (c - <w, y>_at bounds - <w, x>_F) / <w, w>_F

*Derivatives.* The last formula's, in all arguments, of any order, as long as F stays; there is none
where a number is about to reach a bound or to leave it.

*Differences.* jaxopt's `projection_box_section(x, (alpha, beta, w, c))` bisects tau itself, 30
times, to 1e-5; needs w > 0 and finite bounds; raises an error on an empty set if asked and not
under jit. Here it is exact, and NaN where the set is empty.

*Cost.* Two sorts of 2 n numbers, and 2 log2(2 n) + 4 passes over x.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel import checks
from bilevel.projections import arguments
from optim.solvers import linear


def projection_box_section(x: Any, lower: Any, upper: Any, weights: Any, target: ArrayLike) -> Any:
    """The nearest y with lower <= y <= upper and <weights, y> = target, or NaN if there is none.

    Args:
      x: a pytree of real floats.
      lower: l, a number or a tree like x; may be -inf.
      upper: u, a number or a tree like x; may be inf.
      weights: w, a number or a tree like x, of any sign.
      target: c, a number.

    Raises:
      ValueError: x has a leaf that is not real and floating, or another argument another structure
        or shape.

    >>> import bilevel, jax.numpy as jnp
    >>> x = jnp.array([0.9, 0.4, -0.3])
    >>> y = bilevel.projection_box_section(x, 0.0, 0.5, 1.0, 0.75)
    >>> print(jnp.array_str(y, precision=3))
    [0.5  0.25 0.  ]
    """
    method = "projection_box_section"
    flat, unravel = linear.ravel(checks.floats(method, "x", x))
    c = arguments.array(method, "target", target, flat.dtype)
    l, u, w = (
        _like(method, name, value, x, flat)
        for name, value in (("lower", lower), ("upper", upper), ("weights", weights))
    )
    # Near the solution first, where breakpoints lie apart that rounding makes one far from it.
    *_, tau = _at_bounds(*jax.lax.stop_gradient((flat, l, u, w, c)))
    flat = flat + tau * w
    low, high, _ = _at_bounds(*jax.lax.stop_gradient((flat, l, u, w, c)))
    free = ~low & ~high
    base = jnp.where(free, flat, jnp.where(low, l, u))
    squares = jnp.sum(jnp.where(free, w * w, 0))
    step = jnp.where(free, w, 0) / jnp.where(squares > 0, squares, 1)
    # Twice: what is left the second time is small, and so is its rounding.
    shift = jax.lax.stop_gradient(c - jnp.sum(w * base))
    y = base + shift * step
    y = y + (c - jnp.sum(w * y)) * step
    y = y + jax.lax.stop_gradient(jnp.clip(y, l, u) - y)
    most = flat.size * arguments.rounding(flat.dtype) * (jnp.sum(jnp.abs(w * y)) + jnp.abs(c))
    found = (jnp.abs(jnp.sum(w * y) - c) <= most) & jnp.all(l <= u)
    return unravel(arguments.nan_unless(found, y))


def _like(method: str, name: str, value: Any, x: Any, flat: jax.Array) -> jax.Array:
    """The value as a vector beside that of x."""
    leaves, wanted = jax.tree.flatten(x)
    given: Any = jax.tree.structure(value)
    if given == jax.tree.structure(0) and jnp.ndim(value) == 0:
        return jnp.full_like(flat, value)
    if given != wanted:
        raise ValueError(
            f"{method}: {name} is {given}; accepted: a number, or the structure of x, {wanted}."
        )
    parts = [
        arguments.array(method, name, v, flat.dtype, *jnp.shape(leaf)).ravel()
        for v, leaf in zip(jax.tree.leaves(value), leaves, strict=True)
    ]
    return jnp.concatenate(parts)


@jax.jit  # so that it is compiled once, called bare
def _at_bounds(
    x: jax.Array, l: jax.Array, u: jax.Array, w: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which numbers of the solution are at l, which at u, and a breakpoint next to its tau."""
    still = w == 0
    slope = jnp.where(still, 1, w)
    first, last = jnp.where(w > 0, l, u), jnp.where(w > 0, u, l)
    # From `enter` on, x_i + tau w_i is inside the box, until `leave`.
    enter = jnp.where(still, -jnp.inf, (first - x) / slope)
    leave = jnp.where(still, jnp.inf, (last - x) / slope)
    knots = jnp.sort(jnp.concatenate([enter, leave]))

    def below(k: jax.Array) -> jax.Array:
        """Whether <w, y> is c or less at this breakpoint."""
        tau = jnp.where(jnp.isfinite(knots[k]), knots[k], 0)
        total = jnp.sum(w * jnp.clip(x + tau * w, l, u))
        return jnp.where(jnp.isfinite(knots[k]), total <= c, knots[k] < 0)

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, right = ends
        middle = (left + right) // 2
        goes = below(middle) & (right - left > 1)
        return jnp.where(goes, middle, left), jnp.where(goes | (right - left <= 1), right, middle)

    ends = (jnp.int32(-1), jnp.int32(knots.size))
    left, right = jax.lax.fori_loop(0, (knots.size + 1).bit_length(), halve, ends)
    before = jnp.where(left < 0, -jnp.inf, knots[left])
    after = jnp.where(right == knots.size, jnp.inf, knots[jnp.minimum(right, knots.size - 1)])
    ahead, behind = enter >= after, leave <= before
    low = jnp.where(still, x < l, jnp.where(w > 0, ahead, behind))
    high = jnp.where(still, x > u, jnp.where(w > 0, behind, ahead))
    near = jnp.where(jnp.isfinite(before), before, jnp.where(jnp.isfinite(after), after, 0))
    return low, high, near
