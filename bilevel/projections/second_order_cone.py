"""The projection onto the second-order cone, |v| <= t.

::

    (v, t)                            where |v| <= t
    (0, 0)                            where |v| <= -t
    (1 + t / |v|) (v, |v|) / 2        elsewhere

*Derivatives.* The formula's, of any order inside each of the three parts; there is none on the
border of two. At v = 0 it is the identity where t >= 0, else zero, and never NaN.

*Differences.* jaxopt has no such function. Solvers of cone programs put t first.

*Cost.* Three passes over v.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel import checks
from bilevel.projections import arguments
from optim.solvers import linear


def projection_second_order_cone(x: tuple[Any, ArrayLike]) -> tuple[Any, jax.Array]:
    """The nearest (v, t) with norm(v) <= t.

    Args:
      x: a pair (v, t): a pytree of real floats, and a number that is one.

    Raises:
      ValueError: x is no pair, t no number, or a leaf not real and floating.

    >>> import bilevel, jax.numpy as jnp
    >>> v, t = bilevel.projection_second_order_cone((jnp.array([3.0, 4.0]), 0.0))
    >>> print(v, t)
    [1.5 2. ] 2.5
    """
    method = "projection_second_order_cone"
    if not isinstance(x, tuple) or len(x) != 2:
        raise ValueError(f"{method}: x is {jax.tree.structure(x)}; accepted: a pair (v, t).")
    v, t = checks.floats(method, "x", x)
    arguments.array(method, "t", t, jnp.result_type(t))
    flat, unravel = linear.ravel((v, t))
    v, t = flat[:-1], flat[-1]
    # A power of two, so that squares neither overflow nor vanish.
    unit = jax.lax.stop_gradient(linear.scaled(flat)[0])
    v, t = v / unit, t / unit
    square = jnp.sum(v * v)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))
    outside = square > 0
    inside, polar = jnp.where(outside, norm <= t, t >= 0), jnp.where(outside, norm <= -t, t < 0)
    share = jnp.where(inside, 1, jnp.where(polar, 0, (1 + t / norm) / 2))
    height = jnp.where(inside, t, jnp.where(polar, 0, (norm + t) / 2))
    return unravel(unit * jnp.append(share * v, height))
