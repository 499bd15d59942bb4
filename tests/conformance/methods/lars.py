"""LARS."""

from typing import Any

import jax
import optax

import optim

from ..mistakes import delayed
from ..replay import Adapter, open_loop


def _lars(lr: float = 0.0, **same: Any) -> optax.GradientTransformation:
    """LARS by its official arguments; the others are called alike, with the authors' defaults."""
    return optim.lars(lr, **same)


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


ADAPTERS: dict[str, Adapter] = {"lars": open_loop(_lars)}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "lars": {
        "vectors scaled": open_loop(lambda **same: _lars(trust_ratio_mask=None, **same)),
        "vectors decayed": open_loop(lambda **same: _lars(mask=None, **same)),
        "decay outside the norm": open_loop(
            lambda lr, weight_decay, **same: optax.chain(
                optim.scale_by_lars(**same),
                optax.add_decayed_weights(weight_decay, _matrices),
                optax.scale_by_learning_rate(lr),
            )
        ),
        "dampened momentum": open_loop(
            lambda lr, momentum, **same: _lars(lr * (1 - momentum), momentum=momentum, **same)
        ),
        "one gradient late": open_loop(lambda **same: optax.chain(delayed(), _lars(**same))),
    },
}
