"""D-Adaptation: Adam and SGD."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim

from ..mistakes import apart, changed, decay_by_new_d, delayed
from ..replay import Adapter, open_loop

Betas = Sequence[float]


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


def _dadapt_new_second_moment(
    lr: float, betas: Any, eps: float, **hyper: Any
) -> optax.GradientTransformation:
    """Takes the v after the step for the numerator; right but for a bias correction and decay."""
    inner = dadapt_adam(lr=lr, betas=betas, eps=eps, **hyper)
    root = betas[1] ** 0.5

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        move, new = inner.update(updates, state, params)
        products = jax.tree.map(
            lambda g, s, v: jnp.sum(g * s / (jnp.sqrt(v) + eps)), updates, state.s, new.nu
        )
        product = state.d * lr * sum(jax.tree.leaves(products))
        numerator = root * state.numerator + (1 - root) * product
        norm = sum(jnp.sum(jnp.abs(s)) for s in jax.tree.leaves(new.s))
        d = jnp.maximum(state.d, numerator / ((1 - root) * norm))
        return move, new._replace(numerator=numerator, d=d)

    return optax.GradientTransformation(inner.init, update)


def _norm_with_decay(weight_decay: float, **hyper: Any) -> optax.GradientTransformation:
    """D-Adapt SGD whose first norm is that of the decayed gradient."""
    return optax.chain(optax.add_decayed_weights(weight_decay), dadapt_sgd(**hyper))


ADAPTERS: dict[str, Adapter] = {
    "dadapt_adam": open_loop(dadapt_adam),
    "dadapt_sgd": open_loop(dadapt_sgd),
}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "dadapt_adam": {
        "bias correction exchanged": changed(dadapt_adam, use_bias_correction=operator.not_),
        "decay exchanged": changed(dadapt_adam, decouple=operator.not_),
        "decay by the new d": decay_by_new_d(dadapt_adam),
        "a d of each tensor": open_loop(lambda **hyper: apart(dadapt_adam(**hyper))),
        "new second moment in the numerator": open_loop(_dadapt_new_second_moment),
        "b1 and b2 exchanged": changed(dadapt_adam, betas=lambda betas: betas[::-1]),
        "d stays d0": changed(dadapt_adam, growth_rate=lambda rate: 1.0),
    },
    "dadapt_sgd": {
        "first norm with decay": open_loop(_norm_with_decay),
        "a d of each tensor": open_loop(lambda **hyper: apart(dadapt_sgd(**hyper))),
        "momentum of the gradients": open_loop(
            lambda momentum, **hyper: optax.chain(
                optax.ema(momentum, debias=False), dadapt_sgd(momentum=0.0, **hyper)
            )
        ),
        "d stays d0": changed(dadapt_sgd, growth_rate=lambda rate: 1.0),
        "one gradient late": open_loop(lambda **hyper: optax.chain(delayed(), dadapt_sgd(**hyper))),
    },
}
