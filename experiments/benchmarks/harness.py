"""Compiles candidates ahead of time and times them interleaved in one process.

A round calls every candidate once, in an order drawn anew each round, so that drift of the machine
(frequency, neighbours, caches) falls on all alike. A candidate is a function
`(carry, inputs) -> carry`: the carry is donated and threaded from call to call, as a train step's
parameters and state are, and the inputs are only read. The physical limit is one more candidate of
the same rounds: an in-place `a + s b` that moves exactly the comparison's ideal bytes.

Quoted are medians with quartiles, the ratio of medians, and the median of the ratios within rounds,
which is the steadier of the two when the machine drifts.
"""

import functools
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LIMIT = "memory bandwidth"
AXPY_BYTES = 12  # an element of a + s b in place: a and b read, a written, float32


class Candidate(NamedTuple):
    """A function to be timed, with what it is called on."""

    step: Callable[[Any, Any], Any]  # (carry, inputs) -> carry of the same structure, traceable
    carry: Any  # pytree of arrays, donated
    inputs: Any  # pytree of arrays, kept
    findings: Mapping[str, Any] = {}  # what else is known of it, by column of the report


class Comparison(NamedTuple):
    """Candidates that do the same work, and what they are measured against."""

    candidates: Mapping[str, Callable[[], Candidate]]
    reference: str | Mapping[str, str]  # what the others are divided by, or what each one is
    ideal_bytes: int | None  # memory traffic that no implementation can avoid; None: no limit
    most_repeats: int | None = None  # rounds that are enough where one takes long; None: no limit
    # Too long to run: only what the compiler tells. Carry and inputs may be abstract.
    compiled_only: Mapping[str, Callable[[], Candidate]] = {}
    x64: bool = False  # whether float64 is enabled


class Compiled(NamedTuple):
    """A candidate after compilation, with what the compiler tells about it."""

    call: Callable[[Any, Any], Any]
    carry: Any
    inputs: Any
    facts: dict[str, Any]


def bandwidth(ideal_bytes: int) -> Candidate:
    """An in-place a + s b, with arrays so long that it moves `ideal_bytes`."""
    length = max(1, ideal_bytes // AXPY_BYTES)
    return Candidate(lambda a, b: 0.5 * a + b, jnp.zeros(length), jnp.ones(length))


def compile_candidate(candidate: Candidate) -> Compiled:
    """Compiles ahead of time and reads compile time, memory and cost from the compiler."""
    start = time.perf_counter()
    lowered = jax.jit(candidate.step, donate_argnums=0).lower(candidate.carry, candidate.inputs)
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    facts = {
        "compile_seconds": seconds,
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
        "argument_bytes": getattr(memory, "argument_size_in_bytes", None),
        "output_bytes": getattr(memory, "output_size_in_bytes", None),
        "donated_bytes": getattr(memory, "alias_size_in_bytes", None),
        "bytes_accessed": cost.get("bytes accessed"),
        "flops": cost.get("flops"),
    }
    if candidate.findings:
        facts["findings"] = dict(candidate.findings)
    return Compiled(compiled, candidate.carry, candidate.inputs, facts)


def time_interleaved(candidates: Mapping[str, Compiled], repeats: int) -> dict[str, np.ndarray]:
    """Seconds a call for each candidate, one sample a round; a first round is not counted."""
    carries = {name: candidate.carry for name, candidate in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order, shuffler = list(candidates), random.Random(0)
    for _ in range(repeats + 1):
        shuffler.shuffle(order)
        for name in order:
            start = time.perf_counter()
            carries[name] = candidates[name].call(carries[name], candidates[name].inputs)
            jax.block_until_ready(carries[name])
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(samples[1:]) for name, samples in seconds.items()}


def ratios(seconds: np.ndarray, peer: np.ndarray) -> dict[str, float]:
    """How much longer than the peer: of medians, and within rounds with quartiles."""
    lower, middle, upper = np.quantile(seconds / peer, [0.25, 0.5, 0.75])
    return {
        "of_medians": float(np.median(seconds) / np.median(peer)),
        "paired_median": float(middle),
        "paired_lower_quartile": float(lower),
        "paired_upper_quartile": float(upper),
    }


def compare(comparison: Comparison, repeats: int) -> dict[str, dict[str, Any]]:
    """Measures every candidate, and the limit where there is one, over `repeats` rounds.

    Returns a record for each: the compiler's facts, its findings, seconds (median, quartiles,
    samples), and under `ratio_to` its ratios to its reference and to the limit.
    """
    builders = dict(comparison.candidates)
    reference, limit = comparison.reference, comparison.ideal_bytes
    if limit is not None:
        builders[LIMIT] = functools.partial(bandwidth, limit)
    with jax.enable_x64(comparison.x64):
        compiled = {name: compile_candidate(build()) for name, build in builders.items()}
        seconds = time_interleaved(compiled, repeats)
    records = {}
    for name, samples in seconds.items():
        peer = reference if isinstance(reference, str) else reference.get(name, LIMIT)
        peers = [peer] if limit is None else [peer, LIMIT]
        records[name] = {
            **compiled[name].facts,
            "lower_quartile_seconds": float(np.quantile(samples, 0.25)),
            "median_seconds": float(np.median(samples)),
            "upper_quartile_seconds": float(np.quantile(samples, 0.75)),
            "peer": peer,
            "ratio_to": {peer: ratios(samples, seconds[peer]) for peer in peers},
            "seconds": samples.tolist(),
        }
    return records
