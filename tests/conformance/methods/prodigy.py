"""Prodigy."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim

from ..replay import Adapter, open_loop

Betas = Sequence[float]


def prodigy(
    lr: float = 1.0, betas: Betas = (0.9, 0.999), fsdp_in_use: bool = False, **same: Any
) -> optax.GradientTransformation:
    """Prodigy by its official arguments; sums under jit are over all shards by themselves."""
    del fsdp_in_use
    return optim.prodigy(lr, b1=betas[0], b2=betas[1], **same)


def _changed(build: Callable[..., Any], **changes: Callable[[Any], Any]) -> Adapter:
    """`build` with some hyper-parameters changed, each by a function of its value."""
    return open_loop(
        lambda **hyper: build(**hyper | {name: new(hyper[name]) for name, new in changes.items()})
    )


def _apart(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation of every leaf alone, by which tensors share nothing."""

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        pairs = {
            name: transformation.update(updates[name], state[name], params[name])
            for name in updates
        }
        return {k: pair[0] for k, pair in pairs.items()}, {k: pair[1] for k, pair in pairs.items()}

    return optax.GradientTransformation(
        lambda params: {name: transformation.init(p) for name, p in params.items()}, update
    )


def _decay_by_new_d(build: Callable[..., Any]) -> Adapter:
    """Multiplies a decoupled decay by the d that the step has found."""

    def make(
        lr: float,
        betas: Any,
        weight_decay: float,
        decouple: bool,
        use_bias_correction: bool,
        **hyper: Any,
    ) -> optax.GradientTransformation:
        hyper |= {"lr": lr, "betas": betas, "use_bias_correction": use_bias_correction}
        if not decouple:
            return build(weight_decay=weight_decay, decouple=False, **hyper)
        inner = build(**hyper)

        def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
            updates, state = inner.update(updates, state, params)
            factor = state.d * lr * weight_decay
            if use_bias_correction:
                factor *= jnp.sqrt(1 - betas[1] ** state.steps) / (1 - betas[0] ** state.steps)
            return jax.tree.map(lambda u, p: u - factor * p, updates, params), state

        return optax.GradientTransformation(inner.init, update)

    return open_loop(make)


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
        "bias correction exchanged": _changed(prodigy, use_bias_correction=operator.not_),
        "decay exchanged": _changed(prodigy, decouple=operator.not_),
        "decay by the new d": _decay_by_new_d(prodigy),
        "safeguard exchanged": _changed(prodigy, safeguard_warmup=operator.not_),
        "beta3 is b2": open_loop(lambda **hyper: prodigy(**hyper | {"beta3": hyper["betas"][1]})),
        "a d of each tensor": open_loop(lambda **hyper: _apart(prodigy(**hyper))),
        "eps of the old d": open_loop(_prodigy_eps_of_old_d),
        "growth not limited": _changed(prodigy, growth_rate=lambda rate: float("inf")),
        "every second entry": open_loop(lambda **hyper: prodigy(**hyper, slice_p=2)),
    },
}
