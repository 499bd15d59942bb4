"""A batch in equal parts, one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def cut(batch: Any, size: int) -> Any:
    """The batch as parts of `size` samples, along a new leading axis.

    Part i of n takes the samples i, i + n, ...: each device then holds its share of every part, and
    cutting the batch moves nothing between devices.
    """

    def leaf(x: jax.Array) -> jax.Array:
        count = x.shape[0] // size
        return x.reshape(size, count, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(leaf, batch)


def parts_in(batch: Any, size: int) -> int:
    """How many parts of `size` samples the batch has."""
    return jax.tree.leaves(batch)[0].shape[0] // size


def mean_over_micro_batches(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    """`function(params, batch, key)` averaged over parts of `size` samples, one at a time."""

    def averaged(params: Any, batch: Any, key: jax.Array) -> Any:
        count = parts_in(batch, size)
        if count == 1:
            return function(params, batch, key)
        parts = cut(batch, size)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            index, samples = part
            result = function(params, samples, jax.random.fold_in(key, index))
            return jax.tree.map(lambda t, r: t + r / count, total, result), None

        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, params, first, key)
        )
        return jax.lax.scan(add, zeros, (jnp.arange(count), parts))[0]

    return averaged
