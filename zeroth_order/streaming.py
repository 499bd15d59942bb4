"""Perturbed weights that exist one layer at a time: the hook between estimates and models.

`stream(along, params, seed, scale)` wraps each perturbed leaf in a `Streamed` node, which
`jax.lax.scan` slices as it slices any pytree. The model calls `read` on what the scan hands it, and
`rows(table, index)` for a look-up::

    h = zeroth_order.rows(params["embed"], tokens)
    h, _ = jax.lax.scan(lambda h, w: (block(h, zeroth_order.read(w)), None), h, params["blocks"])
    logits = h @ zeroth_order.read(params["embed"]).T

Both are the identity on ordinary arrays, so that one model serves every optimizer. The bits are
those of `zeroth_order.perturb`, tree-wise.

*Cost.* A draw for each weight read: about 20 integer operations; temporaries of one layer's
perturbed weights, and of what is read outside of the scan.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from zeroth_order import noise
from zeroth_order.directions import Direction, Leaf, add_scaled, map_directed, spread


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Streamed:
    """A leaf and its perturbation: value + scale draw(block, index, value), as `Leaf` has them."""

    value: jax.Array  # (*stack, ...)
    block: Any  # pytree of (*stack)
    scale: jax.Array  # (*stack), float32 or wider
    draw: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})
    bits: int | None = dataclasses.field(metadata={"static": True})
    factors: Callable[..., Any] | None = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value."""
        return self.value.shape

    @property
    def dtype(self) -> jnp.dtype:
        """Of the value."""
        return self.value.dtype

    def __jax_array__(self) -> jax.Array:
        raise TypeError(
            f"a streamed parameter of shape {self.shape} was used as an array; pass it through "
            f"zeroth_order.read, inside the scan over its stack axes, or estimate with "
            f"streamed=False."
        )


def stream(along: Direction, params: optax.Params, seed: ArrayLike, scale: ArrayLike) -> Any:
    """params + scale z(seed), unread: `Streamed` nodes in place of the leaves that are perturbed.

    >>> import jax.numpy as jnp, zeroth_order
    >>> along, params = zeroth_order.direction(), {"w": jnp.zeros(4)}
    >>> print(zeroth_order.read(zeroth_order.stream(along, params, 3, 0.5))["w"])
    [ 0.5 -0.5 -0.5  0.5]
    """

    def one(leaf: Leaf | None, value: Any) -> Any:
        if leaf is None:
            return value
        value = jnp.asarray(value)
        dtype = trees.accumulator_dtype(value)
        return Streamed(
            value,
            leaf.blocks(seed, value.shape[: leaf.stack]),
            jnp.asarray(scale, dtype) * spread(leaf, value, dtype),
            leaf.draw,
            leaf.bits,
            leaf.factors,
        )

    return map_directed(one, along(params), params)


def read(tree: Any) -> Any:
    """The tree with perturbed weights in place of `Streamed` nodes; anything else as it is.

    Raises:
      ValueError: a node still has its stack axes, so that all layers would be perturbed at once.

    >>> import jax.numpy as jnp, zeroth_order
    >>> weights = zeroth_order.stream(zeroth_order.direction(), jnp.zeros(4), 3, 0.5)
    >>> print(zeroth_order.read(weights), zeroth_order.read(jnp.ones(2)))
    [-0.5  0.5 -0.5 -0.5] [1. 1.]
    """

    def one(w: Any) -> Any:
        if not isinstance(w, Streamed):
            return w
        _check_sliced("read", w)
        z = w.draw(w.block, noise.axes(w.shape), w.value)
        return add_scaled(w.value, w.scale, z, w.bits)

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, Streamed))


def rows(table: Any, index: jax.Array) -> jax.Array:
    """table[index] of a matrix, with noise for the rows that are looked up alone.

    Args:
      table: (rows, columns), an array or a streamed one.
      index: integers of any shape, 0 <= index < rows.

    >>> import jax.numpy as jnp, zeroth_order
    >>> table = zeroth_order.stream(zeroth_order.direction(), jnp.zeros((9, 4)), 3, 0.5)
    >>> index = jnp.array([7, 2])
    >>> print(zeroth_order.rows(table, index) == zeroth_order.read(table)[index])
    [[ True  True  True  True]
     [ True  True  True  True]]
    """
    if not isinstance(table, Streamed):
        return table[index]
    _check_sliced("rows", table)
    if table.value.ndim != 2:
        raise ValueError(f"rows: table has the shape {table.shape}; accepted: a matrix.")
    where = (index.astype(jnp.uint32)[..., None], jnp.arange(table.shape[1], dtype=jnp.uint32))
    found = table.value[index]
    return add_scaled(found, table.scale, table.draw(table.block, where, found), table.bits)


def product(x: jax.Array, w: Any) -> jax.Array:
    """x @ w of a matrix; of one that is perturbed by A B', x @ w + scale (x @ A) B'.

    Under `jax.vmap` over perturbations the weights are then read once for all of them, and the rest
    costs rank (rows + columns) products for each. The sum is rounded elsewhere than in
    `zeroth_order.perturb`'s.

    Args:
      x: (..., rows).
      w: (rows, columns), an array or a streamed one.

    >>> import jax.numpy as jnp, zeroth_order
    >>> along = zeroth_order.low_rank(zeroth_order.direction(), rank=1)
    >>> w = zeroth_order.stream(along, jnp.ones((3, 2)), 3, 0.5)
    >>> x = jnp.array([1.0, 2.0, 3.0])
    >>> print(zeroth_order.product(x, w), x @ zeroth_order.read(w))
    [4. 4.] [4. 4.]
    """
    if not isinstance(w, Streamed) or w.factors is None:
        return x @ read(w)
    _check_sliced("product", w)
    a, b = w.factors(w.block, w.shape)
    return x @ w.value + w.scale.astype(x.dtype) * ((x @ a.astype(x.dtype)) @ b.T.astype(x.dtype))


def _check_sliced(caller: str, w: Streamed) -> None:
    if w.scale.ndim:
        raise ValueError(
            f"{caller}: a leaf of shape {w.shape} still has {w.scale.ndim} stack axes; call it "
            f"inside the scan over them, or declare fewer by the direction's `stack`."
        )
