"""The promises, each a function of a row that raises AssertionError where one is broken."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import optim

from .harness import (
    KERNEL,
    RATE,
    Row,
    assert_close,
    assert_finite,
    compiled,
    gradients,
    parameters,
    scan,
    structure,
    trajectory,
)

Check = Callable[[Row], None]


@contextlib.contextmanager
def told(row: Row, what: str) -> Iterator[None]:
    """Whatever stops a run breaks the promise."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{row.name}: {what}: {type(error).__name__}: {error}") from error


def aval(leaf: Any) -> tuple[Any, ...]:
    """What a compiled step is specialised to."""
    return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)


def assert_same_avals(ours: Any, expected: Any, what: str) -> None:
    """Structures, shapes, dtypes and weak types agree."""
    assert structure(ours) == structure(expected), f"{what}: structures differ"
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected)):
        name = jax.tree_util.keystr(path)
        assert aval(a) == aval(b), f"{what}: {name} is {aval(a)} and not {aval(b)}"


def abstract_step(row: Row, params: Any) -> tuple[Any, Any, Any]:
    """Shapes of the first state, the next one and the updates, without a compilation."""
    transformation = row.make(RATE)
    first = jax.eval_shape(transformation.init, params)
    gradient = jax.tree.map(lambda p: jnp.ones_like(p), params)
    with told(row, "update"):
        updates, second = jax.eval_shape(
            lambda g, s, p: row.update(transformation, g, s, p, jnp.int32(0)),
            gradient,
            first,
            params,
        )
    return first, second, updates


def assert_dtypes(row: Row, params: Any, expected: Any) -> Any:
    """Nothing drifts, and updates have the expected dtype; returns the shapes of the state."""
    first, second, updates = abstract_step(row, params)
    assert_same_avals(second, first, f"{row.name}: the state after a step")
    wanted = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, expected), params)
    assert_same_avals(updates, wanted, f"{row.name}: the updates")
    return first


def constant(row: Row) -> None:
    """Structure, shapes, dtypes and weak types of the state never change, with x64 on or off."""
    assert_dtypes(row, parameters(), jnp.float32)
    with jax.enable_x64(True):
        assert_dtypes(row, parameters(), jnp.float32)


def bfloat16(row: Row) -> None:
    """bfloat16 parameters: state, arithmetic and updates in float32, written as bfloat16."""
    params = parameters(jnp.bfloat16)
    state = assert_dtypes(row, params, jnp.float32)
    for path, leaf in jax.tree.leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        assert leaf.dtype != jnp.bfloat16, f"{row.name}: {name} of the state is bfloat16"
    transformation = optax.with_extra_args_support(row.make(RATE))

    def first_update(params: Any, gradient: Any, extras: Any) -> Any:
        # A compiled step may keep more digits than the dtypes say, and hide what is lost.
        with jax.disable_jit():
            return transformation.update(gradient, transformation.init(params), params, **extras)[0]

    def widen(leaf: Any) -> Any:
        return leaf.astype(jnp.float32) if getattr(leaf, "dtype", None) == jnp.bfloat16 else leaf

    gradient = jax.tree.map(lambda g: g[0], gradients(params, steps=1))
    updates = first_update(params, gradient, row.extras(params, gradient, jnp.int32(0)))
    wide = jax.tree.map(widen, (params, gradient, row.extras(params, gradient, jnp.int32(0))))
    zero = jax.tree.map(jnp.zeros_like, wide[0])
    what = f"{row.name}: the update of bfloat16 parameters"
    assert_close(updates, first_update(*wide), zero, what)
    written = jax.eval_shape(optim.apply_updates, params, updates)
    assert_same_avals(written, params, f"{row.name}: the written parameters")


def float64(row: Row) -> None:
    """float64 parameters: state and updates in float64."""
    with jax.enable_x64(True):
        state = assert_dtypes(row, parameters(jnp.float64), jnp.float64)
        for path, leaf in jax.tree.leaves_with_path(state):
            name = jax.tree_util.keystr(path)
            assert leaf.dtype != jnp.float32, f"{row.name}: {name} of the state is float32"


def strict_promotion(row: Row) -> None:
    """No two dtypes meet without a cast, at any width of the parameters."""
    with jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.float32, jnp.bfloat16):
            abstract_step(row, parameters(dtype))


