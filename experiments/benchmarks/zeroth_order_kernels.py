"""Kernels of zeroth_order: the XLA forms that a CPU takes, on 4096 x 4096 weights in float32.

The pair multiplies (2, tokens, 4096) by w + s z and w - s z. Candidates, over two plain products:

    two products   what `paired_product` is on a CPU; as `reference_pair` writes it
    map            the same in a loop over the signs
    vmap           one batched product of both signs
    copies         z is drawn once, and both copies of w stand behind a barrier

XLA on a CPU writes perturbed weights before it multiplies by them, whichever the form: temporaries
are two copies of w for the pair. On a TPU two products need none (`zeroth_order_kernels_ahead`).

An update reads and writes w, 8 bytes a weight, which is the limit quoted for all: plain products
read half of it. "To bfloat16" is rounded stochastically, and moves half of the limit.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import zeroth_order
from experiments.benchmarks.harness import Candidate, Comparison
from zeroth_order.kernels.fused_update import fused_update
from zeroth_order.kernels.paired_product import paired_product, reference
from zeroth_order.noise import counters, word

DRAWS = zeroth_order.rademacher
KEY, SCALE = 3, 1e-3


def plain(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.stack([x[0] @ w, x[1] @ w])


def scales() -> jax.Array:
    return jnp.array([SCALE, -SCALE])


def two_products(x: jax.Array, w: jax.Array) -> jax.Array:
    return paired_product(x, w, KEY, scales(), DRAWS, implementation="xla")


def one_product(w: jax.Array, x: jax.Array, scale: jax.Array) -> jax.Array:
    return reference(x, w, jnp.uint32(KEY), scale, DRAWS)


def mapped(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.map(lambda pair: one_product(w, *pair), (x, scales()))


def vmapped(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.vmap(functools.partial(one_product, w))(x, scales())


def copies(x: jax.Array, w: jax.Array) -> jax.Array:
    z = DRAWS.draw(word(jnp.uint32(KEY), counters(w.shape, KEY)))
    above, below = jax.lax.optimization_barrier((w + SCALE * z, w - SCALE * z))
    return jnp.stack([x[0] @ above, x[1] @ below])


PAIRS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "plain": plain,
    "two products": two_products,
    "map": mapped,
    "vmap": vmapped,
    "copies": copies,
}


@functools.cache
def weights(width: int) -> jax.Array:
    """One for all pairs, which only read it; of about the same size as its products."""
    return jax.random.normal(jax.random.key(1), (width, width)) / width**0.5


def pair(form: str, tokens: int, width: int) -> Candidate:
    """The inputs are replaced by their products."""
    x = jax.random.normal(jax.random.key(0), (2, tokens, width))
    return Candidate(PAIRS[form], x, weights(width))


def update(directions: int, dtype: Any, width: int) -> Candidate:
    """A donated w that every call moves."""
    keys = jnp.arange(directions, dtype=jnp.uint32)
    w = jnp.array(weights(width), dtype)

    def step(w: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        return fused_update(w, *inputs, DRAWS, jnp.uint32(KEY), implementation="xla")

    return Candidate(step, w, (keys, jnp.full(directions, SCALE)))


def candidates(quick: bool) -> Comparison:
    """Pairs at three numbers of tokens, and updates; `quick` takes weights of 64 x 64."""
    width = 64 if quick else 4096
    tokens, directions = ((4,), (1, 2)) if quick else ((8, 64, 256), (1, 8, 32))
    found: dict[str, Callable[[], Candidate]] = {
        f"pair, {t} tokens: {form}": functools.partial(pair, form, t, width)
        for t in tokens
        for form in PAIRS
    }
    found |= {
        f"update, {q}, to {jnp.dtype(dtype).name}": functools.partial(update, q, dtype, width)
        for dtype in (jnp.float32, jnp.bfloat16)
        for q in directions
    }
    peers = {
        f"pair, {t} tokens: {form}": f"pair, {t} tokens: plain" for t in tokens for form in PAIRS
    }
    return Comparison(candidates=found, reference=peers, ideal_bytes=8 * width**2, most_repeats=10)
