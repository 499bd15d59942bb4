"""Runs of a transformation over given gradients."""

import jax
import jax.numpy as jnp
import numpy as np

import optim


def run(tx, params, gradients):
    """Parameters and state after all steps, not compiled."""
    state = tx.init(params)
    for g in gradients:
        updates, state = tx.update(g, state, params)
        params = optim.apply_updates(params, updates)
    return params, state


def run_jitted(tx, params, gradients):
    """The same, each step compiled."""

    @jax.jit
    def step(params, state, g):
        updates, state = tx.update(g, state, params)
        return optim.apply_updates(params, updates), state

    state = tx.init(params)
    for g in gradients:
        params, state = step(params, state, g)
    return params, state


def random_gradients(steps=6):
    """Of a matrix and a vector, with a mean of 1 so that momenta have a direction."""
    rng = np.random.default_rng(0)
    drawn = [(rng.normal(1.0, size=(3, 4)), rng.normal(size=4)) for _ in range(steps)]
    return [{"w": jnp.asarray(w, "float32"), "b": jnp.asarray(b, "float32")} for w, b in drawn]
