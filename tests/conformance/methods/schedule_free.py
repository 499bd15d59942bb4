"""Schedule-free AdamW, RAdam and SGD."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optim

from ..mistakes import changed, delayed
from ..replay import Adapter, open_loop

Betas = Sequence[float]


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


class _ServesY(NamedTuple):
    """A state that serves the parameters that are trained."""

    hidden: tuple[Any, ...]  # the leaves of the state that serves others

    def evaluation_params(self, params: Any) -> Any:
        return params


class _ServesZ(NamedTuple):
    """A state that serves the iterates of the inner optimizer."""

    hidden: tuple[Any, ...]
    z: Any

    def evaluation_params(self, params: Any) -> Any:
        del params
        return self.z


def _serving(serve: Callable[[Any], Any], build: Callable[..., Any]) -> Adapter:
    """`build` with another state to ask for the parameters to evaluate."""

    def make(**hyper: Any) -> optax.GradientTransformation:
        inner = build(**hyper)

        def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
            structure = jax.tree.structure(jax.eval_shape(inner.init, params))
            state = jax.tree.unflatten(structure, state.hidden)
            updates, state = inner.update(updates, state, params)
            return updates, serve(state)

        return optax.GradientTransformation(lambda params: serve(inner.init(params)), update)

    return open_loop(make)


def _serves_y(state: Any) -> Any:
    return _ServesY(tuple(jax.tree.leaves(state)))


def _serves_z(state: Any) -> Any:
    return _ServesZ(tuple(jax.tree.leaves(state)), state.z)


def _optax_schedule_free_adamw(
    lr: float,
    betas: Any,
    eps: float,
    weight_decay: float,
    warmup_steps: int,
    r: float,
    weight_lr_power: float,
    inner_momentum: float = 0.0,
) -> optax.GradientTransformation:
    del r, inner_momentum
    return optax.contrib.schedule_free_adamw(
        lr,
        warmup_steps or None,
        b1=betas[0],
        b2=betas[1],
        eps=eps,
        weight_decay=weight_decay,
        weight_lr_power=weight_lr_power,
    )


def _warmed(late_step: int, late_weight: int) -> Adapter:
    """Schedule-free SGD whose warm-up is late by some steps, for the step and for the weights."""

    def make(
        lr: float, momentum: float, warmup_steps: int, **same: Any
    ) -> optax.GradientTransformation:
        def rate(late: int) -> Callable[[jax.Array], jax.Array]:
            return lambda k: (
                lr * jnp.minimum(1.0, jnp.asarray(k + 1 - late, float) / max(warmup_steps, 1))
            )

        return optim.schedule_free(
            optax.sgd(rate(late_step)), rate(late_weight), b1=momentum, **same
        )

    return open_loop(make)


def _decay_at_z(
    lr: float, momentum: float, weight_decay: float, **same: Any
) -> optax.GradientTransformation:
    """Schedule-free SGD whose inner optimizer decays its own iterates."""
    inner = optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(lr))
    return optim.schedule_free(inner, lr, b1=momentum, **same)


ADAPTERS: dict[str, Adapter] = {
    "sf_adamw": open_loop(schedule_free_adamw),
    "sf_radam": open_loop(schedule_free_radam),
    "sf_sgd": open_loop(schedule_free_sgd),
}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "sf_adamw": {
        "optax, without power or momentum": open_loop(_optax_schedule_free_adamw),
        "y served": _serving(_serves_y, schedule_free_adamw),
        "z served": _serving(_serves_z, schedule_free_adamw),
        "one step of warm-up more": changed(schedule_free_adamw, warmup_steps=lambda w: w + 1),
        "equal weights": changed(schedule_free_adamw, weight_lr_power=lambda power: 0.0),
        "no power of the step": changed(schedule_free_adamw, r=lambda r: 0.0),
        "momentum ignored": open_loop(
            lambda inner_momentum=0.0, **hyper: schedule_free_adamw(**hyper)
        ),
        "decay left out": changed(schedule_free_adamw, weight_decay=lambda decay: 0.0),
    },
    "sf_radam": {
        "y served": _serving(_serves_y, schedule_free_radam),
        "SGD phase exchanged": changed(schedule_free_radam, silent_sgd_phase=operator.not_),
        "not rectified": open_loop(lambda silent_sgd_phase, **hyper: schedule_free_adamw(**hyper)),
        "equal weights": changed(schedule_free_radam, weight_lr_power=lambda power: 0.0),
        "no power of the step": changed(schedule_free_radam, r=lambda r: 0.0),
    },
    "sf_sgd": {
        "y served": _serving(_serves_y, schedule_free_sgd),
        "z served": _serving(_serves_z, schedule_free_sgd),
        "decay at z": open_loop(_decay_at_z),
        "warm-up one step late": _warmed(1, 1),
        "warm-up of the step one late": _warmed(1, 0),
        "warm-up of the weights one late": _warmed(0, 1),
        "equal weights": changed(schedule_free_sgd, weight_lr_power=lambda power: 0.0),
        "no power of the step": changed(schedule_free_sgd, r=lambda r: 0.0),
        "one gradient late": open_loop(
            lambda **hyper: optax.chain(delayed(), schedule_free_sgd(**hyper))
        ),
    },
}
