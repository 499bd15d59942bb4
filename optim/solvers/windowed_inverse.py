"""Inverses of A = damping I + sum of x x' over a window of m vectors, without forming them.

With the vectors as rows of G (m, d) and their inner products K = G G' (m, m), by the identities of
Woodbury and "push-through"::

    A^-1 x_i = G' (K + damping I)^-1 e_i                       x_i in the window
    A^-1 y   = (y - G' (K + damping I)^-1 G y) / damping       any y

The first subtracts nothing: in float32 it is as exact as K is. The second loses |x|^2 / damping in
the directions of the window, and is for vectors outside of it. M-FAC's matrix, whose sum is
divided by m, is A / m for a damping m times its own; Natural GaLore's is A.

`Window` is a ring buffer. Its vectors may be trees: leaves (m, *shape) keep the shapes and the
shardings of the parameters, and only inner products, m numbers a leaf, are summed over leaves and
devices. `StaticInverse` is for a window that stays, as in pruning: with L L' = K + damping I and
Z = L^-1 G, computed once, block by block::

    A^-1 y = (y - Z' Z y) / damping,    diag A^-1 = (1 - sum over rows of Z^2) / damping

*Rounding.* With u the dtype's epsilon: a damping below u |x|^2 gives weight to what the rounding of
x itself has put there, and no form is exact then. K of nearly equal vectors has eigenvalues that
are zero but for rounding, and with such a damping K + damping I may be indefinite. Its
factorization is then repeated with four times the damping, and so on, from u times the largest
square on.

*Differences.* From the authors of M-FAC: (1) They subtract in both cases. (2) K + damping I is
factored by Cholesky, where they have an LU without pivots and, for the static case, the recursion
Hg_i = g_i / damp - sum over j < i of Hg_j (Hg_j' g_i) / (m + g_j' Hg_j); its Hg_i, divided by the
roots of their denominators, are the rows of Z / sqrt(damp). Equal in exact arithmetic.

*Cost.* A window: m numbers for each of the vector's, and m^2. To replace a vector and multiply the
newest: 2 passes over the window and m^3 / 3 multiplications. A static inverse: m^2 d
multiplications for each block's d, then 2 passes a product.

*Reference.* Frantar, Kurtic, Alistarh, M-FAC: Efficient Matrix-Free Approximations of Second-Order
Information, 2021 (arXiv:2107.03356); IST-DASLab/M-FAC@8116367fb537, optim.py, prun.py.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from optim import trees

_TRIES = 12  # factorizations, the last with 4^10 u, above m u, times the largest square


class Window(NamedTuple):
    """The last m vectors, zeros at first."""

    rows: Any  # tree of (m, *shape), in the order of the ring: G
    gram: jax.Array  # (m, m), float32 or wider: K
    oldest: jax.Array  # (), int32, the row that is replaced next


def empty_window(like: Any, size: int, dtype: DTypeLike | None = None) -> Window:
    """A window of `size` zero vectors.

    Args:
      like: a vector, a tree of arrays.
      size: m.
      dtype: of the rows; by default each leaf's, float32 at least.
    """

    def repeated(leaf: jax.Array) -> jax.Array:
        return jnp.broadcast_to(leaf[None], (size, *leaf.shape))  # sharded as the leaf is

    rows = jax.tree.map(repeated, trees.zeros_like(like, dtype))
    gram = jnp.zeros((size, size), trees.accumulator_dtype(*jax.tree.leaves(like)))
    return Window(rows, gram, jnp.zeros((), jnp.int32))


def replace_oldest(window: Window, x: Any) -> tuple[Window, jax.Array]:
    """The window with x, rounded to its dtype, in place of its oldest vector.

    A vector whose square is not finite is left out, since it would stay for m steps.

    Returns:
      (window, taken): whether x was finite and is now the newest.
    """
    x = jax.tree.map(lambda rows, leaf: trees.as_dtype(leaf, rows.dtype), window.rows, x)
    taken = jnp.isfinite(trees.norm(x))

    def replaced(rows: jax.Array, leaf: jax.Array) -> jax.Array:
        old = jax.lax.dynamic_index_in_dim(rows, window.oldest, keepdims=False)
        new = jnp.where(taken, leaf, old)
        return jax.lax.dynamic_update_index_in_dim(rows, new, window.oldest, 0)

    rows = jax.tree.map(replaced, window.rows, x)
    products = inner_products(rows, x, window.gram.dtype)
    gram = window.gram.at[window.oldest].set(products).at[:, window.oldest].set(products)
    gram = jnp.where(taken, gram, window.gram)
    oldest = jnp.where(taken, (window.oldest + 1) % len(gram), window.oldest)
    return Window(rows, gram, oldest), taken


def newest_product(window: Window, damping: ArrayLike) -> Any:
    """A^-1 times the newest vector, a tree of at least float32.

    Args:
      window: with its newest vector before `oldest`.
      damping: positive.
    """
    factor, _ = cholesky(window.gram, damping)
    size = len(factor)
    newest = jax.nn.one_hot((window.oldest - 1) % size, size, dtype=factor.dtype)
    return combination(window.rows, jax.scipy.linalg.cho_solve((factor, True), newest))


def inverse_product(window: Window, y: Any, damping: ArrayLike) -> Any:
    """A^-1 y for a vector y that is not of the window, a tree of at least float32.

    Args:
      window: of vectors like y.
      y: a tree of arrays.
      damping: positive.
    """
    factor, used = cholesky(window.gram, damping)
    products = inner_products(window.rows, y, factor.dtype)
    inside = combination(window.rows, jax.scipy.linalg.cho_solve((factor, True), products))

    def rest(leaf: jax.Array, inside: jax.Array) -> jax.Array:
        return (trees.as_dtype(leaf, inside.dtype) - inside) / used.astype(inside.dtype)

    return jax.tree.map(rest, y, inside)


def inner_products(rows: Any, x: Any, dtype: jnp.dtype) -> jax.Array:
    """G x, (m,) in the dtype, for trees of (m, *shape) and of (*shape)."""

    def one(rows: jax.Array, leaf: jax.Array) -> jax.Array:
        wide = trees.accumulator_dtype(rows)
        if leaf.dtype != rows.dtype:
            leaf = trees.as_dtype(leaf, wide)
        # Products of two bfloat16 are exact in float32: the window needs no wider copy for them.
        products = jax.lax.dot_general(
            rows,
            leaf,
            ((range(1, rows.ndim), range(leaf.ndim)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=wide,
        )
        return products.astype(dtype)

    return sum(jax.tree.leaves(jax.tree.map(one, rows, x)), start=jnp.zeros((), dtype))


def combination(rows: Any, weights: jax.Array) -> Any:
    """G' weights, a tree of (*shape) of at least float32, for a tree of (m, *shape)."""

    def one(rows: jax.Array) -> jax.Array:
        wide = trees.accumulator_dtype(rows)
        precision = jax.lax.Precision.HIGHEST
        return jnp.tensordot(weights.astype(wide), rows.astype(wide), 1, precision=precision)

    return jax.tree.map(one, rows)


