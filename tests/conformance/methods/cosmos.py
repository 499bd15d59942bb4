"""COSMOS."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

import optim

from ..mistakes import decay_after, delayed, without_decay
from ..recording import Recording
from ..replay import Adapter, Pair, open_loop, rules_of


def build_cosmos(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    nestrov: bool = True,
    **same: Any,
) -> optax.GradientTransformation:
    """`optim.cosmos` by its official arguments, most of which are called alike."""
    same = {"mode": "code", "dtype": None, **same}
    return optim.cosmos(lr, b1=betas[0], b2=betas[1], nesterov=nestrov, **same)


def cosmos(build: Callable[..., Any]) -> Adapter:
    """COSMOS by `build` on torch's (outputs, inputs); what has not two axes gets Adam."""

    def adapter(recording: Recording, dtype: Any) -> Mapping[str, Pair]:
        ranks = {leaf: value.ndim for leaf, value in recording.tree("p0").items()}
        layouts = {leaf: "n m" if rank == 2 else None for leaf, rank in ranks.items()}
        given = functools.partial(build, matrices=rules_of(layouts))
        return open_loop(given)(recording, dtype)

    return adapter


def _cosmos_with(**changed: Callable[[Any], Any]) -> Adapter:
    """The same for COSMOS."""
    return cosmos(
        lambda **given: build_cosmos(**{**given, **{k: f(given) for k, f in changed.items()}})
    )


ADAPTERS: dict[str, Adapter] = {
    "cosmos": cosmos(build_cosmos),
}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "cosmos": {
        "the slips of the code mended": _cosmos_with(mode=lambda given: "paper"),
        "rows and columns exchanged": _cosmos_with(
            matrices=lambda given: {
                leaf: layout and "m n" for leaf, layout in given["matrices"].items()
            }
        ),
        "b1 and b2 exchanged": _cosmos_with(betas=lambda given: given["betas"][::-1]),
        "Newton-Schulz in bfloat16": _cosmos_with(dtype=lambda given: jnp.bfloat16),
        "an arbitrary first basis": _cosmos_with(
            initial_basis=lambda given: lambda g, rank: jnp.eye(g.shape[-2], rank, dtype=g.dtype)
        ),
        "no look-ahead": _cosmos_with(nestrov=lambda given: False),
        "matrices at the full rate": _cosmos_with(lr_ratio=lambda given: 1.0),
        "decay after the step": cosmos(
            lambda **given: optax.chain(
                build_cosmos(**without_decay(given)),
                decay_after(given["lr"] * given["weight_decay"]),
            )
        ),
        "one gradient late": cosmos(lambda **given: optax.chain(delayed(), build_cosmos(**given))),
    },
}
