"""Tuning-free methods at their defaults and calibrated, beside NadamW, over four small workloads.

Each method of `experiments/configs/classification/tuning_free.py` is run at its defaults and at
eight settings, a Latin hypercube in a space that is stated below: warm-up, decay of the schedule,
weight decay, and one number of the method's own (its momentum, where it has one); NadamW and
schedule-free AdamW have their learning rate besides, in the same eight trials. As in AlgoPerf's
spaces, weight decay is far smaller where a method adds it to gradients.

A fifth of the training samples is held out; the chain's held-out sequences are drawn from it. The
best loss of a workload is the least mean, over the seeds of the calibration, of all methods and
settings at the end; its target is 2 % of the way from there back to the first loss. A method's time
is the median over seeds of the steps to the target, in units of 20. One setting serves all
workloads: the calibrated one has the least geometric mean of times, where one that never comes
counts as four runs. What is reported is from three other seeds, scored as AlgoPerf does: the area
under the share of workloads within a factor of the fastest, up to a factor of 4.

Two designs were run before this one, and changed for reasons that hold whatever they showed: the
first chose settings by their last loss, tried one weight decay for all and a chain twice as large
(no part held); the second took eight Halton points, which leave the ends of ranges out (the
parts that hold are those of now).

*Reference*: Kasimbeg, Roulet, Agarwal, Medapati, Pedregosa, Agarwala, Dahl, 2025, arXiv 2505.24005.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure

import optim
from experiments.config import Optimizer
from experiments.configs.classification.tuning_free import DEFAULTS, STEPS, with_values
from experiments.data.order import sample_indices
from experiments.figures.target import Paper, Part, Table, Target
from experiments.models.mlp import Mlp
from experiments.optimizers import build_schedule, find
from experiments.tasks.bigram import BigramChain
from experiments.tasks.classification import Classification
from experiments.tasks.logistic import LogisticRegression
from experiments.tasks.task import Task, TaskConfig

WORKLOADS: dict[str, tuple[TaskConfig, int]] = {  # and samples a step
    "digits, perceptron": (Classification(model=Mlp(hidden=(64, 64))), 32),
    "digits, logistic": (LogisticRegression("digits"), 32),
    "breast cancer, logistic": (LogisticRegression("breast_cancer"), 32),
    "bigram chain": (BigramChain(vocabulary=32, length=32), 16),
}
TRIALS, SEEDS, EVERY = 8, 3, 20
WITHIN, MOST = 0.02, 4.0  # of the target, and of the profile
BASELINE = "nadamw"
SPACE: dict[str, Callable[[float], float]] = {  # from the unit interval
    "warmup_steps": lambda u: 0.2 * u,  # of the run
    "decay_steps": lambda u: (0.0, 0.5, 0.8)[int(3 * u)],  # of the run, a cosine to zero
    "weight_decay": lambda u: 1e-4 * 1e3**u,
    "b1": lambda u: 1 - 0.02 * 15**u,
    "beta": lambda u: 1 - 0.02 * 15**u,
    "init_step": lambda u: 1e-6 * 1e4**u,
    "init_estim_sq_dist": lambda u: 1e-6 * 1e4**u,
    "alpha": lambda u: 10 * 1e2**u,
    "learning_rate": lambda u: 1e-3 * 1e2**u,
}
# Where decay is added to gradients, or divides parameters at a rate of 1.
SMALL_DECAY = ("dog", "dowg", "momo", "cocob")
COMMON = ("warmup_steps", "decay_steps", "weight_decay")
OWN = {
    "nadamw": ("b1", "learning_rate"),
    "dog": ("init_step",),
    "dowg": ("init_estim_sq_dist",),
    "momo": ("beta",),
    "schedule_free": ("b1", "learning_rate"),
    "cocob": ("alpha",),
}


def trials(name: str, count: int) -> list[dict[str, float]]:
    """The settings of a method's calibration."""
    searched = (*COMMON, *OWN.get(name, ("b1",)))
    rng = np.random.default_rng(0)
    # A Latin hypercube: every eighth of the range of every number is tried, by all methods.
    points = np.stack([(rng.permutation(count) + 0.5) / count for _ in searched], axis=1)
    found = [
        {key: SPACE[key](float(u)) for key, u in zip(searched, point, strict=True)}
        for point in points
    ]
    if name in SMALL_DECAY:
        found = [{**values, "weight_decay": values["weight_decay"] / 2000} for values in found]
    return found


class Workload(NamedTuple):
    """A task, its batches, (seeds, steps, samples, ...), and what is held out."""

    task: Task
    batches: Any
    held_out: Any


def workload(name: str, seeds: int, steps: int) -> Workload:
    config, size = WORKLOADS[name]
    task = config.build()
    if task.facts["samples"] is None:
        runs = [task.batches(seed, 0, steps * size) for seed in range(seeds)]
        held_out = task.batches(seeds, 0, 500)
    else:
        everything = task.batches(0, 0, task.facts["samples"])
        kept = task.facts["samples"] * 4 // 5
        orders = [sample_indices(seed, 0, steps * size, kept) for seed in range(seeds)]
        runs = [jax.tree.map(lambda a, i=order: a[i], everything) for order in orders]
        held_out = jax.tree.map(lambda a: a[kept:], everything)
    batches = jax.tree.map(
        lambda *a: np.stack(a).reshape(seeds, steps, size, *a[0].shape[1:]), *runs
    )
    return Workload(task, batches, held_out)


