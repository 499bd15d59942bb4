"""One line a method: how its official hyper-parameters map to our names."""

import dataclasses
from typing import Any

import numpy as np

import optim

from .recording import Recording
from .replay import Adapter, Pair, open_loop

# An adapter knows a file by the name and the hyper-parameters in its meta, and by nothing else.
ADAPTERS: dict[str, Adapter] = {
    "lion": open_loop(
        lambda lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0: optim.lion(
            lr, b1=betas[0], b2=betas[1], weight_decay=weight_decay
        )
    ),
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