def donated_first_step(row: Row) -> None:
    """The first state shares no memory with the parameters."""
    aliases = compiled(row).aliases
    assert not aliases, f"{row.name}: {aliases} of the first state are parameters"


def no_retrace(row: Row) -> None:
    """The second call, on the results of the first, finds the first one's program."""
    traces = compiled(row).traces
    assert traces == 1, f"{row.name}: traced {traces} times in three calls"


def finite(row: Row) -> None:
    """Numbers stay numbers, on zero gradients of zero parameters, too."""
    runs = compiled(row)
    assert_finite(runs.second, row.name)
    assert_finite(runs.zeros, f"{row.name} on zeros")


def jit_equals_no_jit(row: Row) -> None:
    """Python runs once a step or once a trace, the numbers are the same."""
    params = parameters()
    with told(row, "without jit"), jax.disable_jit():
        transformation = row.make(RATE)
        eager = scan(row, transformation, params, transformation.init(params), gradients(params))
    run = compiled(row).first
    assert_close(eager.trajectory, run.trajectory, params, f"{row.name}: without jit")


def vmap_over_rates(row: Row) -> None:
    """A batch of learning rates equals a loop over them."""
    params = parameters()
    stacked = gradients(params)

    def run(rate: jax.Array) -> Any:
        transformation = row.make(rate)
        return scan(row, transformation, params, transformation.init(params), stacked).trajectory

    rates = jnp.array([RATE, RATE / 4])
    with told(row, "vmap"):
        batched = jax.jit(jax.vmap(run))(rates)
        alone = jax.jit(run)
        for index, rate in enumerate(rates):
            ours = jax.tree.map(lambda x, index=index: x[index], batched)
            assert_close(ours, alone(rate), params, f"{row.name}: vmap over learning rates")
    first = jax.tree.map(lambda x: x[0], batched)
    assert_close(first, compiled(row).first.trajectory, params, f"{row.name}: a traced rate")


def none_gradients(row: Row) -> None:
    """A parameter whose gradient is None stays where it is."""
    params = parameters()
    stacked = gradients(params)
    stacked["dense"]["bias"] = None
    with told(row, "a gradient that is None"):
        moved = trajectory(row, row.make(RATE), params, stacked)
    bias = np.asarray(params["dense"]["bias"])
    assert (moved["dense"]["bias"] == bias).all(), f"{row.name}: moved without a gradient"
    assert (moved["dense"]["kernel"] != params["dense"]["kernel"]).any(), f"{row.name}: stands"


