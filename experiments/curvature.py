"""From a config's curvature to an estimate on a batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax

import optim
from experiments.config import Curvature, UserError
from experiments.optimizers import call
from experiments.tasks.task import Task

FIELD = "config.optimizer.curvature"


def build_curvature(config: Curvature, task: Task) -> Callable[[Any, Any, jax.Array], Any]:
    """(params, batch, key) -> estimate of the curvature's diagonal, from the samples of the batch.

    The empirical Fisher's gradients are of the loss of each sample, penalties included; the
    Bartlett estimate, of cross entropies alone, leaves penalties out.

    Raises:
      UserError: the name, its arguments, or the task does not suit.
    """
    if config.name not in _SOURCES:
        raise UserError(f"{FIELD}.name is {config.name!r}; accepted: {', '.join(_SOURCES)}.")
    if config.name == "gauss_newton_bartlett" and task.logits is None:
        raise UserError(
            f"{FIELD}: gauss_newton_bartlett draws labels from a classifier's logits, and this "
            "task has none; hutchinson and empirical_fisher suit every task."
        )
    source = functools.partial(_SOURCES[config.name], task)
    function = getattr(optim, config.name)

    def curvature_fn(batch: Any, key: jax.Array) -> Callable[[Any, jax.Array], Any]:
        return call(function, FIELD, config.name, {**source(batch, key), **config.kwargs})

    def estimate(params: Any, batch: Any, key: jax.Array) -> Any:
        loss_key, draw_key = jax.random.split(key)
        return curvature_fn(batch, loss_key)(params, draw_key)

    curvature_fn(None, jax.random.key(0))  # what is wrong with the arguments is told at once
    return estimate


def _loss(task: Task, batch: Any, key: jax.Array) -> dict[str, Any]:
    return {"loss_fn": lambda params: task.loss(params, batch, key)[0]}


def _logits(task: Task, batch: Any, key: jax.Array) -> dict[str, Any]:
    del key
    logits = task.logits
    assert logits is not None
    return {"logits_fn": lambda params: logits(params, batch)}


def _examples(task: Task, batch: Any, key: jax.Array) -> dict[str, Any]:
    def loss(params: Any, example: Any) -> jax.Array:
        return task.loss(params, jax.tree.map(lambda x: x[None], example), key)[0]

    return {"example_loss": loss, "examples": batch}


_SOURCES: dict[str, Callable[[Task, Any, jax.Array], dict[str, Any]]] = {
    "hutchinson": _loss,
    "gauss_newton_bartlett": _logits,
    "empirical_fisher": _examples,
}
