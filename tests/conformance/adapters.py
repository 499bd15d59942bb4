"""One line a method: how its official hyper-parameters map to our names."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import optax

import optim

from .recording import Recording
from .replay import Adapter, Pair, open_loop

Betas = Sequence[float]


# Hyper-parameters called alike here and there, whose defaults are the authors', come in `same`.


def prodigy(
    lr: float = 1.0, betas: Betas = (0.9, 0.999), fsdp_in_use: bool = False, **same: Any
) -> optax.GradientTransformation:
    """Prodigy by its official arguments; sums under jit are over all shards by themselves."""
    del fsdp_in_use
    return optim.prodigy(lr, b1=betas[0], b2=betas[1], **same)


def dadapt_adam(
    lr: float = 1.0,
    betas: Betas = (0.9, 0.999),
    log_every: int = 0,
    fsdp_in_use: bool = False,
    **same: Any,
) -> optax.GradientTransformation:
    """D-Adapt Adam by its official arguments."""
    del log_every, fsdp_in_use
    return optim.dadapt_adam(lr, b1=betas[0], b2=betas[1], **same)


def dadapt_sgd(
    lr: float = 1.0, log_every: int = 0, fsdp_in_use: bool = False, **same: Any
) -> optax.GradientTransformation:
    """D-Adapt SGD by its official arguments."""
    del log_every, fsdp_in_use
    return optim.dadapt_sgd(lr, **same)


def schedule_free_adamw(
    lr: float = 0.0025, betas: Betas = (0.9, 0.999), foreach: bool | None = None, **same: Any
) -> optax.GradientTransformation:
    """Schedule-free AdamW by its official arguments; foreach changes no result."""
    del foreach
    return optim.schedule_free_adamw(lr, b1=betas[0], b2=betas[1], **same)


def schedule_free_radam(
    lr: float = 0.0025, betas: Betas = (0.9, 0.999), foreach: bool | None = None, **same: Any
) -> optax.GradientTransformation:
    """Schedule-free RAdam by its official arguments."""
    del foreach
    return optim.schedule_free_radam(lr, b1=betas[0], b2=betas[1], **same)


def schedule_free_sgd(
    lr: float = 1.0, momentum: float = 0.9, foreach: bool | None = None, **same: Any
) -> optax.GradientTransformation:
    """Schedule-free SGD by its official arguments."""
    del foreach
    return optim.schedule_free_sgd(lr, b1=momentum, **same)


# An adapter knows a file by the name and the hyper-parameters in its meta, and by nothing else.
ADAPTERS: dict[str, Adapter] = {
    "dadapt_adam": open_loop(dadapt_adam),
    "dadapt_sgd": open_loop(dadapt_sgd),
    "lion": open_loop(
        lambda lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0: optim.lion(
            lr, b1=betas[0], b2=betas[1], weight_decay=weight_decay
        )
    ),
    "prodigy": open_loop(prodigy),
    "sf_adamw": open_loop(schedule_free_adamw),
    "sf_radam": open_loop(schedule_free_radam),
    "sf_sgd": open_loop(schedule_free_sgd),
}

DEFAULT_TOLERANCE = 1e-9
# Looser where the recording itself is less exact than float64.
TOLERANCES = {
    "soap": 5e-6,  # the official QR runs in float32
    "psgd_kron": 1e-6,  # the official triangular solve runs in float32
    "lamb": 1e-5,  # recorded in float32
    "badam": 2e-4,  # recorded in float32
    "bnb8": 1e-4,  # recorded in float32
    "galore_adamw8bit": 1e-4,  # recorded in float32
}


def tolerance(name: str) -> float:
    """The largest relative error that a recording of this method allows."""
    return TOLERANCES.get(name, DEFAULT_TOLERANCE)


def transposed(adapter: Adapter) -> Adapter:
    """`adapter` shown leaves in flax's layout, for methods to which rows and columns matter.

    torch's (out, in, *window) becomes (*window, in, out) in p0, g and the recorded parameters;
    the inputs `in/...` have layouts of their own and are left to the adapter.
    """

    def shown(recording: Recording, dtype: Any) -> dict[str, Pair]:
        ranks = {leaf: value.ndim for leaf, value in recording.tree("p0").items()}
        groups = {"p0": 0, "g": 1, recording.final: 1}  # number of leading time axes
        arrays = {
            key: _flip(value, groups[group], ranks[leaf]) if group in groups else value
            for key, value in recording.arrays.items()
            for group, _, leaf in [key.partition("/")]
        }
        return dict(adapter(dataclasses.replace(recording, arrays=arrays), dtype))

    return shown


def _flip(value: np.ndarray, leading: int, rank: int) -> np.ndarray:
    if rank < 2:
        return value
    order = [*range(2, rank), 1, 0]
    return value.transpose([*range(leading), *(leading + axis for axis in order)])