def integer_leaves(row: Row) -> None:
    """An integer parameter, whose gradient is float0, stays what it is."""
    params = parameters()
    params["steps"] = jnp.array([1, -7, 100])

    def loss(params: Any) -> jax.Array:
        floats = [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum((jnp.sum(jnp.square(x)) for x in floats), start=jnp.zeros(()))

    @jax.jit
    def step(params: Any) -> Any:
        transformation = row.make(RATE)
        gradient = jax.grad(loss, allow_int=True)(params)
        state = transformation.init(params)
        updates, _ = row.update(transformation, gradient, state, params, jnp.int32(0))
        return optim.apply_updates(params, updates)

    with told(row, "an integer parameter"):
        moved = step(params)
    assert_same_avals(moved, params, f"{row.name}: the parameters after a step")
    assert (moved["steps"] == params["steps"]).all(), f"{row.name}: moved to {moved['steps']}"


def without_bias(tree: Any) -> Any:
    """The tree with None in place of the bias: the part that masks and labels leave."""
    return {**tree, "dense": {**tree["dense"], "bias": None}}


def masked(row: Row) -> None:
    """Under `optax.masked`, the chosen leaves move as they do alone; others pass unchanged."""
    params = parameters()
    stacked = gradients(params)
    mask = jax.tree.map(lambda _: True, params)
    mask["dense"]["bias"] = False
    with told(row, "optax.masked"):
        inner = optax.masked(row.make(RATE), mask, mask_compatible_extra_args=True)
        ours = trajectory(row, inner, params, stacked)
    alone = trajectory(row, row.make(RATE), without_bias(params), without_bias(stacked))
    assert_close(without_bias(ours), alone, without_bias(params), f"{row.name}: masked")
    passed = params["dense"]["bias"] + jnp.cumsum(stacked["dense"]["bias"], axis=0)
    bias = ours["dense"]["bias"]
    assert_close(bias, passed, params["dense"]["bias"], f"{row.name}: what the mask leaves out")


def partition(row: Row) -> None:
    """Under `optax.partition`, a group moves as it does alone and a frozen one does not."""
    params = parameters()
    stacked = gradients(params)
    labels = jax.tree.map(lambda _: "trained", params)
    labels["dense"]["bias"] = "frozen"
    with told(row, "optax.partition"):
        groups = {"trained": row.make(RATE), "frozen": optax.set_to_zero()}
        inner = optax.partition(groups, labels, mask_compatible_extra_args=True)
        ours = trajectory(row, inner, params, stacked)
    alone = trajectory(row, row.make(RATE), without_bias(params), without_bias(stacked))
    assert_close(without_bias(ours), alone, without_bias(params), f"{row.name}: partition")
    assert (ours["dense"]["bias"] == params["dense"]["bias"]).all(), f"{row.name}: frozen moved"


def inject_hyperparams(row: Row) -> None:
    """A learning rate that lives in the state gives the same run."""
    params = parameters()
    with told(row, "optim.inject_hyperparams"):
        transformation = optim.inject_hyperparams(lambda learning_rate: row.make(learning_rate))(
            learning_rate=RATE
        )
        ours = trajectory(row, transformation, params, gradients(params))
    expected = compiled(row).first.trajectory
    assert_close(ours, expected, params, f"{row.name}: inject_hyperparams")


def multi_steps(row: Row) -> None:
    """`optax.MultiSteps` over pairs of equal gradients makes the same steps."""
    params = parameters()
    stacked = gradients(params)
    twice = jax.tree.map(lambda g: jnp.repeat(g, 2, axis=0), stacked)
    halved = Row(row.name, row.make, lambda p, g, step: row.extras(p, g, step // 2))
    with told(row, "optax.MultiSteps"):
        steps = optax.MultiSteps(row.make(RATE), 2)
        transformation = optax.GradientTransformationExtraArgs(steps.init, steps.update)
        ours = trajectory(halved, transformation, params, twice)
    after_pairs = jax.tree.map(lambda x: x[1::2], ours)
    assert_close(after_pairs, compiled(row).first.trajectory, params, f"{row.name}: MultiSteps")


def unknown_extra_args(row: Row) -> None:
    """An argument for another link of the chain is let through."""
    transformation = row.make(RATE)
    params = parameters()
    with told(row, "an unknown extra argument"):
        jax.eval_shape(
            lambda g, s, p: transformation.update(
                g, s, p, **row.extras(p, g, jnp.int32(0)), meant_for_another=jnp.ones(())
            ),
            params,
            jax.eval_shape(transformation.init, params),
            params,
        )


def orbax_round_trip(row: Row) -> None:
    """A state comes back from a checkpoint as it was."""
    # orbax saves no array without elements.
    state = jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if leaf.size else None, compiled(row).second.state
    )
    with told(row, "orbax"), tempfile.TemporaryDirectory() as folder:
        saved = pathlib.Path(folder) / "state"
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(saved, {"state": state})
            checkpointer.wait_until_finished()
            target = jax.tree.map(ocp.utils.to_shape_dtype_struct, {"state": state})
            restored = checkpointer.restore(saved, target)["state"]
    assert_same_avals(restored, state, f"{row.name}: the restored state")
    for (path, a), b in zip(jax.tree.leaves_with_path(restored), jax.tree.leaves(state)):
        assert (a == b).all(), f"{row.name}: {jax.tree_util.keystr(path)} came back different"


def state_bytes(row: Row) -> None:
    """The state is as large as the paper says, but for a few counters."""
    if row.state_bytes is None:
        return
    params = {"kernel": jnp.zeros(KERNEL)}
    state = jax.eval_shape(row.make(RATE).init, params)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    expected = row.state_bytes * params["kernel"].size
    assert expected <= held <= expected + 64, f"{row.name}: {held} bytes, the paper's {expected}"


CHECKS: tuple[Check, ...] = (
    constant,
    bfloat16,
    float64,
    strict_promotion,
    donated_first_step,
    no_retrace,
    finite,
    jit_equals_no_jit,
    vmap_over_rates,
    none_gradients,
    integer_leaves,
    masked,
    partition,
    inject_hyperparams,
    multi_steps,
    unknown_extra_args,
    orbax_round_trip,
    state_bytes,
)
