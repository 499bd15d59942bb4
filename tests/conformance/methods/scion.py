"""Scion."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import optax

import optim

from ..recording import Recording
from ..replay import Adapter, Pair, open_loop, transposed

_SCION_NORMS = {
    "Auto": optim.AutoNorm,
    "BiasRMS": optim.BiasRMSNorm,
    "ColNorm": optim.ColumnNorm,
    "RowNorm": optim.RowNorm,
    "Sign": optim.SignNorm,
    "Spectral": optim.SpectralNorm,
    "SpectralConv": optim.SpectralConvNorm,
}


def scion(
    light: bool,
    lr: float = 1e-3,
    momentum: float = 1.0,
    norm: str = "Auto",
    norm_kwargs: Mapping[str, Any] | None = None,
    scale: float = 1.0,
    unconstrained: bool = False,
    groups: Sequence[tuple[Sequence[str], Mapping[str, Any]]] = (),
) -> optax.GradientTransformation:
    """Scion, or Scion Light, by groups of torch's kind: (leaves, options of their own)."""
    common = {"lr": lr, "momentum": momentum, "norm": norm, "norm_kwargs": norm_kwargs}
    common |= {"scale": scale, "unconstrained": unconstrained}
    if not groups:
        return _scion_group(light, **common)
    labels = {re.escape(leaf): index for index, (leaves, _) in enumerate(groups) for leaf in leaves}
    options = {
        index: _scion_group(light, **{**common, **own}) for index, (_, own) in enumerate(groups)
    }
    return optax.partition(options, lambda tree: optim.path_labels(tree, labels))


def _scion_group(
    light: bool,
    lr: float,
    momentum: float,
    norm: str,
    norm_kwargs: Mapping[str, Any] | None,
    scale: float,
    unconstrained: bool,
) -> optax.GradientTransformation:
    b1 = 1 - momentum
    step = partial(
        optim.scion,
        lr,
        norms={".*": _SCION_NORMS[norm](scale=scale, **(norm_kwargs or {}))},
        unconstrained=unconstrained,
    )
    # The gradient itself is the buffer: it decays after the step, and the next one is added.
    return optax.chain(optax.trace(b1), step()) if light and b1 else step(b1=b1)


def _scion(recording: Recording, dtype: Any) -> Mapping[str, Pair]:
    light = recording.meta.get("method") == "ScionLight"
    return transposed(open_loop(partial(scion, light)))(recording, dtype)


ADAPTERS: dict[str, Adapter] = {
    "scion": _scion,
}

MUTANTS: dict[str, dict[str, Adapter]] = {}
