"""The projection onto the solutions of linear equations.

With A+ the pseudo-inverse of A::

    y = argmin |y - x|^2 / 2 subject to A y = b   =   x - A+ (A x - b)

Rows may depend on each other as long as the equations agree; where they do not, y is NaN. Rows are
scaled to norm 1 first, so that none is taken for rounding beside a longer one.

*Derivatives.* In x, A and b, of any order. Where rows depend on each other, along changes of A and
b that leave them so.

*Differences.* jaxopt's `projection_affine_set(x, (A, b))` solves the system of optimality
conditions by an iteration, to 1e-3 or so; it has reverse mode alone, and no word on dependent rows.

*Cost.* A singular value decomposition of A.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel.projections import arguments


def projection_affine_set(x: ArrayLike, a: ArrayLike, b: ArrayLike) -> jax.Array:
    """The nearest y with A y = b, and NaN where there is none.

    Args:
      x: (n,), real floats.
      a: A, (m, n), of any rank.
      b: (m,).

    Raises:
      ValueError: x is no vector of real floats, or a or b has another shape.

    >>> import bilevel, jax.numpy as jnp
    >>> a, b = jnp.array([[1.0, 1.0, 0.0]]), jnp.array([2.0])
    >>> y = bilevel.projection_affine_set(jnp.array([3.0, 2.0, 5.0]), a, b)
    >>> print(jnp.array_str(y, precision=3))
    [1.5 0.5 5. ]
    """
    method = "projection_affine_set"
    x, given = arguments.point(method, "x", x, None)
    a = arguments.array(method, "a", a, x.dtype, None, x.size)
    b = arguments.array(method, "b", b, x.dtype, len(a))
    with jax.default_matmul_precision("highest"):
        y, found = nearest(x, a, b)
    return arguments.nan_unless(found, y).astype(given)


def nearest(x: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The projection, and whether it solves the equations; arrays of one dtype."""
    if not a.size:
        return x, jnp.all(b == 0)
    norms = jax.lax.stop_gradient(jnp.linalg.norm(a, axis=1))
    scale = 1 / jnp.where(norms > 0, norms, 1)
    a, b = scale[:, None] * a, scale * b
    inverse = jnp.linalg.pinv(a)
    y = x - inverse @ (a @ x - b)
    # What rounding leaves; its derivative is zero, since A dy + dA y = db.
    y = y - jax.lax.stop_gradient(inverse @ (a @ y - b))
    # As coarse as the pseudo-inverse tells rank.
    allowed = max(a.shape) * arguments.rounding(x.dtype)
    off = jnp.abs(a @ y - b) / (jnp.linalg.norm(y) + jnp.max(jnp.abs(b)) + 1e-30)
    return y, jnp.all(off <= allowed)
