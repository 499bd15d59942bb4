"""Mistakes that several methods' mutants make."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


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
