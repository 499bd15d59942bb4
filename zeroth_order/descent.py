"""What algorithms that own their parameters share: their shape, their state, what a step tells."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim import trees
from zeroth_order.directions import Direction, check_moves
from zeroth_order.gradients import SeededGradient


class Algorithm(NamedTuple):
    """What is no gradient transformation."""

    init: Callable[..., Any]  # (params, key) -> state
    update: Callable[..., Any]  # (state, batch) -> (state, info)


class DescentState(NamedTuple):
    """Parameters, and where their noise comes from."""

    params: optax.Params
    key: jax.Array  # (), typed key: of the run
    step: jax.Array  # (), int32: steps up to now


class DescentInfo(NamedTuple):
    """What a step tells: enough to make it again from the parameters before it."""

    loss: jax.Array  # (), float32 or wider: mean over the batch, as the algorithm says
    gradient: SeededGradient
    learning_rate: jax.Array  # (), float32 or wider: by which the gradient was multiplied
    evaluations: jax.Array  # (), int32: losses of this step


def start(method: str, along: Direction, params: optax.Params, key: jax.Array) -> DescentState:
    """The first state, in buffers of its own; what cannot be perturbed is an error here."""
    check_moves(method, along, params)
    return DescentState(jax.tree.map(jnp.array, params), jnp.array(key), jnp.zeros((), jnp.int32))


def draw(method: str, state: DescentState) -> jax.Array:
    """The seed of the state's next step."""
    key = jax.random.fold_in(trees.named_key(state.key, method), state.step)
    return jax.random.bits(key, (), jnp.uint32)


def after(state: DescentState, params: optax.Params) -> DescentState:
    """The state of the next step."""
    return DescentState(params, state.key, optax.safe_increment(state.step))
