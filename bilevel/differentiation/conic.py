"""The residual map of a conic program, zero at its solution.

With K a closed convex cone and K* its dual, the program is::

    minimise x'Qx / 2 + c'x  subject to  E x + s = d,  s in K

One vector holds s and its multiplier y: v = y - s, of which y is the projection on K* and s what
the projection adds. The condition is::

    Q x + E'y + c = 0,   d - E x - s = 0,   y = P(v), s = P(v) - v

For Q = 0 these are the first two rows of ((theta - I) P + I) z, z = (x, v, 1), with the projection
P on R^n x K* x R+ and the skew matrix theta = [[0, E', c], [-E, 0, d], [-c', -d', 0]].

*Derivatives.* Those of the projection; there is none where v is at a kink of it, as where y_i and
s_i are both zero for an inequality.

*Differences.* From the paper's map: the last entry of z is fixed at 1, and the last row, the
duality gap, is left out. With both, z times any number is a root too, and the Jacobian singular.
The gap follows from the other rows and y's = 0. Q is added.

*Cost.* A product with each of Q, E, E', and a projection.

*Reference.* Busseti, Moursi and Boyd, Solution refinement at regular points of conic problems,
2019; Blondel et al., Efficient and modular implicit differentiation, 2022, table 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax


class ConicSolution(NamedTuple):
    """The primal solution, and multiplier less slack."""

    primal: jax.Array  # (n,): x
    difference: jax.Array  # (m,): v = y - s


def conic_residual(
    c: jax.Array,
    e: jax.Array,
    d: jax.Array,
    dual_projection_fn: Callable[[jax.Array], jax.Array],
    q: jax.Array | None = None,
) -> Callable[[ConicSolution], ConicSolution]:
    """What is zero at the solution of a conic program.

    Args:
      c: (n,).
      e: (m, n).
      d: (m,).
      dual_projection_fn: v -> its projection on K*: the identity for equations, K = {0}; the
        positive part for inequalities, where K, and then K*, is the non-negative orthant.
      q: (n, n), symmetric and positive semidefinite; zero by default.

    Returns:
      A function of a `ConicSolution` that gives one.

    >>> import jax, jax.numpy as jnp, bilevel
    >>> def solution(d):  # the least x with x >= d: - x + s = - d
    ...     residual = bilevel.conic_residual(jnp.ones(1), -jnp.eye(1), -d, jax.nn.relu)
    ...     return bilevel.attach_root(residual, bilevel.ConicSolution(d, jnp.ones(1))).primal[0]
    >>> print(jax.grad(solution)(jnp.array([2.0])))
    [1.]
    """

    def residual(z: ConicSolution) -> ConicSolution:
        x, v = z
        y = dual_projection_fn(v)
        stationarity = e.T @ y + c
        if q is not None:
            stationarity = stationarity + q @ x
        return ConicSolution(stationarity, d - e @ x - (y - v))

    return residual