def numbers(value: Any) -> Any:
    """The floats of an optimizer's arguments, and None where there is something else."""
    if isinstance(value, Optimizer):
        return {key: numbers(v) for key, v in value.kwargs.items()}
    if isinstance(value, tuple):
        return tuple(numbers(v) for v in value)
    return value if isinstance(value, float) else None


def transformation(config: Optimizer, given: Any, rates: jax.Array) -> Any:
    """What `build_optimizer` makes of a config, with traced numbers and rates in place of its."""

    def filled(value: Any, given: Any) -> Any:
        if isinstance(value, Optimizer):
            return transformation(value, given, rates)
        if isinstance(value, tuple):
            return tuple(filled(*pair) for pair in zip(value, given, strict=True))
        return value if given is None else given

    arguments = {key: filled(value, given[key]) for key, value in config.kwargs.items()}
    if "base_optimizer" not in arguments:
        arguments["learning_rate"] = lambda count: rates[count]
    tx = find(config.name)(**arguments)
    if config.ema_decay:
        tx = optax.chain(tx, optim.params_ema(config.ema_decay))
    return optax.with_extra_args_support(tx)


def curves(work: Workload, configs: list[Optimizer]) -> np.ndarray:
    """Held-out losses (configs, seeds, 1 + points) of one method, in one compilation."""
    seeds, steps = jax.tree.leaves(work.batches)[0].shape[:2]
    inner = [config.kwargs.get("base_optimizer", config) for config in configs]
    rates = np.stack(
        [
            jax.vmap(build_schedule(c.schedule, c.learning_rate, steps))(jnp.arange(steps))
            for c in inner
        ]
    )
    given = jax.tree.map(lambda *x: np.array(x, np.float32), *map(numbers, configs))

    def run(given: Any, rates: jax.Array, key: jax.Array, batches: Any, held_out: Any) -> jax.Array:
        tx = transformation(configs[0], given, rates)
        params = work.task.init(key)

        def loss(params: Any, batch: Any) -> jax.Array:
            return work.task.loss(params, batch, jax.random.key(0))[0]

        def step(carry: tuple[Any, Any], batch: Any) -> tuple[Any, None]:
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, batch)
            updates, state = tx.update(gradient, state, params, value=value)
            return (optim.apply_updates(params, updates), state), None

        def chunk(carry: tuple[Any, Any], batches: Any) -> tuple[Any, jax.Array]:
            (params, state), _ = jax.lax.scan(step, carry, batches)
            return (params, state), loss(optim.evaluation_params(state, params), held_out)

        parts = jax.tree.map(lambda a: a.reshape(-1, EVERY, *a.shape[1:]), batches)
        losses = jax.lax.scan(chunk, (params, tx.init(params)), parts)[1]
        return jnp.concatenate([loss(params, held_out)[None], losses])

    over_seeds = jax.vmap(run, in_axes=(None, None, 0, 0, None))
    over_configs = jax.jit(jax.vmap(over_seeds, in_axes=(0, 0, None, None, None)))
    keys = jax.random.split(jax.random.key(0), seeds)
    found = np.asarray(over_configs(given, rates, keys, work.batches, work.held_out), np.float64)
    return np.where(np.isfinite(found), found, np.inf)


def measure(quick: bool) -> Table:
    """All runs, and from those of the calibration the best losses, targets and choices."""
    steps, count = (2 * EVERY, 2) if quick else (STEPS, TRIALS)
    names = ["breast cancer, logistic", "bigram chain"] if quick else list(WORKLOADS)
    methods = (BASELINE, "dog", "momo_adam") if quick else tuple(DEFAULTS)
    settings = {method: [{}, *trials(method, count)] for method in methods}
    found: dict[tuple[str, str], np.ndarray] = {}
    for name in names:
        work = workload(name, 2 * SEEDS, steps)
        for method in methods:
            configs = [with_values(method, values) for values in settings[method]]
            found[method, name] = curves(work, configs)
            print(f"  {name}: {method}", flush=True)
    rows = []
    for name in names:
        ends = [found[method, name][:, SEEDS:, -1].mean(axis=1) for method in methods]
        best, first = float(np.min(ends)), float(found[BASELINE, name][0, SEEDS:, 0].mean())
        for method in methods:
            reached = found[method, name] <= best + WITHIN * (first - best)
            times = np.where(reached.any(axis=-1), EVERY * reached.argmax(axis=-1), np.inf)
            for trial, values in enumerate(settings[method]):
                label = " ".join(f"{key}={value:.4g}" for key, value in values.items())
                calibration = float(np.median(times[trial, SEEDS:]))
                for seed in range(SEEDS):
                    loss = found[method, name][trial, seed, -1]
                    reported = loss, times[trial, seed]
                    rows.append((method, trial, name, seed, calibration, *reported, label))
    columns = ("method", "trial", "workload", "seed", "calibration", "loss", "steps", "values")
    return dict(zip(columns, map(np.array, zip(*rows, strict=True)), strict=True))


