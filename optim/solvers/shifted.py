"""Solves of (H + shift B) x = b for one H and b and any number of shifts, the tries of a step.

Each way is called alike, and returns a function of the shift, so that what does not depend on the
shift is done once::

    solve = shifted_dense(curvature, b, metric)
    x = solve(shift)

====================== ================================= ============================= ===========
way                    curvature is                      once                          a shift
====================== ================================= ============================= ===========
shifted_dense          v -> H v, or the matrix (n, n)    n products                    n^3 / 3
shifted_diagonal       the diagonal of H, a tree         nothing                       a division
shifted_rank_one       weight and v of weight v v'       two solves with B             nothing
shifted_by(solver)     v -> H v                          nothing                       the solver's
====================== ================================= ============================= ===========

B is the matrix of a norm |x| = sqrt(x'B x), given as a `Metric`; None stands for the identity. The
rank-one way is Sherman and Morrison's formula::

    x = (B^-1 b - weight (v'B^-1 b) / (shift + weight v'B^-1 v) B^-1 v) / shift

Where H + shift B is not positive definite, `shifted_dense` answers nan: a step along x would then
be no descent. There is no `optim.SolveInfo`: three ways are direct, and a search judges by its loss
the step that an iterative solver left unfinished.

Arithmetic is in float32 or wider, and x has the dtypes of b.

*Differences.* From the authors' code: the matrices of H and B may be given by their products.

*Cost.* `shifted_dense` keeps H, B and a factor, 12 n^2 bytes in float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optim import trees
from optim.solvers import linear


class Metric(NamedTuple):
    """The matrix B of a norm sqrt(x'B x), symmetric and positive definite."""

    product: Callable[[Any], Any]  # x -> B x, on trees like the parameters
    solve: Callable[[Any], Any]  # g -> B^-1 g


class RankOne(NamedTuple):
    """The matrix weight v v'."""

    weight: ArrayLike  # (), at least 0
    vector: Any  # v, a tree like the parameters


Shifted = Callable[[ArrayLike], Any]  # shift -> x


def restrict(tree: Any, vector: Any) -> Any:
    """The tree in the vector's dtypes, without the leaves where the vector has None."""

    def one(v: Any, x: Any) -> Any:
        return None if v is None else trees.as_dtype(x, v.dtype)

    return jax.tree.map(one, vector, tree, is_leaf=lambda x: x is None)


def shifted_dense(curvature: Any, b: Any, metric: Metric | None = None) -> Shifted:
    """By a Cholesky factor a shift; the matrices come from one batch of products each.

    Args:
      curvature: v -> H v on trees like b, H symmetric; or H itself, of the numbers of b in order.
      b: right-hand side, a tree of floats.
      metric: B; the identity by default.

    Returns:
      shift -> x, like b; nan where H + shift B is not positive definite.

    Raises:
      ValueError: the matrix is not (n, n) for the n numbers of b.

    >>> import jax.numpy as jnp, optim
    >>> solve = optim.shifted_dense(jnp.array([[3.0, 2.0], [2.0, 4.0]]), jnp.array([8.0, 8.0]))
    >>> print(solve(1.0))
    [1.5 1. ]
    """
    flat, unravel = linear.ravel(linear.floats("shifted_dense", b))
    h = _matrix(curvature, flat, unravel)
    norm = jnp.eye(flat.size, dtype=flat.dtype)
    if metric is not None:
        norm = _matrix(metric.product, flat, unravel)

    def solve(shift: ArrayLike) -> Any:
        with jax.default_matmul_precision("highest"):
            factor = jnp.linalg.cholesky(h + trees.as_dtype(shift, h.dtype) * norm)
            return unravel(jax.scipy.linalg.cho_solve((factor, True), flat))

    return solve


def _matrix(curvature: Any, flat: jax.Array, unravel: Callable[[jax.Array], Any]) -> jax.Array:
    if callable(curvature):

        def column(unit: jax.Array) -> jax.Array:
            product = restrict(curvature(unravel(unit)), unravel(unit))
            return linear.ravel(trees.promote(product))[0]

        return jax.vmap(column, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))
    if jnp.shape(curvature) != 2 * (flat.size,):
        raise ValueError(
            f"shifted_dense: curvature has shape {jnp.shape(curvature)}; accepted: a function, or "
            f"{2 * (flat.size,)}, since b has {flat.size} numbers."
        )
    return trees.as_dtype(curvature, flat.dtype)


