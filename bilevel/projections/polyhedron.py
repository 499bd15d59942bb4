"""The projection onto a polyhedron, by its active set.

::

    y = argmin |y - x|^2 / 2 subject to A y = b, G y <= h

The equations are met first, and stay so: y = z - P G' u, with z the projection onto them, P that
onto the null space of A, and multipliers u >= 0. From u = 0, the constraint that is violated the
most enters the active set S: its multiplier grows, and those of S change so that their constraints
stay equations, until its own is one as well, or a multiplier of S reaches zero and leaves (the dual
method of Goldfarb and Idnani). A violated constraint that depends on S and lets none leave proves
that the polyhedron is empty. In the end, y is computed anew, as the projection onto A y = b and
G_S y = h_S.

*Convergence.* In finitely many steps, each of which takes one constraint into S or out of it. A
constraint counts as met to a distance of `tolerance`, relative to that of z and of the constraints
from the origin. y is NaN where the polyhedron is empty, or `max_steps` are not enough.

*Derivatives.* Those of the last projection, in all arguments, of any order, as long as S stays.
There is none where a multiplier of S is zero, or a constraint is about to enter.

*Differences.* From jaxopt's `projection_polyhedron(x, (A, b, G, h))`: (1) that runs the alternating
directions of OSQP, and is off by 1e-3 on its own test's problem, in float32; (2) it raises an error
on an empty polyhedron, and cannot be compiled then; (3) its derivatives are of reverse mode alone,
and of the normal equations of the optimality conditions.

*Cost.* A singular value decomposition of A and one of both matrices; a step factors the matrix of
G's products with itself, k^3 / 3 for k rows of G. For more than some hundreds of rows, use a solver
of quadratic programs.

*Reference.* Goldfarb and Idnani, A numerically stable dual method for solving strictly convex
quadratic programs, 1983.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve
from jax.typing import ArrayLike

from bilevel.projections import arguments
from bilevel.projections.affine_set import nearest
from optim import trees


def projection_polyhedron(
    x: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    g: ArrayLike,
    h: ArrayLike,
    *,
    tolerance: ArrayLike | None = None,
    max_steps: ArrayLike = 1000,
) -> jax.Array:
    """The nearest y with A y = b and G y <= h, and NaN where there is none.

    Args:
      x: (n,), real floats.
      a: A, (m, n), of any rank; m may be 0.
      b: (m,).
      g: G, (k, n), of any rank; k may be 0.
      h: (k,).
      tolerance: distance to which a constraint is met, relative; None for 100 units of rounding.
      max_steps: after so many steps without an answer, it is NaN.

    Raises:
      ValueError: x is no vector of real floats, another array has another shape, or tolerance or
        max_steps is out of its range.

    >>> import bilevel, jax.numpy as jnp
    >>> a, b = jnp.array([[1.0, 1.0]]), jnp.array([1.0])
    >>> g, h = jnp.array([[1.0, 0.0], [0.0, -1.0]]), jnp.array([0.25, 0.0])
    >>> y = bilevel.projection_polyhedron(jnp.array([2.0, 0.0]), a, b, g, h)
    >>> print(jnp.array_str(y, precision=3))
    [0.25 0.75]
    """
    method = "projection_polyhedron"
    x, given = arguments.point(method, "x", x, None)
    a = arguments.array(method, "a", a, x.dtype, None, x.size)
    b = arguments.array(method, "b", b, x.dtype, len(a))
    g = arguments.array(method, "g", g, x.dtype, None, x.size)
    h = arguments.array(method, "h", h, x.dtype, len(g))
    tolerance = arguments.rounding(x.dtype) if tolerance is None else tolerance
    trees.check_at_least(method, 0, tolerance=tolerance)
    trees.check_at_least(method, 1, max_steps=max_steps)
    with jax.default_matmul_precision("highest"):
        active, found = jnp.zeros(len(g), bool), jnp.bool_(True)
        if len(g):
            least = trees.as_dtype(tolerance, x.dtype)
            stopped = jax.lax.stop_gradient((x, a, b, g, h, least))
            active, found = _search(*stopped, jnp.asarray(max_steps, jnp.int32))
        # A row of zeros is an equation that says nothing.
        rows = jnp.concatenate([a, jnp.where(active[:, None], g, 0)])
        y, consistent = nearest(x, rows, jnp.concatenate([b, jnp.where(active, h, 0)]))
    return arguments.nan_unless(found & consistent, y).astype(given)


class _Search(NamedTuple):
    """The multipliers, and the constraint that is entering."""

    u: jax.Array  # (k,): multipliers, zero outside of S and the entering one
    active: jax.Array  # (k,), bool: S
    entering: jax.Array  # (), int32
    partly: jax.Array  # (), bool: its multiplier has grown, and S has lost one
    violation: jax.Array  # (): of the entering constraint
    possible: jax.Array  # (), bool: not proved empty
    steps: jax.Array  # (), int32


@jax.jit  # so that it is compiled once, called bare
def _search(
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    g: jax.Array,
    h: jax.Array,
    tolerance: jax.Array,
    max_steps: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The active set, and whether it is that of the projection."""
    start, _ = nearest(x, a, b)
    norms = jnp.linalg.norm(g, axis=1)
    unit = jnp.where(norms > 0, norms, 1)
    rows = g / unit[:, None]
    slack = h / unit - rows @ start
    # Twice, so that what lies in the span of A is left with rounding alone, which is cut off.
    for _ in range(2):
        rows = rows - _within(rows, a)
    cut = max(g.shape) * arguments.rounding(x.dtype)
    rows = jnp.where(jnp.linalg.norm(rows, axis=1, keepdims=True) > cut, rows, 0)
    gram = rows @ rows.T
    goal = tolerance * (jnp.linalg.norm(start) + jnp.max(jnp.abs(h / unit)))
    k = jnp.arange(len(g))

    def next_entering(s: _Search) -> _Search:
        """The same one while it is on its way, else the most violated."""
        violations = -(rows @ (s.u @ rows)) - slack
        chosen = jnp.argmax(jnp.where(s.active, -jnp.inf, violations)).astype(jnp.int32)
        p = jnp.where(s.partly, s.entering, chosen)
        outside = jnp.where(s.active[p], -jnp.inf, violations[p])
        return s._replace(entering=p, violation=outside)

    def goes_on(s: _Search) -> jax.Array:
        return ((s.violation > goal) | s.partly) & s.possible & (s.steps < max_steps)

    def step(s: _Search) -> _Search:
        p, z, r = s.entering, *_direction(rows, gram, s.active, rows[s.entering])
        size = jnp.sum(z * z)
        full = jnp.where(jnp.sqrt(size) > cut, s.violation / jnp.where(size > 0, size, 1), jnp.inf)
        ratios = jnp.where(s.active & (r > 0), s.u / jnp.where(r > 0, r, 1), jnp.inf)
        leaving = jnp.argmin(ratios)
        t = jnp.maximum(jnp.minimum(full, ratios[leaving]), 0)
        possible = jnp.isfinite(t)
        enters = full <= ratios[leaving]
        u = jnp.maximum(s.u + jnp.where(possible, t, 0) * ((k == p) - r), 0)
        active = jnp.where(enters, s.active | (k == p), s.active & (k != leaving))
        u = jnp.where(active | (k == p), u, 0)
        return next_entering(_Search(u, active, p, ~enters, s.violation, possible, s.steps + 1))

    zero, nobody = jnp.zeros_like(slack), jnp.zeros(len(g), bool)
    none, no = jnp.int32(0), jnp.bool_(False)
    s = next_entering(_Search(zero, nobody, none, no, zero[0], jnp.bool_(True), none))
    s = jax.lax.while_loop(goes_on, step, s)
    return s.active, s.possible & ~s.partly & (s.violation <= goal)


def _within(rows: jax.Array, a: jax.Array) -> jax.Array:
    """What lies of these rows in the span of those of A."""
    return (rows @ jnp.linalg.pinv(a)) @ a if a.size else jnp.zeros_like(rows)


def _direction(
    rows: jax.Array, gram: jax.Array, active: jax.Array, row: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What is left of a row orthogonal to those of S, and the combination of S that it lost."""
    both = active[:, None] & active
    factor = cho_factor(jnp.where(both, gram, 0) + jnp.diag((~active).astype(gram.dtype)))
    z, r = row, jnp.zeros(len(rows), rows.dtype)
    for _ in range(2):  # the second time for what rounding left
        part = cho_solve(factor, jnp.where(active, rows @ z, 0))
        z, r = z - part @ rows, r + part
    return z, r
