"""The typed configuration of a run, and the checks that need no data and no device.

A config file is Python with a `get_config() -> Config`, and runs with the user's rights. Every
field can be overridden on the command line: `--config.optimizer.learning_rate=3e-4`,
`--config.optimizer.kwargs='{"b1": 0.95}'`, `--config.task.model.width=256`.
"""

import dataclasses
import re
from typing import Any

from experiments.tasks.task import TaskConfig

DECODER_TENSOR_AXES = (
    (r".*/(query|key|value|gate|up)/kernel", -1),
    (r".*/(output|down)/kernel", -2),
)


class UserError(Exception):
    """A mistake in what the user gave: shown as one sentence, without a traceback."""


@dataclasses.dataclass
class Schedule:
    """A function of `optim` or, with the prefix `optax.`, of optax that returns a schedule.

    Arguments of the function that are not in `kwargs` are filled in from the run by name: the
    learning rate as `peak_value`, else as `init_value` or `value` where that is required; the
    number of steps as `total_steps`, else as `decay_steps` or `transition_steps` likewise.
    """

    name: str = "wsd_schedule"
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class StoredArray:
    """An argument of a schedule that is read from a .npz file, which must not have changed."""

    path: str
    name: str  # of the array in the file
    sha256: str  # as experiments.arrays.fingerprint has it


@dataclasses.dataclass
class Curvature:
    """An estimate of the curvature's diagonal for an optimizer that takes one, as `sophia` does.

    `name` is `hutchinson`, `gauss_newton_bartlett`, which wants a task that classifies, or
    `empirical_fisher`. The estimate is made at the steps start, start + every, ... from 0, on the
    batch of the step, over all its micro-batches.
    """

    name: str = "hutchinson"
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    every: int = 1  # steps
    start: int = 0


@dataclasses.dataclass
class Optimizer:
    """An optimizer by name, and what is applied to it by path of the parameter.

    Patterns are regular expressions that must match a whole path, such as `blocks/.*/kernel`. One
    that matches nothing, or two of a list that match one parameter, are errors. An argument in
    `kwargs` that is itself a transformation (`auxiliary`, `inner`) is given as an Optimizer.
    """

    name: str = "optax.adamw"  # a name in optim, or optax.<name>, optax.contrib.<name>
    learning_rate: float = 1e-3  # the peak of the schedule
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    clip_norm: float = 0.0  # global gradient norm; 0 leaves gradients as they are
    learning_rate_multipliers: tuple[tuple[str, float], ...] = ()  # (pattern, factor)
    weight_decay_multipliers: tuple[tuple[str, float], ...] = ()  # (pattern, factor)
    frozen: tuple[str, ...] = ()  # patterns of the parameters that do not move and have no state
    curvature: Curvature | None = None  # what sophia and adahessian take; of the outermost alone
    ema_decay: float = 0.0  # of the averaged parameters that are evaluated; 0 evaluates the last
    record_norms: str = ""  # "l1" or "l2": keep that norm of every step's gradient, before clipping


@dataclasses.dataclass
class Emphasis:
    """Weights of samples by their losses, as `optim.loss_weights` gives them, within a micro-batch.

    The paper weighs over the whole batch of a step, and its authors' code over each micro-batch, as
    here: with `accumulation` the weights of each part sum to one.
    """

    scheme: str = "linupper"  # or "quadratic", "extremes"
    temperature: float = 1.0  # after the warm-up
    end_temperature: float = 0.0  # of the last step, reached linearly; 0 keeps the first
    warmup: float = 0.05  # fraction of the steps, with uniform weights


@dataclasses.dataclass
class BatchGrowth:
    """A batch that doubles for as long as a test of its gradient asks for more samples.

    It starts at `config.batch_size` and grows by micro-batches of its starting ones' size, between
    which the test sees how much gradients differ. With it `steps * batch_size` is a number of
    samples, where the run ends, and the learning rate, which does not grow with the batch, follows
    the samples too: `schedule(samples // batch_size)`. All other counts stay counts of steps.
    """

    max_batch_size: int  # a batch of more than half of it is not tested
    name: str = "norm_test"  # or [augmented_]inner_product_test, coordinate_wise_test, of optim
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)  # eta; theta, nu; eta, share
    every: int = 1  # steps


