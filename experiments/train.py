"""The train loop: one jitted step, driven by two integers."""

import contextlib
import functools
import math
import pathlib
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optim
from experiments.checkpoints import Checkpoints, Counters
from experiments.config import Config, UserError
from experiments.curvature import build_curvature
from experiments.emphasis import build_emphasis
from experiments.mesh import check_batch, make_mesh, place_batch, state_sharding
from experiments.optimizers import build_optimizer
from experiments.records import Records
from experiments.tasks.task import Task

STEPS_IN_FLIGHT = 2  # dispatched before the metrics of an older step are read


class TrainState(NamedTuple):
    step: jax.Array  # (), int32, updates made
    params: Any
    optimizer: Any  # the transformation's state
    key: jax.Array  # (), typed key of the run; a step uses fold_in(key, step)


class Program(NamedTuple):
    """What a config compiles to on a mesh: enough to run it, or only to compile it."""

    task: Task
    schedule: optax.Schedule
    init: Callable[[jax.Array], TrainState]  # jitted
    step: Callable[
        [TrainState, Any], tuple[TrainState, dict[str, jax.Array]]
    ]  # jitted, state donated
    serve: Callable[[TrainState], Any]  # jitted: the parameters to evaluate
    target: TrainState  # of jax.ShapeDtypeStruct with shardings


class Outcome(NamedTuple):
    """What a finished run leaves in memory."""

    state: TrainState
    evaluation_params: Any
    metrics: dict[str, float]  # of the last evaluation
    task: Task


def build_program(config: Config, mesh: jax.sharding.Mesh) -> Program:
    """The task, the optimizer and the jitted functions of a run; allocates no parameter."""
    try:
        task = config.task.build()
    except (ValueError, OSError) as error:
        raise UserError(f"config.task: {error}") from error
    shapes = jax.eval_shape(task.init, jax.random.key(config.seed))
    tx, schedule = build_optimizer(config.optimizer, config.steps, shapes)
    if config.on_nonfinite == "skip":
        tx = optim.keep_if_finite(tx)

    def init(key: jax.Array) -> TrainState:
        init_key, run_key = jax.random.split(key)
        params = task.init(init_key)
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), run_key)

    try:
        abstract = jax.eval_shape(init, jax.random.key(config.seed))
    except (TypeError, ValueError) as error:
        raise UserError(f"config.optimizer ({config.optimizer.name}): {error}") from error
    shardings = state_sharding(abstract, mesh, config.mesh)
    return Program(
        task=task,
        schedule=schedule,
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(
            make_train_step(task, tx, config), donate_argnums=0, out_shardings=(shardings, None)
        ),
        serve=jax.jit(lambda state: optim.evaluation_params(state.optimizer, state.params)),
        target=jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
        ),
    )


def make_train_step(
    task: Task, tx: optax.GradientTransformationExtraArgs, config: Config
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """(state, batch) -> (next state, scalar metrics)."""
    loss_at = build_emphasis(config.emphasis, config, task) if config.emphasis else None
    estimate = None
    if config.optimizer.curvature:
        estimator = build_curvature(config.optimizer.curvature, task)
        estimate = mean_over_micro_batches(estimator, config.accumulation)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        loss_key, update_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        loss_fn = loss_at(state.step) if loss_at else task.loss
        gradient = mean_over_micro_batches(
            jax.value_and_grad(loss_fn, has_aux=True), config.accumulation
        )
        (loss, metrics), grads = gradient(state.params, batch, loss_key)
        # A loss that is not finite may still have finite gradients; they mean nothing.
        grads = jax.tree.map(lambda g: jnp.where(jnp.isfinite(loss), g, jnp.nan), grads)
        calls: dict[str, Any] = {"grad_fn": lambda params: gradient(params, batch, loss_key)[1]}
        if estimate:
            calls["curvature_fn"] = lambda params, key: estimate(params, batch, key)
        try:
            updates, optimizer = tx.update(
                grads, state.optimizer, state.params, value=loss, key=update_key, **calls
            )
        except ValueError as error:
            named = f"{config.optimizer.name}, curvature = {config.optimizer.curvature}"
            raise UserError(f"config.optimizer ({named}): {error}") from error
        params = optim.apply_updates(state.params, updates)
        metrics = {**metrics, "loss": loss, "gradient_norm": optax.tree.norm(grads)}
        if config.on_nonfinite == "skip":
            metrics["skipped_in_a_row"] = optimizer.consecutive
        return TrainState(state.step + 1, params, optimizer, state.key), metrics

    return train_step


def mean_over_micro_batches(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """`function(params, batch, key)` averaged over `count` equal parts of the batch, one at a time.

    Part i takes the samples i, i + count, ...: each device then holds its share of every part, and
    cutting the batch moves nothing between devices.
    """
    if count == 1:
        return function

    def averaged(params: Any, batch: Any, key: jax.Array) -> Any:
        parts = jax.tree.map(
            lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch
        )

        def add(total: Any, part: Any) -> tuple[Any, None]:
            index, samples = part
            result = function(params, samples, jax.random.fold_in(key, index))
            return jax.tree.map(lambda t, r: t + r / count, total, result), None

        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, params, first, key)
        )
        return jax.lax.scan(add, zeros, (jnp.arange(count), parts))[0]

    return averaged


