"""Images to classes: scikit-learn's digits, or a folder of MNIST or Fashion-MNIST idx files.

loss = mean over samples of -log p(class), in nats; `error` is the share of wrong classes. Pixels
are shifted and scaled by the mean and the deviation over all pixels of the training images.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.labelled import (
    Labelled,
    Samples,
    bundled,
    idx_folder,
    prior_cross_entropy,
)
from experiments.data.order import sample_indices
from experiments.models.mlp import Mlp
from experiments.models.model import ImageModelConfig, Model
from experiments.tasks.task import Batch, Params, Task
from experiments.tasks.validation import mean_over


@dataclasses.dataclass
class Classification:
    """A network on small grey images."""

    data: str = "digits"  # "digits", or a folder of idx files
    model: ImageModelConfig = dataclasses.field(default_factory=Mlp)  # Mlp or ResNet

    def build(self) -> Task:
        """Raises ValueError or FileNotFoundError where data or model cannot be used."""
        data = _digits() if self.data == "digits" else idx_folder(self.data)
        height, width = data.train.inputs.shape[1:]
        model = self.model.build((height, width, 1), data.classes)
        mean, deviation = float(data.train.inputs.mean()), float(data.train.inputs.std())
        if deviation == 0:
            raise ValueError(f"Classification: all pixels of {self.data!r} are equal.")
        size = len(data.train.labels)

        def batches(seed: int, samples: int, count: int) -> Batch:
            index = sample_indices(seed, samples, count, size)
            return {"image": data.train.inputs[index], "label": data.train.labels[index]}

        logits = functools.partial(_logits, model, mean, deviation)
        measures = functools.partial(_measures, logits)
        validation = {"image": data.validation.inputs, "label": data.validation.labels}
        return Task(
            init=model.init,
            loss=functools.partial(_loss, measures),
            losses=functools.partial(_losses, measures),
            logits=logits,
            batches=batches,
            evaluate=mean_over(measures, validation),
            facts={
                "loss_unit": "nats",
                "primary": "loss",
                "tokens_per_sample": 1,
                "samples": size,
                "baselines": prior_cross_entropy(data),
                "provenance": data.provenance,
            },
        )


def _digits() -> Labelled:
    data = bundled("digits")
    train, validation = (
        Samples(part.inputs.astype(np.uint8).reshape(-1, 8, 8), part.labels)
        for part in (data.train, data.validation)
    )
    return data._replace(train=train, validation=validation)


def _logits(
    model: Model, mean: float, deviation: float, params: Params, batch: Mapping[str, jax.Array]
) -> jax.Array:
    pixels = (batch["image"].astype(jnp.float32)[..., None] - mean) / deviation
    return model.apply(params, pixels)


def _measures(
    logits_fn: functools.partial, params: Params, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """(samples,) each."""
    logits = logits_fn(params, batch)
    return {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]),
        "error": (jnp.argmax(logits, -1) != batch["label"]).astype(jnp.float32),
    }


def _losses(
    measures: functools.partial, params: Params, batch: Batch, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    values = measures(params, batch)
    return values["loss"], {"error": jnp.mean(values["error"])}


def _loss(
    measures: functools.partial, params: Params, batch: Batch, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    values = measures(params, batch)
    return jnp.mean(values["loss"]), {"error": jnp.mean(values["error"])}
