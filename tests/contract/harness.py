"""Small trees, and runs of a transformation over them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim

RATE = 0.05
STEPS = 3


def no_extras(params: Any, gradients: Any, step: jax.Array) -> dict[str, Any]:
    """What a transformation needs that consumes gradients alone."""
    del params, gradients, step
    return {}


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A transformation of the table."""

    name: str  # as in optim, or a description
    make: Callable[[Any], optax.GradientTransformation]  # from the learning rate, maybe traced
    extras: Callable[[Any, Any, jax.Array], dict[str, Any]] = no_extras  # the arguments of a step
    # What the paper counts, in bytes a float32 parameter of a KERNEL; None where it does not.
    state_bytes: float | None = None
    waive: Mapping[str, str] = dataclasses.field(default_factory=dict)  # check -> why it fails

    def update(
        self, transformation: Any, gradients: Any, state: Any, params: Any, step: jax.Array
    ) -> tuple[Any, Any]:
        """One update with the extra arguments of the row."""
        update = optax.with_extra_args_support(transformation).update
        return update(gradients, state, params, **self.extras(params, gradients, step))


KERNEL = (256, 128)


def parameters(dtype: Any = jnp.float32) -> dict[str, Any]:
    """A matrix, a vector, a scalar, an empty leaf and None."""
    keys = iter(jax.random.split(jax.random.key(1), 3))
    return {
        "dense": {
            "kernel": jax.random.normal(next(keys), (8, 6)).astype(dtype),
            "bias": jax.random.normal(next(keys), (6,)).astype(dtype),
        },
        "scale": jax.random.normal(next(keys), ()).astype(dtype),
        "empty": jnp.zeros((0, 6), dtype),
        "absent": None,
    }


def gradients(params: Any, steps: int = STEPS) -> Any:
    """A gradient for each step, stacked, of the dtypes of the parameters."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    drawn = [
        jax.random.normal(key, (steps, *leaf.shape)).astype(leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, drawn)


class Run(NamedTuple):
    """What a scan over the steps leaves behind."""

    params: Any
    state: Any
    trajectory: Any  # the parameters after each step, stacked


def scan(row: Row, transformation: Any, params: Any, state: Any, stacked: Any) -> Run:
    """The steps, in a `lax.scan`, from a state that `init` made."""

    def step(carry: Any, inputs: Any) -> Any:
        params, state = carry
        gradient, count = inputs
        updates, state = row.update(transformation, gradient, state, params, count)
        params = optim.apply_updates(params, updates)
        return (params, state), params

    inputs = (stacked, jnp.arange(len(jax.tree.leaves(stacked)[0])))
    (params, state), trajectory = jax.lax.scan(step, (params, state), inputs)
    return Run(params, state, trajectory)


def trajectory(row: Row, transformation: Any, params: Any, stacked: Any) -> Any:
    """Parameters after each step, compiled, the init included."""

    @jax.jit
    def run(params: Any, stacked: Any) -> Any:
        return scan(row, transformation, params, transformation.init(params), stacked).trajectory

    return run(params, stacked)


class Compiled(NamedTuple):
    """One compiled scan of a row, run twice in a row and once on zeros."""

    aliases: list[str]  # leaves of the first state that are a parameter's buffer
    first: Run
    second: Run  # goes on where the first ended
    zeros: Run  # zero parameters, zero gradients
    traces: int


@functools.cache
def compiled(row: Row) -> Compiled:
    """The scan that most checks look at; parameters and state are donated from the first call."""
    traces = 0
    transformation = row.make(RATE)

    def run(params: Any, state: Any, stacked: Any) -> Run:
        nonlocal traces
        traces += 1
        return scan(row, transformation, params, state, stacked)

    def start(params: Any) -> Any:
        state = transformation.init(params)
        if aliased(params, state):  # told by one check; donated twice, it would fail in all
            state = jax.tree.map(jnp.copy, state)
        return params, state

    donating = jax.jit(run, donate_argnums=(0, 1))
    params = parameters()
    stacked = gradients(params)
    aliases = aliased(params, transformation.init(params))
    first = jax.device_get(result := donating(*start(params), stacked))
    # Copies, since the next call takes the buffers back.
    second = jax.device_get(donating(result.params, result.state, stacked))
    zero = jax.tree.map(jnp.zeros_like, parameters())
    zeros = donating(*start(zero), jax.tree.map(jnp.zeros_like, stacked))
    return Compiled(aliases, first, second, jax.device_get(zeros), traces)


def aliased(params: Any, state: Any) -> list[str]:
    """Paths of the leaves of a state that lie in the memory of a parameter."""
    taken = {pointer for leaf in jax.tree.leaves(params) for pointer in pointers(leaf)}
    return [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree.leaves_with_path(state)
        if taken & pointers(leaf)
    ]


def pointers(leaf: Any) -> set[int]:
    """Addresses of the buffers of an array that has any elements."""
    if not isinstance(leaf, jax.Array) or leaf.size == 0:
        return set()
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return {shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards}


def structure(tree: Any) -> Any:
    """How the leaves hang together."""
    return jax.tree.structure(tree)


def assert_close(ours: Any, expected: Any, start: Any, what: str) -> None:
    """Trajectories agree to a few roundings of the parameters or of their movement."""
    assert structure(ours) == structure(expected), f"{what}: structures differ"
    for (path, a), b, p in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), jax.tree.leaves(start)
    ):
        a, b, p = (np.asarray(x, np.float64) for x in (a, b, p))
        movement = np.abs(b - p).max(initial=0)
        allowed = 1e-5 * movement + 4 * np.finfo(np.float32).eps * np.abs(b).max(initial=0)
        error = np.abs(a - b).max(initial=0)
        name = jax.tree_util.keystr(path)
        assert error <= allowed, f"{what}: {name} differs by {error:.1e} after {movement:.1e}"


def assert_finite(tree: Any, what: str) -> None:
    """No leaf of floats holds nan or an infinity."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            assert np.isfinite(leaf).all(), f"{what}: {jax.tree_util.keystr(path)} is not finite"