def train(config: Config, workdir: pathlib.Path, records: Records) -> Outcome:
    """Train, or go on with, the run that `workdir` holds.

    Raises:
        UserError: the config cannot be run, or the loss stopped being finite.
    """
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))  # where a matrix method looks for its mesh_axis
        program = build_program(config, mesh)
        checkpoints = Checkpoints(workdir / "checkpoints", config.keep_checkpoints)
        stack.callback(checkpoints.close)
        found = checkpoints.restore(program.target, records.say)
        state, counters = found or (program.init(jax.random.key(config.seed)), Counters())
        records.begin(config, program.task.facts, program.target, counters.step)
        return _loop(config, mesh, program, state, counters, checkpoints, records)


def _loop(
    config: Config,
    mesh: jax.sharding.Mesh,
    program: Program,
    state: TrainState,
    counters: Counters,
    checkpoints: Checkpoints,
    records: Records,
) -> Outcome:
    task = program.task
    place = functools.partial(place_batch, mesh=mesh)
    in_flight: deque[tuple[int, dict[str, jax.Array]]] = deque()

    def read_metrics(leave: int) -> None:
        while len(in_flight) > leave:
            step, values = in_flight.popleft()
            host = {name: float(value) for name, value in jax.device_get(values).items()}
            check_finite(config, checkpoints, step, host)
            records.step(step, host, program.schedule)

    metrics: dict[str, float] = {}
    while counters.step < config.steps:
        batch = task.batches(config.seed, counters.samples, config.batch_size)
        state, values = program.step(state, place(batch))
        counters = Counters(counters.step + 1, counters.samples + config.batch_size)
        in_flight.append((counters.step, values))
        last = counters.step == config.steps
        evaluating = last or counters.step % config.evaluate_every == 0
        saving = last or counters.step % config.checkpoint_every == 0
        read_metrics(leave=0 if evaluating or saving else STEPS_IN_FLIGHT)
        if evaluating:
            metrics = task.evaluate(program.serve(state), place)
        if saving:
            checkpoints.save(
                state, counters, metrics[task.facts["primary"]] if evaluating else None
            )
        if evaluating:
            records.evaluation(counters.step, metrics)
    served = program.serve(state)
    return Outcome(state, served, metrics or task.evaluate(served, place), task)


def check_finite(
    config: Config, checkpoints: Checkpoints, step: int, metrics: dict[str, float]
) -> None:
    """Raise UserError where a run must stop: at once, or after too many skipped steps in a row."""
    if config.on_nonfinite == "skip":
        if metrics["skipped_in_a_row"] < config.nonfinite_limit:
            return
        what = f"{config.nonfinite_limit} steps in a row were not finite and were skipped"
        advice = "a lower learning rate or config.optimizer.clip_norm may help"
    else:
        if math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"]):
            return
        what = f"the loss is {metrics['loss']} and the gradient norm {metrics['gradient_norm']}"
        advice = "--config.on_nonfinite=skip leaves such steps out"
    good = checkpoints.latest()
    kept = (
        "there is no checkpoint yet" if good is None else f"the last good checkpoint is step {good}"
    )
    raise UserError(f"stopped at step {step}: {what}; {kept} ({checkpoints.directory}); {advice}.")
