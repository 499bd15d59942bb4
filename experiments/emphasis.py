"""From a config's emphasis to a loss that weighs the samples of a batch by their losses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import optim
from experiments.config import Config, Emphasis, UserError
from experiments.tasks.task import Task

Loss = Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def build_emphasis(emphasis: Emphasis, config: Config, task: Task) -> Callable[[jax.Array], Loss]:
    """step -> a loss like `task.loss`, whose mean over the samples of a batch is weighted.

    Its metrics are those of the task, the mean without weights, and the largest weight times the
    number of samples, which is 1 where weights are uniform.

    Raises:
      UserError: an argument is out of range, the task has no losses of single samples, a
        micro-batch has one sample, the optimizer takes curvature, which would be that of the mean
        without weights, or the batch grows, by a test of the gradient without weights.
    """
    losses = task.losses
    if losses is None:
        raise UserError(
            "config.emphasis weighs samples by their losses, and config.task has no losses of "
            "single samples; accepted: a task with them, or emphasis = None."
        )
    samples = config.batch_size // config.accumulation
    if samples < 2:
        raise UserError(
            f"config.emphasis: a micro-batch has {samples} sample (config.batch_size over "
            "config.accumulation); accepted: 2 or more."
        )
    for name, other in (
        ("optimizer.curvature", config.optimizer.curvature),
        ("batch_growth", config.batch_growth),
    ):
        if other:
            raise UserError(
                f"config.emphasis: config.{name} is of the loss without weights; accepted: None."
            )
    try:
        temperature = optim.loss_temperature_schedule(
            emphasis.temperature,
            emphasis.end_temperature or None,
            total_steps=config.steps,
            warmup_steps=emphasis.warmup,
        )
        optim.loss_weights(jnp.zeros(2), emphasis.temperature, emphasis.scheme)
    except ValueError as error:
        raise UserError(f"config.emphasis: {error}") from error

    def at(step: jax.Array) -> Loss:
        def loss(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
            values, metrics = losses(params, batch, key)
            weights = optim.loss_weights(values, temperature(step), emphasis.scheme)
            further = {
                "mean_loss": jnp.mean(values),
                "largest_weight": weights.max() * weights.size,
            }
            return weights @ values, {**metrics, **further}

        return loss

    return at
