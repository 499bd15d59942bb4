"""From the names in a config to one gradient transformation."""

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

import optim
from experiments.arrays import read_array
from experiments.config import Optimizer, Schedule, StoredArray, UserError

PEAK_NAMES = ("peak_value", "init_value", "value")
STEPS_NAMES = ("total_steps", "decay_steps", "transition_steps")


def find(name: str) -> Callable[..., Any]:
    """The public function of optim, or with the prefix `optax.` of optax, that a config names."""
    library, path = (optax, name[6:]) if name.startswith("optax.") else (optim, name)
    try:
        function = operator.attrgetter(path)(library)
    except AttributeError:
        function = None
    if not callable(function):
        raise UserError(
            f"{name!r} names no function of {library.__name__}; accepted: a public name of optim, "
            f"such as 'lion', or one of optax with its prefix, such as 'optax.adamw'."
        )
    return function


def build_schedule(config: Schedule, learning_rate: float, steps: int) -> optax.Schedule:
    """The schedule count -> learning rate, its peak and its length filled in from the run."""
    function = find(config.name)
    parameters = inspect.signature(function).parameters
    kwargs = {
        key: read_array(value) if isinstance(value, StoredArray) else value
        for key, value in config.kwargs.items()
    }
    for names, value in ((PEAK_NAMES, learning_rate), (STEPS_NAMES, steps)):
        target = _target(parameters, names)
        if target is not None:
            kwargs.setdefault(target, value)
    return call(function, "config.optimizer.schedule", config.name, kwargs)


def _target(parameters: Mapping[str, inspect.Parameter], names: tuple[str, ...]) -> str | None:
    """The argument to fill in: the first of the names, the others only where they are required.

    An optional `decay_steps` beside budgets, say, is the length of a decay and not of the run.
    """
    first, *others = names
    required = (name for name in others if name in parameters and _required(parameters[name]))
    return first if first in parameters else next(required, None)


def peak_of(config: Optimizer) -> float:
    """The peak that `build_schedule` gives to an optimizer's schedule."""
    parameters = inspect.signature(find(config.schedule.name)).parameters
    target = _target(parameters, PEAK_NAMES)
    return config.schedule.kwargs.get(target or PEAK_NAMES[0], config.learning_rate)


def with_schedules(config: Optimizer, make: Callable[[Optimizer], Schedule]) -> Optimizer:
    """The optimizer under another schedule with the same peak, and so those among its arguments."""
    kwargs = {
        key: with_schedules(value, make) if isinstance(value, Optimizer) else value
        for key, value in config.kwargs.items()
    }
    peak = peak_of(config)
    return dataclasses.replace(config, learning_rate=peak, schedule=make(config), kwargs=kwargs)


def build_optimizer(
    config: Optimizer, steps: int, params: Any, position: jax.Array | None = None
) -> tuple[optax.GradientTransformationExtraArgs, optax.Schedule]:
    """The transformation that a config names, for parameters of these paths and shapes.

    With a `position`, which may be traced, the learning rate is the schedule's there; otherwise the
    transformation counts its steps. Its state is the same.

    Order: the estimate of the curvature, the record of norms, clip, the named optimizer (one a
    group where weight decay differs), multipliers of the learning rate, average. Clipping and the
    record measure the whole tree; an optimizer that is split into groups measures each on its own.
    """
    schedule = build_schedule(config.schedule, config.learning_rate, steps)
    kwargs = {key: _nested(value, steps, params, position) for key, value in config.kwargs.items()}
    config = dataclasses.replace(config, kwargs=kwargs)
    rate = schedule if position is None else lambda count: schedule(position)
    tx = _with_weight_decay(config, rate, params)
    if config.learning_rate_multipliers:
        factors = by_path(params, config.learning_rate_multipliers, default=1.0)
        tx = optax.chain(tx, optax.stateless(lambda u, _: jax.tree.map(operator.mul, factors, u)))
    if config.frozen:
        frozen = by_path(params, tuple((pattern, True) for pattern in config.frozen), default=False)
        labels = jax.tree.map(lambda leaf: "frozen" if leaf else "trained", frozen)
        tx = _partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)
    if config.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
    if config.record_norms:
        tx = optax.chain(optim.record_gradient_norms(steps, norm=config.record_norms), tx)
    if config.ema_decay:
        tx = optax.chain(tx, optim.params_ema(config.ema_decay))
    if config.curvature:
        times = {"every": config.curvature.every, "start": config.curvature.start}
        field = "config.optimizer.curvature"
        tx = call(optim.with_curvature, field, "with_curvature", {"inner": tx, **times})
    return optax.with_extra_args_support(tx), schedule


