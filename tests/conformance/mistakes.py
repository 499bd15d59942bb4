"""Mistakes that several methods' mutants make."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .replay import Adapter, open_loop


def delayed() -> optax.GradientTransformation:
    """Hands on the gradient of the step before, zero at first."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return state, updates

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def decay_after(rate: float) -> optax.GradientTransformation:
    """Decays what the step arrives at instead of what it starts from."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p: u - rate * (p + u), updates, params)
    )


def changed(build: Callable[..., Any], **changes: Callable[[Any], Any]) -> Adapter:
    """`build` with some hyper-parameters changed, each by a function of its value."""
    return open_loop(
        lambda **hyper: build(**hyper | {name: new(hyper[name]) for name, new in changes.items()})
    )


def apart(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
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


def decay_by_new_d(build: Callable[..., Any]) -> Adapter:
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


def without_decay(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments with no weight decay, for mutants that decay in a way of their own."""
    return {**given, "weight_decay": 0.0}
