"""Prodigy."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim

from ..mistakes import apart, changed, decay_by_new_d
from ..replay import Adapter, open_loop

Betas = Sequence[float]


def prodigy(
    lr: float = 1.0, betas: Betas = (0.9, 0.999), fsdp_in_use: bool = False, **same: Any
) -> optax.GradientTransformation:
    """Prodigy by its official arguments; sums under jit are over all shards by themselves."""
    del fsdp_in_use
    return optim.prodigy(lr, b1=betas[0], b2=betas[1], **same)


def _prodigy_eps_of_old_d(lr: float, eps: float, **hyper: Any) -> optax.GradientTransformation:
    """Adds eps times the d of before to the root; right but for a bias correction and decay."""
    inner = prodigy(lr=lr, eps=eps, **hyper)

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        _, new = inner.update(updates, state, params)
        move = jax.tree.map(
            lambda m, v: -state.d * lr * m / (jnp.sqrt(v) + eps * state.d), new.mu, new.nu
        )
        return move, new

    return optax.GradientTransformation(inner.init, update)


ADAPTERS: dict[str, Adapter] = {
    "prodigy": open_loop(prodigy),
}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "prodigy": {
        "bias correction exchanged": changed(prodigy, use_bias_correction=operator.not_),
        "decay exchanged": changed(prodigy, decouple=operator.not_),
        "decay by the new d": decay_by_new_d(prodigy),
        "safeguard exchanged": changed(prodigy, safeguard_warmup=operator.not_),
        "beta3 is b2": open_loop(lambda **hyper: prodigy(**hyper | {"beta3": hyper["betas"][1]})),
        "a d of each tensor": open_loop(lambda **hyper: apart(prodigy(**hyper))),
        "eps of the old d": open_loop(_prodigy_eps_of_old_d),
        "growth not limited": changed(prodigy, growth_rate=lambda rate: float("inf")),
        "every second entry": open_loop(lambda **hyper: prodigy(**hyper, slice_p=2)),
    },
}
