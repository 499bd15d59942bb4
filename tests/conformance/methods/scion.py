"""Scion."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim

from ..mistakes import decay_after, delayed
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
    make: Callable[..., optax.GradientTransformation],
    light: bool,
    lr: float = 1e-3,
    momentum: float = 1.0,
    norm: str = "Auto",
    norm_kwargs: Mapping[str, Any] | None = None,
    scale: float = 1.0,
    unconstrained: bool = False,
    groups: Sequence[tuple[Sequence[str], Mapping[str, Any]]] = (),
) -> optax.GradientTransformation:
    """Scion, or Scion Light, by groups of torch's kind: (leaves, options of their own).

    Args:
      make: `optim.scion`, or a mistaken one.
      light: whether the gradient is its own buffer.
    """
    common = {"lr": lr, "momentum": momentum, "norm": norm, "norm_kwargs": norm_kwargs}
    common |= {"scale": scale, "unconstrained": unconstrained}
    if not groups:
        return _scion_group(make, light, **common)
    labels = {re.escape(leaf): index for index, (leaves, _) in enumerate(groups) for leaf in leaves}
    options = {
        index: _scion_group(make, light, **{**common, **own})
        for index, (_, own) in enumerate(groups)
    }
    return optax.partition(options, lambda tree: optim.path_labels(tree, labels))


def _scion_group(
    make: Callable[..., optax.GradientTransformation],
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
        make,
        lr,
        norms={".*": _SCION_NORMS[norm](scale=scale, **(norm_kwargs or {}))},
        unconstrained=unconstrained,
        dtype=None,  # the recordings are of the rule, without rounding to bfloat16
    )
    # The gradient itself is the buffer: it decays after the step, and the next one is added.
    return optax.chain(optax.trace(b1), step()) if light and b1 else step(b1=b1)


def replay_scion(
    make: Callable[..., optax.GradientTransformation],
    recording: Recording,
    dtype: Any,
    shown: Callable[[Adapter], Adapter] | None = None,
) -> Mapping[str, Pair]:
    """`make`, with the signature of `optim.scion`, shown the leaves as `transposed` shows them."""
    light = recording.meta.get("method") == "ScionLight"
    return (shown or transposed)(open_loop(partial(scion, make, light)))(recording, dtype)


def _scion(mistake: Callable[..., Any]) -> Adapter:
    """Scion with some of our arguments replaced."""

    def make(rate: float, **given: Any) -> optax.GradientTransformation:
        return optim.scion(rate, **{**given, **mistake(**given)})

    return partial(replay_scion, make)


def _scion_norm(mistake: Callable[[Any], Any]) -> Adapter:
    """Scion with other norms."""
    return _scion(lambda norms, **_: {"norms": {p: mistake(norm) for p, norm in norms.items()}})


def _scion_decays_after(
    rate: float, unconstrained: bool, **given: Any
) -> optax.GradientTransformation:
    free = optim.scion(rate, unconstrained=True, **given)
    return free if unconstrained else optax.chain(free, decay_after(rate))


def _scion_from_first_gradient(
    rate: float, b1: float = 0.0, **given: Any
) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count, m = state
        m = jax.tree.map(lambda g, m: jnp.where(count, b1 * m + (1 - b1) * g, g), updates, m)
        return m, (count + 1, m)

    momentum = optax.GradientTransformation(
        lambda params: (jnp.int32(0), jax.tree.map(jnp.zeros_like, params)), update
    )
    return optax.chain(momentum, optim.scion(rate, **given))


ADAPTERS: dict[str, Adapter] = {
    "scion": partial(replay_scion, optim.scion),
}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "scion": {
        "b1 and 1 - b1 exchanged": _scion(lambda b1=0.0, **_: {"b1": 1 - b1 if b1 else 0.0}),
        "constraint left out": _scion(lambda **_: {"unconstrained": True}),
        "decay after the step": partial(replay_scion, _scion_decays_after),
        "momentum starts at the first gradient": partial(replay_scion, _scion_from_first_gradient),
        "columns and rows exchanged": _scion_norm(
            lambda norm: (
                dataclasses.replace(norm, transpose=not norm.transpose)
                if isinstance(norm, optim.ColumnNorm | optim.RowNorm)
                else norm
            )
        ),
        "spectral norm not over sqrt(inputs)": _scion_norm(
            lambda norm: (
                dataclasses.replace(norm, normalized=False)
                if isinstance(norm, optim.SpectralNorm)
                else norm
            )
        ),
        "torch's layout taken for flax's": lambda recording, dtype: replay_scion(
            optim.scion, recording, dtype, shown=lambda adapter: adapter
        ),
        "one gradient late": partial(
            replay_scion, lambda rate, **given: optax.chain(delayed(), optim.scion(rate, **given))
        ),
    },
}
