"""Replays a recording through our code and measures how far the two are apart."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim

from .recording import Recording


class Pair(NamedTuple):
    """One leaf: our values and the recorded ones."""

    ours: np.ndarray  # (steps, ...) after each step
    recorded: np.ndarray  # (steps, ...)
    start: np.ndarray  # (...) where the movement is measured from


class Outcome(NamedTuple):
    """The errors of a replay, relative to the movement of each leaf."""

    error: float  # the largest over leaves and steps; nan counts as the largest of all
    leaf: str  # where it is
    first: int | None  # 0-based first step of any leaf beyond the tolerance
    passed: bool


class AdapterError(Exception):
    """A recording that an adapter does not know how to replay; one sentence."""


# What an adapter is: whoever needs more than gradients (sampled inputs `in/...`, a loss, tables
# `out/...`) writes one as a function; `open_loop` makes one out of a transformation's constructor.
Adapter = Callable[[Recording, Any], Mapping[str, Pair]]


# The curvature estimates of all steps, (steps, ...) by leaf.
Curvatures = Callable[[Recording, Any], Mapping[str, Any]]


def open_loop(
    build: Callable[..., optax.GradientTransformation], curvatures: Curvatures | None = None
) -> Adapter:
    """An adapter that feeds the recorded gradients to `build(**hyper)` from the recorded start.

    The parameters of `build` are the official constructor's arguments; a hyper-parameter that it
    does not name is an error. Where averages `x/` are recorded, what the method serves for
    evaluation is compared with them. `curvatures` is what `optim.with_curvature` estimates, each
    step's, which it asks for or not.
    """

    def adapter(recording: Recording, dtype: Any) -> Mapping[str, Pair]:
        transformation = optax.with_extra_args_support(call(build, recording))
        gradients = recording.tree("g", dtype)
        if recording.final is None or not gradients:
            raise AdapterError(f"{recording.stem} records no gradients and parameters to compare.")

        estimates = curvatures(recording, dtype) if curvatures else None

        @jax.jit
        def run(params: Any, inputs: Any) -> Any:
            def step(carry: Any, inputs: Any) -> Any:
                params, state = carry
                gradient, estimate = inputs
                extras = {"curvature_fn": lambda params, key: estimate, "key": 0}
                updates, state = transformation.update(
                    gradient, state, params, **(extras if curvatures else {})
                )
                params = optim.apply_updates(params, updates)
                return (params, state), (params, optim.evaluation_params(state, params))

            return jax.lax.scan(step, (params, transformation.init(params)), inputs)[1]

        start = recording.tree("p0", dtype)
        ours, served = run(jax.tree.map(jnp.asarray, start), (gradients, estimates))
        recorded = recording.tree(recording.final)
        pairs = {leaf: Pair(np.asarray(ours[leaf]), recorded[leaf], start[leaf]) for leaf in start}
        for leaf, average in recording.tree("x").items():
            close = _unless_rounding(np.asarray(served[leaf]), average, recording)
            pairs[f"x/{leaf}"] = Pair(close, average, start[leaf])
        return pairs

    return adapter


def _unless_rounding(ours: np.ndarray, recorded: np.ndarray, recording: Recording) -> np.ndarray:
    """`ours`, or what a float32 run of the authors recorded where it may differ by its rounding.

    The meta says how far the parameters y of that run are from those in float64. The average is
    (y - (1 - b1) z) / b1; with z as exact as y it is 2 / b1 - 1 times as far, 3 times for b1 = 1/2,
    and is itself rounded.
    """
    if recorded.dtype != np.float32:
        return ours
    allowance = 4 * recording.meta.get("max_abs_f32_minus_f64", 0.0)
    return np.where(np.abs(ours - recorded) <= allowance, recorded, ours)


def step_by_step(build: Callable[..., optax.GradientTransformation]) -> Adapter:
    """`open_loop` for a recording in float32, whose parameters were rounded after every step.

    Each of our steps starts from the recorded parameters, so that roundings do not add up, and a
    recorded number stands for all that are nearest to it. Moments are our own from the start.
    """

    def adapter(recording: Recording, dtype: Any) -> Mapping[str, Pair]:
        transformation = optax.with_extra_args_support(call(build, recording))
        if recording.final is None:
            raise AdapterError(f"{recording.stem} records no parameters to compare.")
        start, recorded = recording.tree("p0", dtype), recording.tree(recording.final)
        before = {
            leaf: np.concatenate([start[leaf][None], recorded[leaf][:-1]]).astype(dtype)
            for leaf in start
        }

        @jax.jit
        def run(params: Any, steps: Any) -> Any:
            def step(state: Any, inputs: Any) -> Any:
                params, gradient = inputs
                updates, state = transformation.update(gradient, state, params)
                return state, optim.apply_updates(params, updates)

            return jax.lax.scan(step, transformation.init(params), steps)[1]

        ours = run(jax.tree.map(jnp.asarray, start), (before, recording.tree("g", dtype)))
        return {
            leaf: Pair(_unless_rounded(ours[leaf], p), p, start[leaf])
            for leaf, p in recorded.items()
        }

    return adapter


def _unless_rounded(ours: Any, recorded: np.ndarray) -> np.ndarray:
    """Ours, moved towards the recorded numbers by at most half of their spacing."""
    difference = np.asarray(ours, np.float64) - recorded
    half = np.spacing(np.abs(recorded)).astype(np.float64) / 2
    return recorded + np.sign(difference) * np.maximum(np.abs(difference) - half, 0)


def transposed(adapter: Adapter) -> Adapter:
    """`adapter` shown leaves in flax's layout, for methods to which rows and columns matter.

    torch's (out, in, *window) becomes (*window, in, out) in p0, g and the recorded parameters;
    the inputs `in/...` have layouts of their own and are left to the adapter.
    """

    def shown(recording: Recording, dtype: Any) -> dict[str, Pair]:
        ranks = {leaf: value.ndim for leaf, value in recording.tree("p0").items()}
        groups = {"p0": 0, "g": 1, recording.final: 1}  # number of leading time axes
        arrays = {
            key: flipped(value, groups[group], ranks[leaf]) if group in groups else value
            for key, value in recording.arrays.items()
            for group, _, leaf in [key.partition("/")]
        }
        return dict(adapter(dataclasses.replace(recording, arrays=arrays), dtype))

    return shown


def flipped(value: np.ndarray, leading: int, rank: int) -> np.ndarray:
    """torch's (out, in, *window) as (*window, in, out), behind `leading` axes."""
    if rank < 2:
        return value
    order = [*range(2, rank), 1, 0]
    return value.transpose([*range(leading), *(leading + axis for axis in order)])


