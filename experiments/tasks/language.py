"""Next-byte prediction on text: the standard library's sources, or a file or folder of the user's.

A sample is a window of length + 1 bytes; windows overlap by one byte, so that every byte of the
text but the first is a target exactly once. loss = mean over samples and positions of -log p(byte),
in nats per byte; validation reports bits per byte, which are nats / log 2.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.order import sample_indices
from experiments.data.text import bits_per_byte, standard_library, text_at
from experiments.models.decoder import Decoder
from experiments.models.model import Model
from experiments.tasks.task import Batch, Params, Task
from experiments.tasks.validation import mean_over


@dataclasses.dataclass
class LanguageModel:
    """A decoder on bytes.

    Validation uses `validation_sequences` windows spread evenly over the validation text, or all
    where there are fewer; the baselines are scored on the same bytes.
    """

    text: str = ""  # a file or folder; "": the Python standard library's sources
    length: int = 128  # bytes a model sees at most
    validation_sequences: int = 512
    model: Decoder = dataclasses.field(default_factory=Decoder)

    def build(self) -> Task:
        """Raises ValueError or FileNotFoundError where text, length or model cannot be used."""
        if self.length < 1 or self.validation_sequences < 1:
            raise ValueError(
                f"LanguageModel: length = {self.length} and validation_sequences = "
                f"{self.validation_sequences} must be at least 1."
            )
        if self.model.vocabulary < 256:
            raise ValueError(
                f"LanguageModel: model.vocabulary is {self.model.vocabulary}; a byte needs 256."
            )
        text = text_at(self.text) if self.text else standard_library()
        model = self.model.build()
        size = windows(text.train, self.length, "training")
        available = windows(text.validation, self.length, "validation")
        chosen = np.linspace(0, available - 1, min(self.validation_sequences, available))
        held_out = window(text.validation, chosen.round().astype(np.int64), self.length)

        def batches(seed: int, samples: int, count: int) -> Batch:
            index = sample_indices(seed, samples, count, size)
            return {"bytes": window(text.train, index, self.length)}

        return Task(
            init=model.init,
            loss=functools.partial(_loss, model),
            losses=functools.partial(_losses, model),
            logits=lambda params, batch: _logits(model, params, batch["bytes"]),
            batches=batches,
            evaluate=mean_over(functools.partial(_measures, model), {"bytes": held_out}),
            facts={
                "loss_unit": "nats per byte",
                "primary": "bits_per_byte",
                "tokens_per_sample": self.length,
                "samples": size,
                "baselines": bits_per_byte(text.train, held_out[:, :-1], held_out[:, 1:]),
                "provenance": text.provenance | {"validation_sequences": len(held_out)},
            },
        )


def windows(text: np.ndarray, length: int, name: str) -> int:
    """How many windows of length + 1 bytes the text holds."""
    if text.size <= length:
        raise ValueError(
            f"LanguageModel: the {name} text has {text.size} bytes; length = {length} needs at "
            f"least {length + 1}."
        )
    return (text.size - 1) // length


def window(text: np.ndarray, index: np.ndarray, length: int) -> np.ndarray:
    """Windows by number: (count, length + 1) uint8."""
    return text[index[:, None] * length + np.arange(length + 1)]


def _logits(model: Model, params: Params, windows: jax.Array) -> jax.Array:
    """(samples, length, vocabulary), of the next byte."""
    return model.apply(params, windows[:, :-1].astype(jnp.int32))


def _cross_entropy(model: Model, params: Params, windows: jax.Array) -> jax.Array:
    """(samples, length) nats."""
    labels = windows[:, 1:].astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(_logits(model, params, windows), labels)


def _loss(
    model: Model, params: Params, batch: Batch, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    loss = jnp.mean(_cross_entropy(model, params, batch["bytes"]))
    return loss, {"bits_per_byte": loss / math.log(2)}


def _losses(
    model: Model, params: Params, batch: Batch, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    losses = jnp.mean(_cross_entropy(model, params, batch["bytes"]), axis=1)
    return losses, {"bits_per_byte": jnp.mean(losses) / math.log(2)}


def _measures(model: Model, params: Params, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
    nats = jnp.mean(_cross_entropy(model, params, batch["bytes"]), axis=1)
    return {"loss": nats, "bits_per_byte": nats / math.log(2)}
