"""Multinomial logistic regression on scikit-learn's bundled sets: convex, its optimum known.

    loss(W, b) = mean over samples of -log softmax(x W + b)[class] + l2/2 ‖W‖²,
    x standardized by the mean and deviation of each feature over the training samples

Validation leaves the penalty out. For l2 > 0, `facts["optimum"]` is the smallest training loss and
the baseline `fitted` the validation loss there, both from scikit-learn's own L-BFGS. For two
classes its single vector w is ours at W = (-w/2, w/2), where ‖W‖² = ‖w‖²/2.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.linear_model import LogisticRegression as Fit

from experiments.data.labelled import Labelled, Samples, bundled, prior_cross_entropy
from experiments.data.order import sample_indices
from experiments.tasks.task import Batch, Params, Task
from experiments.tasks.validation import mean_over


@dataclasses.dataclass
class LogisticRegression:
    """Starts at zero, so `init` uses no randomness."""

    data: str = "breast_cancer"  # "breast_cancer", "digits", "iris" or "wine"
    l2: float = 1e-3  # of the matrix, not of the bias

    def build(self) -> Task:
        """Raises ValueError where the set is unknown or `l2` negative."""
        if self.l2 < 0:
            raise ValueError(f"LogisticRegression: l2 is {self.l2}; it cannot be negative.")
        data = _standardized(bundled(self.data))
        size, features = data.train.inputs.shape

        def init(key: jax.Array) -> Params:
            return {"kernel": jnp.zeros((features, data.classes)), "bias": jnp.zeros(data.classes)}

        def batches(seed: int, samples: int, count: int) -> Batch:
            index = sample_indices(seed, samples, count, size)
            return {"x": data.train.inputs[index], "label": data.train.labels[index]}

        fit = _fit(data, self.l2) if self.l2 > 0 else None
        validation = {"x": data.validation.inputs, "label": data.validation.labels}
        fitted = {} if fit is None else {"fitted": _cross_entropy_of(fit, validation)}
        return Task(
            init=init,
            loss=functools.partial(_loss, self.l2),
            losses=functools.partial(_losses, self.l2),
            logits=_logits,
            batches=batches,
            evaluate=mean_over(_measures, validation),
            facts={
                "loss_unit": "nats",
                "primary": "loss",
                "tokens_per_sample": 1,
                "samples": size,
                "baselines": prior_cross_entropy(data) | fitted,
                "provenance": data.provenance,
                "optimum": None if fit is None else _optimum(fit, data, self.l2),
            },
        )


def _standardized(data: Labelled) -> Labelled:
    """Features that never vary in training (a corner pixel of digits) become zero."""
    mean, deviation = data.train.inputs.mean(0), data.train.inputs.std(0)
    scale = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0)
    train, validation = (
        Samples(((part.inputs - mean) * scale).astype(np.float32), part.labels)
        for part in (data.train, data.validation)
    )
    return data._replace(train=train, validation=validation)


def _fit(data: Labelled, l2: float) -> Fit:
    halves = 2 if data.classes == 2 else 1
    strength = halves / (l2 * len(data.train.labels))
    inputs = data.train.inputs.astype(np.float64)
    return Fit(C=strength, tol=1e-8, max_iter=10_000).fit(inputs, data.train.labels)


def _cross_entropy_of(fit: Fit, samples: Mapping[str, np.ndarray]) -> float:
    log_p = fit.predict_log_proba(samples["x"].astype(np.float64))
    return -float(log_p[np.arange(len(log_p)), samples["label"]].mean())


def _optimum(fit: Fit, data: Labelled, l2: float) -> float:
    square = float(np.sum(fit.coef_**2)) / (2 if data.classes == 2 else 1)
    train = {"x": data.train.inputs, "label": data.train.labels}
    return _cross_entropy_of(fit, train) + l2 / 2 * square


def _logits(params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
    return batch["x"] @ params["kernel"] + params["bias"]


def _measures(params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """(samples,) each."""
    logits = _logits(params, batch)
    return {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]),
        "error": (jnp.argmax(logits, -1) != batch["label"]).astype(jnp.float32),
    }


def _loss(
    l2: float, params: Params, batch: Batch, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    values = _measures(params, batch)
    penalty = l2 / 2 * jnp.sum(params["kernel"] ** 2)
    return jnp.mean(values["loss"]) + penalty, {"error": jnp.mean(values["error"])}


def _losses(
    l2: float, params: Params, batch: Batch, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """(samples,), the penalty in each: what weighs them by differences does not see it."""
    values = _measures(params, batch)
    penalty = l2 / 2 * jnp.sum(params["kernel"] ** 2)
    return values["loss"] + penalty, {"error": jnp.mean(values["error"])}
