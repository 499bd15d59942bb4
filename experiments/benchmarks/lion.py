"""Lion: one whole step (update and apply) of optim.lion and optax.lion on 50 M parameters.

A step must read the parameter, its gradient and the momentum and write the parameter and the
momentum: 20 bytes a float32 parameter, whoever implements it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim
from experiments.benchmarks.harness import Candidate, Comparison

BYTES_PER_PARAMETER = 20


def decoder_shapes(width: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """Leaf shapes of a decoder with gated feed-forward layers, matrices and vectors apart."""
    hidden = 128 * round(8 * width / 3 / 128)
    layer = {
        "norm_attention": (width,),
        "query_key_value": (width, 3 * width),
        "attention_out": (width, width),
        "norm_mlp": (width,),
        "gate_up": (width, 2 * hidden),
        "down": (hidden, width),
    }
    return {
        "embedding": (vocabulary, width),
        "layers": [layer] * layers,
        "norm": (width,),
    }


def is_shape(node: Any) -> bool:
    return isinstance(node, tuple)


def candidate(
    lion: Callable[..., optax.GradientTransformation],
    apply_updates: Callable[[Any, Any], Any],
    shapes: dict[str, Any],
) -> Candidate:
    """A donated (parameters, state) that one optimizer steps along a fixed gradient."""
    optimizer = lion(1e-4, b1=0.9, b2=0.99, weight_decay=0.1)
    leaves, structure = jax.tree.flatten(shapes, is_leaf=is_shape)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    parameters = jax.tree.unflatten(structure, [jnp.full(shape, 0.02) for shape in leaves])
    gradient = jax.tree.unflatten(structure, list(map(jax.random.normal, keys, leaves)))

    def step(carry: Any, gradient: Any) -> Any:
        parameters, state = carry
        updates, state = optimizer.update(gradient, state, parameters)
        return apply_updates(parameters, updates), state

    return Candidate(step, (parameters, optimizer.init(parameters)), gradient)


def candidates(quick: bool) -> Comparison:
    """The two implementations; `quick` takes a tree of about 0.1 M parameters."""
    shapes = decoder_shapes(64, 2, 256) if quick else decoder_shapes(512, 8, 48_000)
    size = sum(math.prod(shape) for shape in jax.tree.leaves(shapes, is_leaf=is_shape))
    return Comparison(
        candidates={
            "optim.lion": lambda: candidate(optim.lion, optim.apply_updates, shapes),
            "optax.lion": lambda: candidate(optax.lion, optax.apply_updates, shapes),
        },
        reference="optax.lion",
        ideal_bytes=BYTES_PER_PARAMETER * size,
    )