def chosen(data: Table, method: str) -> int:
    """The trial of the least geometric mean in the calibration, in which the default is not."""
    mine = (data["method"] == method) & (data["trial"] > 0)
    candidates = np.unique(data["trial"][mine])
    steps = np.log(np.minimum(data["calibration"], 4.0 * STEPS))
    means = [steps[mine & (data["trial"] == trial)].mean() for trial in candidates]
    return int(candidates[np.argmin(means)])


def times(data: Table) -> dict[tuple[str, str], np.ndarray]:
    """Median steps to the target of every workload, by method and variant."""
    found = {}
    for method in dict.fromkeys(data["method"].tolist()):
        for variant, trial in (("default", 0), ("calibrated", chosen(data, method))):
            mine = (data["method"] == method) & (data["trial"] == trial)
            found[method, variant] = np.array(
                [
                    np.median(data["steps"][mine & (data["workload"] == name)])
                    for name in dict.fromkeys(data["workload"].tolist())
                ]
            )
    return found


def scores(found: dict[tuple[str, str], np.ndarray]) -> dict[tuple[str, str], float]:
    """AlgoPerf's: the mean over factors from 1 to 4 of the share of workloads within the factor."""
    fastest = np.min(list(found.values()), axis=0)
    result = {}
    for key, steps in found.items():
        with np.errstate(invalid="ignore"):  # where nothing reaches the target
            factor = np.nan_to_num(steps / fastest, nan=np.inf)
        result[key] = float(np.mean(np.maximum(MOST - factor, 0)) / (MOST - 1))
    return result


def judge(data: Table) -> list[Part]:
    score = scores(times(data))
    free = [method for method, variant in score if variant == "default" and method != BASELINE]
    base = score[BASELINE, "calibrated"]
    defaults = {method: score[method, "default"] for method in free}
    calibrated = {method: score[method, "calibrated"] for method in free}
    best = max(calibrated, key=lambda method: calibrated[method])
    before, after = np.mean([*defaults.values()]), np.mean([*calibrated.values()])
    return [
        Part(
            "at its defaults, every tuning-free method scores below the calibrated NadamW",
            f"NadamW {base:.2f}; {listed(defaults)}",
            all(value < base for value in defaults.values()),
        ),
        Part(
            "calibrated, tuning-free methods score higher in the mean",
            f"{before:.2f} before, {after:.2f} after; {listed(calibrated)}",
            bool(after > before),
        ),
        Part(
            "the best calibrated one stays below the calibrated NadamW",
            f"{best} {calibrated[best]:.2f}, NadamW {base:.2f} (at its defaults "
            f"{score[BASELINE, 'default']:.2f})",
            calibrated[best] < base,
        ),
    ]


def listed(values: dict[str, float]) -> str:
    ordered = sorted(values.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value:.2f}" for name, value in ordered)


def plot(data: Table) -> Figure:
    """Left the scores, right the steps to each target at the calibrated settings."""
    found = times(data)
    score = scores(found)
    methods = sorted({method for method, _ in score}, key=lambda m: score[m, "calibrated"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.6), sharey=True)
    places = np.arange(len(methods))
    for shift, variant, color in ((-0.2, "default", "0.7"), (0.2, "calibrated", "C0")):
        values = [score[method, variant] for method in methods]
        left.barh(places + shift, values, 0.38, color=color, label=variant)
    left.set(xlabel="score", xlim=(0, 1))
    left.set_yticks(places, methods)
    left.legend()
    markers = "osD^"
    for place, name in enumerate(dict.fromkeys(data["workload"].tolist())):
        steps = [found[method, "calibrated"][place] for method in methods]
        right.plot(steps, places, markers[place], label=name, alpha=0.8)
    right.set(xlabel="steps to the target, calibrated (none: not reached)")
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


TARGET = Target(
    paper=Paper(
        title="How far away are truly hyperparameter-free learning algorithms?",
        authors="Kasimbeg, Roulet, Agarwal, Medapati, Pedregosa, Agarwala, Dahl",
        year=2025,
        arxiv="2505.24005",
    ),
    figure="no figure of the paper, which scores on the workloads of AlgoPerf: its question on "
    f"four workloads of {STEPS} steps that run on one core",
    claim="Learning-rate-free methods do poorly at the defaults of the literature; calibrated to "
    "one setting over all workloads they improve, and stay behind an equally calibrated NadamW.",
    rule=f"score: mean over factors from 1 to {MOST:g} of the share of workloads on which the "
    "median of three seeds reaches the target within that factor of the fastest, defaults and "
    f"calibrated settings together; {TRIALS} trials a method, one setting for all workloads, "
    "chosen on other seeds.",
    measure=measure,
    judge=judge,
    plot=plot,
)
