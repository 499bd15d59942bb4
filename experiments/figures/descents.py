"""Runs of optimizers on functions of a few coordinates, over starts and rates at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim

LossFn = Callable[[jax.Array], jax.Array]  # (coordinates,) -> scalar


def descend(
    make: Callable[[jax.Array], optax.GradientTransformation],
    loss_fn: LossFn,
    starts: np.ndarray,
    rates: np.ndarray,
    steps: int,
) -> np.ndarray:
    """Positions (starts, rates, steps + 1, coordinates) in float64, the starts first.

    Every optimizer is offered Hutchinson's estimate of the curvature, of a probe of signs a step.
    """
    curvature_fn = optim.hutchinson(loss_fn)

    def run(start: jax.Array, rate: jax.Array) -> jax.Array:
        tx = optax.with_extra_args_support(make(rate))

        def step(carry: tuple, count: jax.Array) -> tuple:
            position, state = carry
            key = jax.random.fold_in(jax.random.key(0), count)
            extras = {"curvature_fn": curvature_fn, "key": key}
            updates, state = tx.update(jax.grad(loss_fn)(position), state, position, **extras)
            position = optim.apply_updates(position, updates)
            return (position, state), position

        path: jax.Array = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(steps))[1]
        return jnp.concatenate([start[None], path])

    with jax.enable_x64(True):
        runs = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))
        return np.asarray(runs(jnp.asarray(starts, float), jnp.asarray(rates, float)))


def steps_until(reached: np.ndarray) -> np.ndarray:
    """(..., steps + 1) -> the step from which on it is always true; inf if it is not at the end."""
    never = ~reached
    last = reached.shape[-1] - np.argmax(never[..., ::-1], axis=-1)
    return np.where(never.any(-1), np.where(reached[..., -1], last, np.inf), 0.0)
