"""The train loop: one jitted step, driven by two integers."""

import contextlib
import dataclasses
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
from experiments.batch_growth import (
    finished,
    is_tested,
    next_batch_size,
    schedule_position,
    with_batch_size,
    with_test,
)
from experiments.checkpoints import Checkpoints, Counters
from experiments.config import Config, UserError
from experiments.curvature import build_curvature
from experiments.emphasis import build_emphasis
from experiments.mesh import check_batch, make_mesh, place_batch, state_sharding
from experiments.micro_batches import mean_over_micro_batches
from experiments.optimizers import build_optimizer, build_schedule
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
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]  # jitted, state donated
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

    def transformation(position: jax.Array | None) -> Any:
        tx, _ = build_optimizer(config.optimizer, config.steps, shapes, position)
        return optim.keep_if_finite(tx) if config.on_nonfinite == "skip" else tx

    def init(key: jax.Array) -> TrainState:
        init_key, run_key = jax.random.split(key)
        params = task.init(init_key)
        state = transformation(None).init(params)
        return TrainState(jnp.zeros((), jnp.int32), params, state, run_key)

    optimizer = config.optimizer
    try:
        abstract = jax.eval_shape(init, jax.random.key(config.seed))
    except (TypeError, ValueError) as error:
        raise UserError(f"config.optimizer ({optimizer.name}): {error}") from error
    shardings = state_sharding(abstract, mesh, config.mesh)
    return Program(
        task=task,
        schedule=build_schedule(optimizer.schedule, optimizer.learning_rate, config.steps),
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(
            make_train_step(task, transformation, config),
            donate_argnums=0,
            out_shardings=(shardings, None),
        ),
        serve=jax.jit(lambda state: optim.evaluation_params(state.optimizer, state.params)),
        target=jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
        ),
    )


def make_train_step(
    task: Task, transformation: Callable[[jax.Array | None], Any], config: Config
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """(state, batch) -> (next state, scalar metrics); where the batch grows, it takes a position.

    Args:
        task: whose loss is trained.
        transformation: the position in the learning rate's schedule, None for the transformation's
            own count, -> the transformation.
        config: of the run.
    """
    size = config.batch_size // config.accumulation
    loss_and_gradient = jax.value_and_grad(task.loss, has_aux=True)
    alike = mean_over_micro_batches(loss_and_gradient, size)
    tested = with_test(loss_and_gradient, alike, config) if config.batch_growth else None
    weighted = build_emphasis(config.emphasis, config, task) if config.emphasis else None
    estimate = None
    if config.optimizer.curvature:
        estimator = build_curvature(config.optimizer.curvature, task)
        estimate = mean_over_micro_batches(estimator, size)

    def train_step(
        state: TrainState, batch: Any, position: jax.Array | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        loss_key, update_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        gradient = alike
        if weighted:
            loss_fn = jax.value_and_grad(weighted(state.step), has_aux=True)
            gradient = mean_over_micro_batches(loss_fn, size)
        if tested:
            (loss, metrics), grads = tested(state.params, batch, loss_key, state.step)
        else:
            (loss, metrics), grads = gradient(state.params, batch, loss_key)
        # A loss that is not finite may still have finite gradients; they mean nothing.
        grads = jax.tree.map(lambda g: jnp.where(jnp.isfinite(loss), g, jnp.nan), grads)
        calls: dict[str, Any] = {"grad_fn": lambda params: gradient(params, batch, loss_key)[1]}
        if estimate:
            calls["curvature_fn"] = lambda params, key: estimate(params, batch, key)
        try:
            updates, optimizer = transformation(position).update(
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
        counters.batch_size = next_batch_size(config, counters, {})
        records.begin(config, program.task.facts, program.target, counters)
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
    in_flight: deque[tuple[Counters, int, dict[str, jax.Array]]] = deque()

    def read_metrics(leave: int) -> dict[str, float]:
        host: dict[str, float] = {}
        while len(in_flight) > leave:
            then, position, values = in_flight.popleft()
            host = {name: float(value) for name, value in jax.device_get(values).items()}
            check_finite(config, checkpoints, then.step, host)
            shown = with_batch_size(config, then, host)
            records.step(then, shown, functools.partial(program.schedule, position))
        return host

    metrics: dict[str, float] = {}
    while not finished(config, counters):
        size, position = counters.batch_size, schedule_position(config, counters)
        batch = place(task.batches(config.seed, counters.samples, size))
        arguments = (batch, position) if config.batch_growth else (batch,)
        state, values = program.step(state, *arguments)
        counters = Counters(counters.step + 1, counters.samples + size, size)
        in_flight.append((counters, position, values))
        last = finished(config, counters)
        evaluating = last or counters.step % config.evaluate_every == 0
        saving = last or counters.step % config.checkpoint_every == 0
        testing = is_tested(config, counters)
        host = read_metrics(leave=0 if evaluating or saving or testing else STEPS_IN_FLIGHT)
        if testing:
            size = next_batch_size(config, counters, host)
            counters = dataclasses.replace(counters, batch_size=size)
        if evaluating:
            metrics = task.evaluate(program.serve(state), place)
        if saving:
            checkpoints.save(
                state, counters, metrics[task.facts["primary"]] if evaluating else None
            )
        if evaluating:
            records.evaluation(counters, metrics)
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
