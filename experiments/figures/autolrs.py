"""AutoLRS on the digits, without a rate from its user, against tuned constant and cosine rates.

A perceptron with two hidden layers of 64, SGD with momentum 0.9 and weight decay 5e-4, batches of
16, 8,000 training steps for every method: AutoLRS with rates between 1e-3 and 1, a first stage of
500 steps and others of 1,000, ten probes of a tenth each (the authors' ratios, at smaller stages
for a shorter run); a constant rate, and a cosine to zero, each at all ten rates of a grid over the
same interval. AutoLRS sees training losses alone. The peers' rate is chosen by the very measure
that they are compared in, over all seeds, which favours them. Neither has a warm-up.

*Reference*: Jin, Zhou, Zhao, Zhu, Guo, Canini, Krishnamurthy, 2021, arXiv 2105.10762.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import optim
from experiments.controlled import controlled
from experiments.figures.paired import paired
from experiments.figures.target import Paper, Part, Table, Target
from experiments.models.mlp import Mlp
from experiments.tasks.classification import Classification
from experiments.tasks.task import Batch, Params, Task

LEAST, MOST, RATES = 1e-3, 1.0, 10
BATCH, CHUNK, EVERY = 16, 50, 250
OURS, PEERS = "AutoLRS", ("constant", "cosine")
MEASURES = ("training_loss", "validation_loss")
TRANSFORMATION = optax.chain(optax.add_decayed_weights(5e-4), optax.trace(0.9))


class Training(NamedTuple):
    """What a probe is taken back to."""

    params: Params
    optimizer: Any
    step: int
    curve: tuple[tuple[float, ...], ...]  # (step, last rate, losses, error) every EVERY steps


class Steps(NamedTuple):
    """Compiled parts of all runs."""

    task: Task
    chunk: Callable[..., tuple[Any, ...]]  # (params, optimizer, batches, rates), and losses
    loss: Callable[[Params], jax.Array]  # of all training samples


def compiled() -> Steps:
    task = Classification(model=Mlp(hidden=(64, 64))).build()
    everything = task.batches(0, 0, task.facts["samples"])

    def step(carry: tuple[Params, Any], data: tuple[Batch, jax.Array]) -> tuple[Any, jax.Array]:
        params, state = carry
        batch, rate = data
        loss, gradient = jax.value_and_grad(lambda p: task.loss(p, batch, jax.random.key(0))[0])(
            params
        )
        updates, state = TRANSFORMATION.update(gradient, state, params)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        return (optim.apply_updates(params, updates), state), loss

    @jax.jit
    def chunk(params: Params, state: Any, batches: Batch, rates: jax.Array) -> tuple[Any, ...]:
        carry, losses = jax.lax.scan(step, (params, state), (batches, rates))
        return *carry, losses

    @jax.jit
    def loss(params: Params) -> jax.Array:
        return task.loss(params, everything, jax.random.key(0))[0]

    return Steps(task, chunk, loss)


def start(steps: Steps, seed: int) -> Training:
    params = steps.task.init(jax.random.key(seed))
    return Training(params, TRANSFORMATION.init(params), 0, ())


def advance(
    steps: Steps, seed: int, training: Training, rates: np.ndarray
) -> tuple[Training, np.ndarray]:
    """Training steps at these rates, a multiple of CHUNK of them, and their losses."""
    losses = []
    for part in rates.reshape(-1, CHUNK):
        batches = steps.task.batches(seed, training.step * BATCH, CHUNK * BATCH)
        batches = {name: a.reshape(CHUNK, BATCH, *a.shape[1:]) for name, a in batches.items()}
        params, state, found = steps.chunk(
            training.params, training.optimizer, batches, jnp.asarray(part, jnp.float32)
        )
        losses.append(np.asarray(found))
        training = Training(params, state, training.step + CHUNK, training.curve)
        if training.step % EVERY == 0:
            point = training.step, float(part[-1]), *measured(steps, params)
            training = training._replace(curve=(*training.curve, point))
    return training, np.concatenate(losses)


def measured(steps: Steps, params: Params) -> tuple[float, float, float]:
    """Training loss, validation loss and validation error; inf for what is not finite."""
    found = steps.task.evaluate(params, jax.device_put)
    values = (float(steps.loss(params)), found["loss"], found["error"])
    loss, validation, error = (v if math.isfinite(v) else math.inf for v in values)
    return loss, validation, error


def searched(steps: Steps, seed: int, total: int, most: int) -> Training:
    """A run whose rates AutoLRS finds."""

    def run(training: Training, rate: float, count: int) -> tuple[Training, np.ndarray]:
        return advance(steps, seed, training, np.full(count, rate))

    controller = optim.autolrs(
        LEAST, MOST, total_steps=total, stage_steps=500, max_stage_steps=most
    )
    return controlled(controller, jax.random.key(seed), start(steps, seed), run)[0]


def schedule(name: str, peak: float, total: int) -> np.ndarray:
    """The rates of a peer's run."""
    progress = np.arange(total) / total
    return peak * (np.ones(total) if name == "constant" else (1 + np.cos(np.pi * progress)) / 2)


