"""One line a method: how its official hyper-parameters map to our names."""

import dataclasses
from collections.abc import Sequence
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import optax

import optim

from .recording import Recording
from .replay import Adapter, AdapterError, Pair, open_loop


def ademamix(
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    alpha: float = 2.0,
    beta3_warmup: float | None = None,
    alpha_warmup: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Ours, from the official arguments."""
    b1, b2, b3 = betas
    slow, weight = b3, alpha
    if beta3_warmup is not None:
        slow = optim.ademamix_b3_schedule(b3, b1=b1, warmup_steps=beta3_warmup)
    if alpha_warmup is not None:
        weight = optim.ademamix_alpha_schedule(alpha, warmup_steps=alpha_warmup)
    return optim.ademamix(
        lr, b1=b1, b2=b2, b3=slow, alpha=weight, eps=eps, weight_decay=weight_decay
    )


def power_of_step(clip: str | None) -> Callable[[Any], Any]:
    """The clip that a recording of ADOPT names: `step**0.25`, or None."""
    if clip is None:
        return lambda step: math.inf
    found = re.fullmatch(r"step\s*\*\*\s*([0-9.]+)", clip)
    if found is None:
        raise AdapterError(f"the adapter of adopt knows clips like step**0.25, not {clip!r}.")
    power = float(found[1])
    return lambda step: step**power


def adopt(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.9999),
    eps: float = 1e-6,
    clip: str | None = "step**0.25",
    weight_decay: float = 0.0,
    decouple: bool = False,
) -> optax.GradientTransformation:
    """Ours, from the official arguments and the recording's text for `clip_lambda`."""
    return optim.adopt(
        lr,
        b1=betas[0],
        b2=betas[1],
        eps=eps,
        clip_value_fn=power_of_step(clip),
        weight_decay=weight_decay,
        decouple=decouple,
    )


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
    "ademamix": open_loop(ademamix),
    "adopt": open_loop(adopt),
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
