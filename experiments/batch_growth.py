"""A batch that doubles for as long as a test of its gradient asks for more samples.

A batch is some power of two times `config.batch_size`, in micro-batches of the size that this one
has; what the gradients of the micro-batches say about each other is tested. A run ends once it has
seen `config.steps * config.batch_size` samples, with the batch in which it does.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim
from experiments.checkpoints import Counters
from experiments.config import BatchGrowth, Config, UserError
from experiments.micro_batches import cut, parts_in
from experiments.optimizers import call

FIELD = "config.batch_growth"
TESTS = ("norm_test", "inner_product_test", "augmented_inner_product_test", "coordinate_wise_test")
WITH_INNER_PRODUCTS = TESTS[1:3]
WANTED = "wanted_batch_size"  # the metric that a test gives

# (params, batch, key) -> ((loss, metrics), gradient)
Gradient = Callable[[Any, Any, jax.Array], tuple[tuple[jax.Array, dict[str, jax.Array]], Any]]


def finished(config: Config, counters: Counters) -> bool:
    """Whether a run has made its steps or, where the batch grows, seen its samples."""
    if config.batch_growth is None:
        return counters.step >= config.steps
    return counters.samples >= config.steps * config.batch_size


def schedule_position(config: Config, counters: Counters) -> int:
    """The count that the next step's learning rate is for: steps of the starting size."""
    if config.batch_growth is None:
        return counters.step
    return counters.samples // config.batch_size


def next_batch_size(config: Config, counters: Counters, metrics: dict[str, float]) -> int:
    """The size of the batch after the step that had these metrics, or that a run begins with."""
    if config.batch_growth is None:
        return config.batch_size
    wanted = max(counters.batch_size, metrics.get(WANTED, 0))
    return optim.next_batch_size(
        config.batch_size, wanted, max_batch_size=config.batch_growth.max_batch_size
    )


def is_tested(config: Config, counters: Counters) -> bool:
    """Whether the batch of the last step was tested: not where it can grow no more."""
    growth = config.batch_growth
    return (
        growth is not None
        and _can_grow(growth, counters.batch_size)
        and counters.step % growth.every == 0
    )


def with_batch_size(
    config: Config, counters: Counters, metrics: dict[str, float]
) -> dict[str, float]:
    """The metrics of the last step with its batch size, and with what its test wanted if it had."""
    if config.batch_growth is None:
        return metrics
    known = {k: v for k, v in metrics.items() if k != WANTED or is_tested(config, counters)}
    return {**known, "batch_size": counters.batch_size}


def _can_grow(growth: BatchGrowth, size: int) -> bool:
    return 2 * size <= growth.max_batch_size


def with_test(
    gradient: Gradient, averaged: Gradient, config: Config
) -> Callable[[Any, Any, jax.Array, jax.Array], Any]:
    """(params, batch, key, step) -> what `averaged` gives, and among the metrics what a test wants.

    Args:
      gradient: of one micro-batch.
      averaged: of a whole batch, for those that can grow no more.
      config: whose `batch_growth` is set.

    Raises:
      UserError: the name of the test or an argument of it is wrong.
    """
    growth = config.batch_growth
    assert growth is not None
    size = config.batch_size // config.accumulation
    wanted = _build_test(growth, size)

    def tested(params: Any, batch: Any, key: jax.Array, step: jax.Array) -> Any:
        if not _can_grow(growth, size * parts_in(batch, size)):
            return averaged(params, batch, key)
        parts = cut(batch, size)
        (loss, metrics), moments = _moments(gradient, params, parts, key)

        def test() -> jax.Array:
            given: dict[str, Any] = {"moments": moments}
            if growth.name in WITH_INNER_PRODUCTS:
                mean = moments.mean
                given["inner_products"] = _inner_products(gradient, params, parts, key, mean)
            return wanted(given).astype(jnp.float32)

        asked = jax.lax.cond((step + 1) % growth.every == 0, test, lambda: jnp.float32(0))
        # A loss that is not finite may still have finite gradients; they mean nothing.
        metrics[WANTED] = jnp.where(jnp.isfinite(loss), asked, jnp.nan)
        grads = jax.tree.map(lambda m, p: m.astype(p.dtype), moments.mean, params)
        return (loss, metrics), grads

    return tested


def _build_test(growth: BatchGrowth, size: int) -> Callable[[dict[str, Any]], jax.Array]:
    """What the gradient is known by -> the batch size that the test wants."""
    if growth.name not in TESTS:
        raise UserError(f"{FIELD}.name is {growth.name!r}; accepted: {', '.join(TESTS)}.")
    for name in ("moments", "inner_products", "group_size"):
        if name in growth.kwargs:
            raise UserError(f"{FIELD}.kwargs has {name!r}, which the run fills in.")
    function = getattr(optim, growth.name)

    def wanted(given: dict[str, Any]) -> jax.Array:
        arguments = {**given, "group_size": size, **growth.kwargs}
        return call(function, FIELD, growth.name, arguments)

    example: dict[str, Any] = {"moments": optim.gradient_moments(jnp.ones((2, 1)))}
    if growth.name in WITH_INNER_PRODUCTS:
        example["inner_products"] = jnp.ones(2)
    wanted(example)  # what is wrong with the arguments is told at once
    return wanted


def _moments(gradient: Gradient, params: Any, parts: Any, key: jax.Array) -> tuple[Any, Any]:
    """The means of loss and metrics over the parts, and the moments of their gradients."""
    count = jax.tree.leaves(parts)[0].shape[0]

    def one(index: jax.Array, samples: Any) -> tuple[Any, Any]:
        values, grads = gradient(params, samples, jax.random.fold_in(key, index))
        return values, optim.gradient_moments(jax.tree.map(lambda g: g[None], grads))

    def add(carry: Any, part: Any) -> tuple[Any, None]:
        values, moments = one(*part)
        total = jax.tree.map(lambda t, v: t + v / count, carry[0], values)
        return (total, optim.merge_moments(carry[1], moments)), None

    indices = jnp.arange(count)
    shapes = jax.eval_shape(one, indices[0], jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, (indices, parts))[0]


def _inner_products(
    gradient: Gradient, params: Any, parts: Any, key: jax.Array, mean: Any
) -> jax.Array:
    """Of the gradient of every part with their mean."""

    def one(carry: None, part: Any) -> tuple[None, jax.Array]:
        index, samples = part
        grads = gradient(params, samples, jax.random.fold_in(key, index))[1]
        grads = jax.tree.map(lambda g, m: g.astype(m.dtype), grads, mean)
        return carry, optax.tree.vdot(grads, mean)

    count = jax.tree.leaves(parts)[0].shape[0]
    return jax.lax.scan(one, None, (jnp.arange(count), parts))[1]