def shifted_diagonal(curvature: Any, b: Any, metric: Metric | None = None) -> Shifted:
    """Coordinate by coordinate, for a diagonal H.

    Args:
      curvature: the diagonal of H, a tree like b.
      b: right-hand side, a tree of floats.
      metric: None, the identity.

    Returns:
      shift -> x, like b.

    Raises:
      ValueError: a metric is given.

    >>> import jax.numpy as jnp, optim
    >>> solve = optim.shifted_diagonal(jnp.array([1.0, 3.0]), jnp.array([4.0, 2.0]))
    >>> print(solve(1.0))
    [2.  0.5]
    """
    if metric is not None:
        raise ValueError(
            "shifted_diagonal: metric is given; accepted: None, as B has to be diagonal too."
        )

    b = linear.floats("shifted_diagonal", b)
    wide = trees.promote(b)
    diagonal = restrict(curvature, wide)

    def solve(shift: ArrayLike) -> Any:
        x = jax.tree.map(lambda h, v: v / (h + trees.as_dtype(shift, h.dtype)), diagonal, wide)
        return restrict(x, b)

    return solve


def shifted_rank_one(curvature: Any, b: Any, metric: Metric | None = None) -> Shifted:
    """By Sherman and Morrison's formula, for H = weight v v'.

    Args:
      curvature: the weight, at least 0, and v, a tree like b: an `optim.RankOne` or any such pair.
      b: right-hand side, a tree of floats.
      metric: B; the identity by default.

    Returns:
      shift -> x, like b.

    >>> import jax.numpy as jnp, optim
    >>> ones = jnp.ones(2)
    >>> print(optim.shifted_rank_one(optim.RankOne(1.0, ones), jnp.array([4.0, 2.0]))(1.0))
    [2. 0.]
    """
    b = linear.floats("shifted_rank_one", b)
    wide = trees.promote(b)
    vector = restrict(curvature[1], wide)
    along, across = (
        x if metric is None else restrict(metric.solve(restrict(x, b)), wide)
        for x in (wide, vector)
    )
    overlap, square = linear.vdot(vector, along), linear.vdot(vector, across)
    weight = trees.as_dtype(curvature[0], square.dtype)

    def solve(shift: ArrayLike) -> Any:
        shift = trees.as_dtype(shift, square.dtype)
        share = weight * overlap / (shift + weight * square)
        x = linear.times(1 / shift, linear.axpy(-share, across, along))
        return restrict(x, b)

    return solve


def shifted_by(solver: Callable[..., tuple[Any, Any]]) -> Callable[..., Shifted]:
    """By an iterative solver that is given products alone, preconditioned by B.

    Args:
      solver: such as `optim.cg`, or a `functools.partial` of it that sets its tolerance: called as
        solver(matvec, b, preconditioner=B^-1 or None), it returns x and its `optim.SolveInfo`.

    Returns:
      (curvature, b, metric) -> shift -> x, with curvature v -> H v on trees like b.

    >>> import jax.numpy as jnp, optim
    >>> solve = optim.shifted_by(optim.cg)(lambda v: 3 * v, jnp.array([4.0, 2.0]))
    >>> print(solve(1.0))
    [1.  0.5]
    """

    def way(curvature: Callable[[Any], Any], b: Any, metric: Metric | None = None) -> Shifted:
        def solve(shift: ArrayLike) -> Any:
            def product(v: Any) -> Any:
                wide = trees.promote(v)
                norm = wide if metric is None else restrict(metric.product(v), wide)
                scale = trees.as_dtype(shift, trees.accumulator_dtype(shift))
                return linear.axpy(scale, norm, restrict(curvature(v), wide))

            return solver(product, b, preconditioner=metric and metric.solve)[0]

        return solve

    return way