@dataclasses.dataclass
class Mesh:
    """How devices are named. Samples are split over `data` and `fsdp`, parameters over `fsdp`
    (the largest axis that divides) and, where a pattern of `tensor_axes` says which axis, `tensor`.
    """

    data: int = -1  # -1: all devices that fsdp and tensor leave
    fsdp: int = 1
    tensor: int = 1
    tensor_axes: tuple[tuple[str, int], ...] = DECODER_TENSOR_AXES  # (pattern, axis)


@dataclasses.dataclass
class Config:
    """A run: what is computed, then how it is watched and kept."""

    task: TaskConfig
    steps: int
    batch_size: int  # samples a step, over all devices
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    accumulation: int = 1  # micro-batches a step
    batch_growth: BatchGrowth | None = None  # from batch_size on, by more micro-batches
    emphasis: Emphasis | None = None  # weights of samples by their losses; None: all alike
    seed: int = 0
    on_nonfinite: str = "stop"  # "stop", or "skip": leave such steps out
    nonfinite_limit: int = 10  # skipped steps in a row after which a run stops all the same
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    log_every: int = 10  # steps
    evaluate_every: int = 100  # steps; the last step is always evaluated
    checkpoint_every: int = 100  # steps; the last step is always kept
    keep_checkpoints: int = 2  # the newest ones; the best evaluated one is kept besides


# What may change between two starts of one run, since it does not change what is computed.
FREE_FIELDS = ("mesh", "log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints")


def validate(config: Config) -> None:
    """Raise UserError at the first field that no run could use."""
    for name in ("steps", "batch_size", "accumulation", "log_every", "evaluate_every"):
        _positive(name, getattr(config, name))
    for name in ("checkpoint_every", "keep_checkpoints", "nonfinite_limit"):
        _positive(name, getattr(config, name))
    if config.on_nonfinite not in ("stop", "skip"):
        raise UserError(
            f"config.on_nonfinite is {config.on_nonfinite!r}; accepted: 'stop', 'skip'."
        )
    if config.batch_size % config.accumulation:
        raise UserError(
            f"config.batch_size = {config.batch_size} cannot be cut into "
            f"config.accumulation = {config.accumulation} equal micro-batches."
        )
    if config.batch_growth is not None:
        _validate_growth(config, config.batch_growth)
    optimizer = config.optimizer
    if not 0 <= optimizer.ema_decay < 1:
        raise UserError(
            f"config.optimizer.ema_decay is {optimizer.ema_decay}; accepted: 0 <= ema_decay < 1."
        )
    if optimizer.clip_norm < 0:
        raise UserError(
            f"config.optimizer.clip_norm is {optimizer.clip_norm}; it cannot be negative."
        )
    if optimizer.record_norms not in ("", "l1", "l2"):
        raise UserError(
            f"config.optimizer.record_norms is {optimizer.record_norms!r}; accepted: '', 'l1', "
            "'l2'."
        )
    multipliers = optimizer.learning_rate_multipliers + optimizer.weight_decay_multipliers
    for pattern in (*optimizer.frozen, *(p for p, _ in (*multipliers, *config.mesh.tensor_axes))):
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"the pattern {pattern!r} is not a regular expression: {error}."
            ) from error


def _validate_growth(config: Config, growth: BatchGrowth) -> None:
    _positive("batch_growth.every", growth.every)
    if growth.max_batch_size < config.batch_size:
        raise UserError(
            f"config.batch_growth.max_batch_size is {growth.max_batch_size}; it must be at least "
            f"config.batch_size = {config.batch_size}."
        )
    if config.accumulation < 2:
        raise UserError(
            f"config.accumulation is {config.accumulation}; with config.batch_growth it must be at "
            "least 2, since the test compares micro-batches."
        )


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"config.{name} is {value}; it must be at least 1.")


def as_json(config: Any) -> Any:
    """The config as plain JSON values; a nested dataclass names its class.

    So does a dict that JSON could not tell from one, or whose keys are not strings.
    """
    if dataclasses.is_dataclass(config):
        fields = {f.name: as_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"class": type(config).__name__, **fields}
    if isinstance(config, dict):
        if all(isinstance(key, str) and key != "class" for key in config):
            return {key: as_json(value) for key, value in config.items()}
        return {"class": "dict", "items": [as_json(item) for item in config.items()]}
    if isinstance(config, (list, tuple)):
        return [as_json(value) for value in config]
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    raise UserError(
        f"a config holds {config!r}; accepted: numbers, strings, booleans, tuples, dicts."
    )