def _nested(value: Any, steps: int, params: Any, position: jax.Array | None) -> Any:
    """An optimizer among the arguments of another, as `auxiliary` or `inner`, is built first."""
    if not isinstance(value, Optimizer):
        return value
    if value.curvature:
        raise UserError(
            f"config.optimizer.kwargs: {value.name} has a curvature of its own; set that of the "
            "outermost optimizer, which sees all parameters."
        )
    if value.record_norms:
        raise UserError(
            f"config.optimizer.kwargs: {value.name} has record_norms = {value.record_norms!r}; set "
            "that of the outermost optimizer, which sees all gradients."
        )
    return build_optimizer(value, steps, params, position)[0]


def _with_weight_decay(config: Optimizer, schedule: optax.Schedule, params: Any) -> Any:
    function = find(config.name)
    build = functools.partial(call, function, "config.optimizer", config.name)
    kwargs = dict(config.kwargs)
    if "learning_rate" in inspect.signature(function).parameters:  # a scale_by_<name> has none
        kwargs.setdefault("learning_rate", schedule)
    if not config.weight_decay_multipliers:
        return build(kwargs)
    if "weight_decay" not in inspect.signature(function).parameters:
        raise UserError(
            f"config.optimizer.weight_decay_multipliers: {config.name} has no weight_decay."
        )
    factors = by_path(params, config.weight_decay_multipliers, default=1.0)
    default = inspect.signature(function).parameters["weight_decay"].default
    decay = config.kwargs.get("weight_decay", default)
    if {*jax.tree.leaves(factors)} <= {0.0, 1.0} and "mask" in inspect.signature(
        function
    ).parameters:
        return build(kwargs | {"mask": jax.tree.map(bool, factors)})
    groups = {
        factor: build(kwargs | {"weight_decay": decay * factor})
        for factor in {*jax.tree.leaves(factors)}
    }
    return _partition(groups, factors)


def _partition(groups: dict[Any, Any], labels: Any) -> optax.GradientTransformationExtraArgs:
    """Each group with its own part of a curvature estimate."""
    return optax.partition(groups, labels, mask_compatible_extra_args=True)


def by_path(params: Any, rules: tuple[tuple[str, Any], ...], default: Any) -> Any:
    """A tree like `params` with the entry of the pattern that matches each leaf's path."""
    try:
        return optim.path_labels(params, rules, default=default)
    except ValueError as error:
        raise UserError(f"config.optimizer: {error}") from error


def call(function: Callable[..., Any], field: str, name: str, kwargs: dict[str, Any]) -> Any:
    """Call with keyword arguments; what they have wrong becomes a sentence that names the field."""
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in kwargs:
            if key not in parameters:
                raise UserError(
                    f"{field}.kwargs has {key!r}, which {name} does not take; "
                    f"it takes: {', '.join(parameters)}."
                )
    missing = [p.name for p in parameters.values() if _required(p) and p.name not in kwargs]
    if missing:
        raise UserError(f"{field}.kwargs lacks {', '.join(missing)}, which {name} requires.")
    try:
        return function(**kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{field} ({name}): {error}") from error


def _required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    return parameter.default is parameter.empty and not variadic
