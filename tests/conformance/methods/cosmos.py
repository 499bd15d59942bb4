"""COSMOS."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import optax

import optim

from ..recording import Recording
from ..replay import Adapter, Pair, open_loop


def _matrices_of(layouts: Mapping[str, str | None]) -> dict[str, str | None]:
    """Layouts by the names of leaves, as rules for their paths."""
    return {re.escape(leaf): layout for leaf, layout in layouts.items()}


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
        given = functools.partial(build, matrices=_matrices_of(layouts))
        return open_loop(given)(recording, dtype)

    return adapter


ADAPTERS: dict[str, Adapter] = {
    "cosmos": cosmos(build_cosmos),
}

MUTANTS: dict[str, dict[str, Adapter]] = {}
