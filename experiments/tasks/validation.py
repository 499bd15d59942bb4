"""The mean of per-sample metrics over a validation set, in batches of one shape."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.task import Params, Place

BATCH_SIZE = 64  # samples at a time, divisible by the device counts that hosts usually have
Measures = Callable[[Params, Mapping[str, jax.Array]], dict[str, jax.Array]]


def mean_over(
    measures: Measures, arrays: Mapping[str, np.ndarray], batch_size: int = BATCH_SIZE
) -> Callable[[Params, Place], dict[str, float]]:
    """An `evaluate` that averages `measures(params, batch) -> {name: (batch,) array}`.

    The last batch is filled up by samples of weight zero: every sample counts once and one shape
    is compiled. Sums over batches are taken in float64 on the host.
    """
    size = len(next(iter(arrays.values())))

    @jax.jit
    def sums(params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        values = measures(params, batch)
        return {name: jnp.sum(jnp.where(batch["weight"] > 0, v, 0)) for name, v in values.items()}

    def evaluate(params: Params, place: Place) -> dict[str, float]:
        parts = [sums(params, place(batch)) for batch in batches(arrays, batch_size)]
        host = jax.device_get(parts)
        return {name: sum(float(part[name]) for part in host) / size for name in host[0]}

    return evaluate


def batches(arrays: Mapping[str, np.ndarray], size: int) -> Iterator[dict[str, Any]]:
    """The arrays cut into batches of exactly `size`, with `weight` 0 where there is no sample."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, size):
        index = np.arange(start, start + size)
        weight = (index < count).astype(np.float32)
        index = np.minimum(index, count - 1)
        yield {name: array[index] for name, array in arrays.items()} | {"weight": weight}