@jax.jit
def cholesky(gram: jax.Array, damping: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """L with L L' = gram + damping I, lower triangular, and the damping that it has.

    Args:
      gram: (m, m), symmetric.
      damping: positive; raised where rounding leaves the sum indefinite.
    """
    least = jnp.finfo(gram.dtype).eps * jnp.max(jnp.diagonal(gram))

    def fails(carry: Any) -> jax.Array:
        factor, _, tries = carry
        return ~jnp.isfinite(factor).all() & (tries < _TRIES)

    def attempt(carry: Any) -> Any:
        _, damping, tries = carry
        damping = jnp.where(tries == 0, damping, jnp.maximum(4 * damping, least))
        damped = gram + damping * jnp.eye(len(gram), dtype=gram.dtype)
        return jax.lax.linalg.cholesky(damped, symmetrize_input=False), damping, tries + 1

    start = (jnp.full_like(gram, jnp.nan), trees.as_dtype(damping, gram.dtype), jnp.int32(0))
    factor, damping, _ = jax.lax.while_loop(fails, attempt, start)
    return factor, damping


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StaticInverse:
    """The inverse, block by block, for vectors that stay."""

    factor: jax.Array  # (blocks, m, block size), the vectors' dtype: Z, zeros beyond the last entry
    damping: jax.Array  # (blocks,), of the same dtype
    size: int = dataclasses.field(metadata={"static": True})  # d, entries of a vector


def static_inverse(
    rows: jax.Array, damping: ArrayLike, *, block_size: int | None = None
) -> StaticInverse:
    """What the two functions below need.

    Args:
      rows: (m, d), the vectors, float32 or wider.
      damping: positive.
      block_size: entries of each diagonal block of A, the last of which may be smaller; what lies
        outside of the blocks counts as zero. By default A is one block.

    Raises:
      ValueError: block_size is a number below 1.
    """
    count, size = rows.shape
    width = size if block_size is None else block_size
    trees.check_at_least("static_inverse", 1, block_size=width)
    padded = jnp.pad(rows, ((0, 0), (0, -size % width)))
    blocks = padded.reshape(count, -1, width).swapaxes(0, 1)

    def one(block: jax.Array) -> tuple[jax.Array, jax.Array]:
        gram = jnp.matmul(block, block.T, precision=jax.lax.Precision.HIGHEST)
        factor, used = cholesky(gram, damping)
        return jax.scipy.linalg.solve_triangular(factor, block, lower=True), used

    return StaticInverse(*jax.vmap(one)(blocks), size=size)


def static_product(inverse: StaticInverse, y: jax.Array) -> jax.Array:
    """A^-1 y for a vector y of (d,), in the dtype of the inverse."""
    blocks, _, width = inverse.factor.shape
    y = jnp.pad(y, (0, blocks * width - inverse.size)).reshape(blocks, width)

    def one(factor: jax.Array, damping: jax.Array, y: jax.Array) -> jax.Array:
        products = jnp.matmul(factor, y, precision=jax.lax.Precision.HIGHEST)
        return (y - jnp.matmul(products, factor, precision=jax.lax.Precision.HIGHEST)) / damping

    result = jax.vmap(one)(inverse.factor, inverse.damping, y.astype(inverse.factor.dtype))
    return result.reshape(-1)[: inverse.size]


def static_diagonal(inverse: StaticInverse) -> jax.Array:
    """The diagonal of A^-1, (d,), each entry exact to the rounding of 1 / damping."""
    kept = 1 - jnp.sum(jnp.square(inverse.factor), axis=1)
    return (kept / inverse.damping[:, None]).reshape(-1)[: inverse.size]
