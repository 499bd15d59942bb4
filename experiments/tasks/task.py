"""What a task is: four plain functions over a pytree of parameters, and facts for a report."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

Params = Any  # pytree of arrays
Batch = Any  # pytree of arrays that share their leading axis, the samples
Place = Callable[[Batch], Batch]


class Task(NamedTuple):
    """A learning problem that any optimizer of the codebase can be run on.

    Every optimizer, first-order, zeroth-order or bilevel, is driven through these functions, so
    none of them holds state: the same arguments give the same result on every machine.
    """

    init: Callable[[jax.Array], Params]  # key -> params, traceable
    loss: Callable[
        [Params, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
    ]  # (params, batch, key) -> (mean loss over the batch, scalar metrics), traceable
    batches: Callable[[int, int, int], Batch]  # (seed, samples consumed, count) -> numpy batch
    evaluate: Callable[[Params, Place], dict[str, float]]  # (params, place) -> validation metrics
    facts: Mapping[str, Any]  # loss_unit, tokens_per_sample, samples, baselines, provenance
    # (params, batch) -> (..., classes), where the loss is a mean of softmax cross entropies (and
    # maybe a penalty), traceable; None where it is not.
    logits: Callable[[Params, Batch], jax.Array] | None = None
    # (params, batch, key) -> ((samples,) losses, metrics), whose mean is the loss and whose metrics
    # are the loss's, traceable; None where there are none.
    losses: Callable[[Params, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]] | None = (
        None
    )


class TaskConfig(Protocol):
    """A typed dataclass that describes a task; it is the `task` field of a config."""

    def build(self) -> Task: ...