def measure(quick: bool) -> Table:
    """All methods, rates and seeds, one after the other."""
    total, most, seeds = (500, 500, 2) if quick else (8000, 1000, 5)
    grid = np.geomspace(LEAST, MOST, RATES)[4:6] if quick else np.geomspace(LEAST, MOST, RATES)
    steps = compiled()
    rows: list[tuple[Any, ...]] = []
    for seed in range(seeds):
        found = searched(steps, seed, total, most)
        rows += [(OURS, 0.0, seed, *point) for point in found.curve]
        for name, rate in itertools.product(PEERS, grid.tolist()):
            rates = schedule(name, rate, total)
            found = advance(steps, seed, start(steps, seed), rates)[0]
            rows += [(name, rate, seed, *point) for point in found.curve]
        print(f"  seed {seed} is done", flush=True)
    names = ("method", "peak_rate", "seed", "step", "learning_rate", *MEASURES, "validation_error")
    return dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))


def curves(data: Table, method: str, column: str) -> dict[float, np.ndarray]:
    """A column of a method, (seeds, points), for each of its peak rates."""
    mine = data["method"] == method
    return {
        rate: data[column][mine & (data["peak_rate"] == rate)].reshape(
            len(np.unique(data["seed"])), -1
        )
        for rate in np.unique(data["peak_rate"][mine]).tolist()
    }


def tuned(data: Table, method: str, column: str) -> float:
    """The peak rate with the least mean over seeds at the end."""
    found = curves(data, method, column)
    return min(found, key=lambda rate: float(found[rate][:, -1].mean()))


def judge(data: Table) -> list[Part]:
    parts = []
    for column, peer in itertools.product(MEASURES, PEERS):
        ours = curves(data, OURS, column)[0.0][:, -1]
        rate = tuned(data, peer, column)
        theirs = curves(data, peer, column)[rate][:, -1]
        difference, margin = paired(ours, theirs)
        measured = (
            f"{ours.mean():.3g} against {theirs.mean():.3g} at peak {rate:.2g}: "
            f"difference {difference:.2g} ± {margin:.2g}"
        )
        claim = f"{column.replace('_', ' ')} at the end: not above the tuned {peer} rate's"
        parts.append(Part(claim, measured, bool(ours.mean() <= theirs.mean())))
    return [*parts, *(sooner(data, column) for column in MEASURES), affordable(data)]


def sooner(data: Table, column: str) -> Part:
    """How many training steps until the end of the tuned cosine is reached."""
    goal = curves(data, "cosine", column)[tuned(data, "cosine", column)][:, -1:]
    steps = curves(data, OURS, "step")[0.0]
    reached = curves(data, OURS, column)[0.0] <= goal
    first = np.where(reached.any(axis=1), steps[0][reached.argmax(axis=1)], np.inf)
    total, median = int(steps.max()), float(np.median(first))
    claim = f"{column.replace('_', ' ')}: that of the tuned cosine's end, in fewer training steps"
    measured = f"median {median:g} of {total}; seeds: {', '.join(f'{x:g}' for x in first)}"
    return Part(claim, measured, median < total)


def affordable(data: Table) -> Part:
    """AutoLRS beside two cosines, which cost as many steps as its search and training."""
    ends = {rate: c[:, -1].mean() for rate, c in curves(data, "cosine", "validation_loss").items()}
    pairs = [min(pair) for pair in itertools.combinations(ends.values(), 2)]
    ours, others = curves(data, OURS, "validation_loss")[0.0][:, -1].mean(), float(np.mean(pairs))
    total = int(data["step"].max())
    measured = (
        f"{ours:.3g} against {others:.3g}; steps {2 * total}, those of the whole grid "
        f"{len(ends) * total}"
    )
    claim = "validation loss: below the better of two cosines of the grid, in the mean over pairs"
    return Part(claim, measured, bool(ours < others))


def plot(data: Table) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.2))
    for name in (OURS, *PEERS):
        for axis, column in zip(axes, ("learning_rate", *MEASURES), strict=True):
            chosen = tuned(data, name, column if column in MEASURES else "validation_loss")
            values, steps = (curves(data, name, c)[chosen] for c in (column, "step"))
            draw(axis, steps[0], values, name)
    axes[0].set(ylabel="learning rate", yscale="log", ylim=(LEAST / 2, 2 * MOST))
    axes[1].set(ylabel="training loss", yscale="log")
    axes[2].set(ylabel="validation loss", yscale="log")
    for axis in axes:
        axis.set(xlabel="training step")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def draw(axis: Axes, steps: np.ndarray, values: np.ndarray, name: str) -> None:
    """The median over seeds, and every seed in thin lines."""
    (line,) = axis.plot(steps, np.median(values, axis=0), label=name)
    for seed in values:
        axis.plot(steps, seed, color=line.get_color(), linewidth=0.5, linestyle="-", alpha=0.5)


TARGET = Target(
    paper=Paper(
        title="AutoLRS: Automatic Learning-Rate Schedule by Bayesian Optimization on the Fly",
        authors="Jin, Zhou, Zhao, Zhu, Guo, Canini, Krishnamurthy",
        year=2021,
        arxiv="2105.10762",
    ),
    figure="no figure of the paper, which trains ResNet-50, Transformer and BERT: its question on "
    "scikit-learn's digits, a perceptron and SGD with momentum; 8,000 training steps, five seeds",
    claim="AutoLRS needs no rate or schedule from its user and trains as well as tuned schedules, "
    "or sooner; its search costs as many steps as the training.",
    rule="ends are compared by their means over seeds (which share parameters and batches; after "
    "± two standard errors of the paired difference); the peer's rate is that of ten with the "
    "least mean of the same measure. "
    f"Steps are counted in {EVERY}s, by the median over seeds; search not counted there, but in "
    "the last part, where it doubles the steps.",
    measure=measure,
    judge=judge,
    plot=plot,
)
