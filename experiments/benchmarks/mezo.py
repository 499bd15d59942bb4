"""MeZO: a whole step beside two forward passes, jax.random's, backpropagation's, forward gradients.

A decoder of 12 layers of width 512, hidden 2048, with a tied vocabulary of 8192 (42 M parameters in
float32), whose loss takes the vocabulary by chunks, on 128, 512 and 2048 tokens. Candidates, their
parameters donated:

    two forwards      the loss of two batches, one after the other: the least that MeZO can cost
    mezo, streamed    zeroth_order.mezo, perturbed a layer and a chunk at a time
    mezo, tree-wise   the same step with perturbed copies
    jax.random port   the same algorithm as one writes it down: a normal tree, three perturbed ones
    forward gradient  zeroth_order.forward_gradient, streamed, in the same step
    SGD               backpropagation, the vocabulary in one chunk, which is cheaper there

Findings: compiled temporaries over those of one forward pass and over the parameters' bytes. Rows
of one number of tokens are divided by its first.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import zeroth_order
from experiments.benchmarks.harness import Candidate, Comparison, compile_candidate
from experiments.models.chunked_decoder import STACK, ChunkedDecoder

EPSILON, RATE = 1e-3, 1e-6
LENGTH = 256  # tokens of a sequence at most
REFERENCE = "two forwards"

# (parameters -> carry, (carry, tokens) -> carry)
Method = tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]


def ours(estimator: Any, streamed: bool) -> Callable[[ChunkedDecoder], Method]:
    """MeZO's step with one of our estimators."""

    def build(model: ChunkedDecoder) -> Method:
        along = zeroth_order.direction(stack=STACK)
        found = estimator(along, streamed=streamed)
        algorithm = zeroth_order.mezo(model.losses, RATE, found, along)

        def step(state: Any, tokens: jax.Array) -> Any:
            return algorithm.update(state, tokens)[0]

        return lambda params: algorithm.init(params, jax.random.key(0)), step

    return build


def port(model: ChunkedDecoder) -> Method:
    """MeZO as one writes it down with jax.random."""

    def step(carry: Any, tokens: jax.Array) -> Any:
        params, count = carry
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), count), len(leaves))
        drawn = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        z = jax.tree.unflatten(tree, drawn)

        def moved(by: Any) -> Any:
            return jax.tree.map(lambda x, z: (x + by * z).astype(x.dtype), params, z)

        plus, minus = (jnp.mean(model.losses(moved(eps), tokens)) for eps in (EPSILON, -EPSILON))
        return moved(-RATE * (plus - minus) / (2 * EPSILON)), count + 1

    return lambda params: (jax.tree.map(jnp.array, params), jnp.int32(0)), step


def sgd(model: ChunkedDecoder) -> Method:
    """Backpropagation and SGD."""
    whole = model._replace(chunk=model.vocabulary)

    def step(params: Any, tokens: jax.Array) -> Any:
        gradient = jax.grad(lambda p: jnp.mean(whole.losses(p, tokens)))(params)
        return jax.tree.map(lambda x, g: x - RATE * g, params, gradient)

    return lambda params: jax.tree.map(jnp.array, params), step


METHODS: dict[str, Callable[[ChunkedDecoder], Method]] = {
    "mezo, streamed": ours(zeroth_order.spsa, streamed=True),
    "mezo, tree-wise": ours(zeroth_order.spsa, streamed=False),
    "jax.random port": port,
    "forward gradient": ours(zeroth_order.forward_gradient, streamed=True),
    "SGD": sgd,
}


def forwards(model: ChunkedDecoder, params: Any, tokens: jax.Array) -> Candidate:
    """The mean losses of so many batches, which the parameters are only read for."""

    def step(carry: jax.Array, inputs: Any) -> jax.Array:
        params, batches = inputs
        return carry + jax.lax.map(lambda batch: jnp.mean(model.losses(params, batch)), batches)

    return Candidate(step, jnp.zeros(len(tokens)), (params, tokens))


@functools.cache
def drawn(model: ChunkedDecoder) -> Any:
    """One for all candidates, each of which copies what it changes."""
    return model.init(jax.random.key(0))


def candidate(model: ChunkedDecoder, name: str, count: int) -> Candidate:
    """One method on so many tokens."""
    params, length = drawn(model), min(count, LENGTH)
    shape = (2, count // length, length + 1)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, model.vocabulary)
    if name == REFERENCE:
        found = forwards(model, params, tokens)
    else:
        init, step = METHODS[name](model)
        found = Candidate(step, init(params), tokens[0])
    used, forward = (
        compile_candidate(x).facts["temporary_bytes"]
        for x in (found, forwards(model, params, tokens[:1]))
    )
    jax.clear_caches()  # else the harness would find the program in them, compiled in no time
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    findings = {
        "temporaries over a forward's": f"{used / forward:.2f}",
        "over the parameters": f"{used / size:.2f}",
    }
    return found._replace(findings=findings)


def candidates(quick: bool) -> Comparison:
    """`quick` takes two narrow layers and 16 tokens."""
    model = ChunkedDecoder(2, 16, 32, 2, 64, 16) if quick else ChunkedDecoder()
    builders: dict[str, Callable[[], Candidate]] = {}
    references = {}
    for count in (16,) if quick else (128, 512, 2048):
        for name in (REFERENCE, *METHODS):
            label = f"{count}: {name}"
            builders[label] = functools.partial(candidate, model, name, count)
            references[label] = f"{count}: {REFERENCE}"
    return Comparison(candidates=builders, reference=references, ideal_bytes=None)