def rules_of(layouts: Mapping[str, str | None]) -> dict[str, str | None]:
    """Layouts by the names of leaves, as rules for their paths."""
    return {re.escape(leaf): layout for leaf, layout in layouts.items()}


def call(build: Callable[..., Any], recording: Recording) -> Any:
    """`build(**hyper)`, or one sentence on the hyper-parameter that does not fit."""
    try:
        arguments = inspect.signature(build).bind(**recording.hyper)
    except TypeError as error:
        raise AdapterError(f"the adapter of {recording.name} is {error}.") from error
    return build(*arguments.args, **arguments.kwargs)


def replay(recording: Recording, adapter: Adapter, tolerance: float) -> Outcome:
    """Our float64 run against the recording."""
    with jax.enable_x64(True):
        return compare(adapter(recording, np.float64), tolerance)


def compare(pairs: Mapping[str, Pair], tolerance: float) -> Outcome:
    """Largest error of a leaf over all steps, divided by the largest movement of that leaf."""
    if not pairs:
        raise AdapterError("the adapter compared nothing.")
    errors = {leaf: _step_errors(leaf, pair) for leaf, pair in pairs.items()}
    # Written so that nan, which is neither smaller nor larger, is beyond every tolerance.
    wrong = [np.flatnonzero(~(steps <= tolerance)) for steps in errors.values()]
    first = min((int(steps[0]) for steps in wrong if steps.size), default=None)
    largest = {leaf: float(steps.max(initial=0.0)) for leaf, steps in errors.items()}
    leaf = max(largest, key=lambda leaf: np.inf if np.isnan(largest[leaf]) else largest[leaf])
    return Outcome(largest[leaf], leaf, first, first is None)


def _step_errors(leaf: str, pair: Pair) -> np.ndarray:
    if pair.ours.shape != pair.recorded.shape:
        raise AdapterError(f"leaf {leaf} has shape {pair.ours.shape}, not {pair.recorded.shape}.")
    recorded = pair.recorded.astype(np.float64)
    axes = tuple(range(1, recorded.ndim))
    difference = np.abs(pair.ours.astype(np.float64) - recorded).max(axis=axes, initial=0.0)
    movement = np.abs(recorded - pair.start).max(initial=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / movement)
