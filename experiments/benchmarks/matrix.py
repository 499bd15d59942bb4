"""Muon: one whole float32 step of optim.muon and optax.contrib.muon on a decoder's matrices.

The decoder has 12 layers of width 512 (38 M parameters), as a list of layers and as stacked ones;
24 and 48 layers are compiled, not run. Both do Keller Jordan's five iterations in float32; optax's
momentum is bias-corrected, which costs nothing. Candidates:

    optim             optim.muon as it is
    optim, gram       form="gram", symmetric products by blocks
    optax             optax.contrib.muon as it is: the iterations are unrolled
    optax, 5 rows     the same coefficients given as five rows, which makes optax scan over them
    loop over leaves  optim's iteration, a leaf at a time

The polynomials' multiplications are the limit here, not memory traffic, so none is quoted.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim
from experiments.benchmarks.harness import Candidate, Comparison
from optim.matrix.muon import SCALES
from optim.solvers.newton_schulz import STANDARD, newton_schulz

RATE = 1e-3
ROUNDS = 5


def shapes(width: int) -> dict[str, tuple[int, int]]:
    """A layer's matrices, (in, out)."""
    square = {name: (width, width) for name in ("query", "key", "value", "out")}
    return {**square, "up": (width, 4 * width), "down": (4 * width, width)}


def tree(width: int, layers: int, stacked: bool) -> Any:
    """Abstract parameters: a list of layers, or each kind of matrix stacked."""

    def leaf(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    layer = shapes(width)
    if stacked:
        return {name: leaf((layers, *shape)) for name, shape in layer.items()}
    return [{name: leaf(shape) for name, shape in layer.items()} for _ in range(layers)]


def loop_over_leaves(stacked: bool) -> optax.GradientTransformation:
    """Muon as one writes it down: each leaf by itself, stacked layers as a batch."""

    def direction(momentum: jax.Array, gradient: jax.Array) -> jax.Array:
        ahead = 0.95 * momentum + 0.05 * gradient
        return SCALES["keller"](*ahead.shape[-2:]) * newton_schulz(ahead)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        state = jax.tree.map(lambda m, g: 0.95 * m + 0.05 * g, state, updates)
        return jax.tree.map(lambda m, g: -RATE * direction(m, g), state, updates), state

    return optax.GradientTransformation(optax.tree.zeros_like, update)


def optax_muon(stacked: bool, coefficients: Any) -> optax.GradientTransformation:
    """optax's, told which axes are rows and columns."""
    numbers = optax.contrib.MuonDimensionNumbers(*((1, 2) if stacked else (0, 1)))
    return optax.contrib.muon(
        RATE,
        ns_coeffs=coefficients,
        eps=1e-7,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: numbers, params),
    )


def our_muon(stacked: bool, **arguments: Any) -> optax.GradientTransformation:
    """Ours, in float32."""
    layout = "b m n" if stacked else "m n"
    return optim.muon(RATE, matrices={".*": layout}, dtype=jnp.float32, **arguments)


METHODS: Mapping[str, Callable[[bool], optax.GradientTransformation]] = {
    "optim": our_muon,
    "optim, gram": functools.partial(our_muon, form="gram", levels=1),
    "optax": functools.partial(optax_muon, coefficients=STANDARD[0]),
    "optax, 5 rows": functools.partial(optax_muon, coefficients=tuple(STANDARD)),
    "loop over leaves": loop_over_leaves,
}


@functools.cache
def gradient(width: int, layers: int, stacked: bool) -> Any:
    """One for all candidates, which only read it."""
    leaves, structure = jax.tree.flatten(tree(width, layers, stacked))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def candidate(
    name: str, width: int, layers: int, stacked: bool, abstract: bool = False
) -> Candidate:
    """A donated (parameters, state) that one method steps along a fixed gradient."""
    method = METHODS[name](stacked)
    params = tree(width, layers, stacked)

    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = method.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def start() -> Any:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
        return zeros, method.init(zeros)

    if abstract:
        return Candidate(step, jax.eval_shape(start), params)
    return Candidate(step, start(), gradient(width, layers, stacked))


def named(
    methods: Iterable[str], width: int, depths: tuple[int, ...], abstract: bool
) -> dict[str, Callable[[], Candidate]]:
    """Each method at each depth, on both kinds of trees."""
    return {
        f"{layers} {'stacked' if stacked else 'listed'}: {name}": functools.partial(
            candidate, name, width, layers, stacked, abstract
        )
        for layers in depths
        for stacked in (False, True)
        for name in methods
    }


def candidates(quick: bool) -> Comparison:
    """All of it; `quick` takes one layer of width 32, and compiles two for one method."""
    width, timed, compiled = (32, 1, (2,)) if quick else (512, 12, (24, 48))
    return Comparison(
        candidates=named(METHODS, width, (timed,), abstract=False),
        reference=f"{timed} listed: optax",
        ideal_bytes=None,
        most_repeats=ROUNDS,
        compiled_only=named(["optim"] if quick else METHODS, width, compiled, abstract=True),
    )
