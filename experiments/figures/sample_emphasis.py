"""Weights of samples by their losses, on digits of which half the classes are rare.

Of the training digits 5 to 9 one in ten is kept, those of 0 to 4 all; validation keeps all. The
two-layer perceptron of configs/classification/mlp.py is trained by its config (AdamW, rate 2e-3
with a linear decay, 1,000 steps, batches of 64) with uniform weights and with each scheme of
`optim.loss_weights`, at the temperatures 1 and 0.4, the ends of the authors' range, after a warm-up
of a twentieth of the steps, as theirs. Nothing was tuned for any of them.

The paper trains language models, and a linear regression in which linupper is first and quadratic
ahead of uniform weights; its claim for samples of low loss is put here to a classifier. Data, model
and the rare classes are our own.

*Reference*: Sow et al., 2025, arXiv 2502.06733.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.config import Config, Emphasis
from experiments.configs.classification.mlp import get_config
from experiments.data.labelled import bundled
from experiments.data.order import sample_indices
from experiments.figures.paired import paired
from experiments.figures.target import Paper, Part, Table, Target
from experiments.mesh import make_mesh
from experiments.tasks.classification import Classification
from experiments.tasks.task import Batch, Task
from experiments.tasks.validation import mean_over
from experiments.train import build_program

RARE, SHARE = 5, 10  # classes from this one on keep one in so many
UNIFORM, LINUPPER, QUADRATIC, EXTREMES = "uniform", "linupper", "quadratic", "extremes"
SCHEMES = (LINUPPER, QUADRATIC, EXTREMES)
TEMPERATURES = (1.0, 0.4)
SEEDS, EVERY = 5, 100
MEASURES = ("loss", "error", "rare_error")
COLUMNS = ("scheme", "temperature", "seed", "step", *MEASURES)


class Data(NamedTuple):
    train: dict[str, np.ndarray]  # image, label
    validation: dict[str, np.ndarray]


def data() -> Data:
    found = bundled("digits")
    train, validation = (
        {"image": part.inputs.astype(np.uint8).reshape(-1, 8, 8), "label": part.labels}
        for part in (found.train, found.validation)
    )
    labels = train["label"]
    rank = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    size = np.bincount(labels)[labels]
    kept = (labels < RARE) | (rank * SHARE < size)
    return Data({name: array[kept] for name, array in train.items()}, validation)


@dataclasses.dataclass
class RareDigits:
    """The classification task on these data."""

    def build(self) -> Task:
        whole = Classification().build()
        train, validation = data()
        logits = whole.logits
        assert logits is not None
        rare = float(np.mean(validation["label"] >= RARE))

        def batches(seed: int, samples: int, count: int) -> Batch:
            index = sample_indices(seed, samples, count, len(train["label"]))
            return {name: array[index] for name, array in train.items()}

        def measures(params: Any, batch: Any) -> dict[str, jax.Array]:
            found, label = logits(params, batch), batch["label"]
            wrong = (jnp.argmax(found, -1) != label).astype(jnp.float32)
            return {
                "loss": optax.softmax_cross_entropy_with_integer_labels(found, label),
                "error": wrong,
                "rare_error": jnp.where(label >= RARE, wrong, 0) / rare,
            }

        return whole._replace(batches=batches, evaluate=mean_over(measures, validation))


def runs() -> dict[tuple[str, float], Emphasis | None]:
    found: dict[tuple[str, float], Emphasis | None] = {(UNIFORM, math.inf): None}
    for scheme, temperature in itertools.product(SCHEMES, TEMPERATURES):
        found[scheme, temperature] = Emphasis(scheme, temperature)
    return found


def curve(config: Config, seeds: int) -> Iterator[tuple[int, int, dict[str, float]]]:
    """(seed, step, validation measures); all seeds share a compilation."""
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        program = build_program(config, mesh)
        for seed in range(seeds):
            state = program.init(jax.random.key(seed))
            for step in range(config.steps):
                if step % EVERY == 0:
                    yield seed, step, program.task.evaluate(state.params, jax.device_put)
                batch = program.task.batches(seed, step * config.batch_size, config.batch_size)
                state, _ = program.step(state, batch)
            yield seed, config.steps, program.task.evaluate(state.params, jax.device_put)


def measure(quick: bool) -> Table:
    """All runs from all seeds, five of 1,000 steps or, quick, three of 100."""
    rows = []
    for (scheme, temperature), emphasis in runs().items():
        config = dataclasses.replace(get_config(), task=RareDigits(), emphasis=emphasis)
        if quick:
            config = dataclasses.replace(config, steps=EVERY)
        for seed, step, found in curve(config, 3 if quick else SEEDS):
            rows.append((scheme, temperature, seed, step, *(found[name] for name in MEASURES)))
    return {name: np.array(column) for name, column in zip(COLUMNS, zip(*rows), strict=True)}


def by_seed(data: Table, scheme: str, temperature: float, column: str) -> np.ndarray:
    """(seeds, evaluations)."""
    mine = (data["scheme"] == scheme) & np.isclose(data["temperature"], temperature)
    return data[column][mine].reshape(len(np.unique(data["seed"])), -1)


def below(claim: str, data: Table, low: str, high: str, column: str) -> Part:
    """Whether the last values of `low` are below those of `high` at each temperature."""
    said, held = [], []
    for temperature in TEMPERATURES:
        other = math.inf if high == UNIFORM else temperature
        ours = by_seed(data, low, temperature, column)[:, -1]
        theirs = by_seed(data, high, other, column)[:, -1]
        difference, margin = paired(theirs, ours)
        said.append(
            f"r = {temperature:g}: {ours.mean():.4f} under {theirs.mean():.4f}, "
            f"difference {difference:.4f} ± {margin:.4f}"
        )
        held.append(difference > margin)
    return Part(claim, "; ".join(said), all(held))


def judge(data: Table) -> list[Part]:
    return [
        below("validation loss: linupper below uniform", data, LINUPPER, UNIFORM, "loss"),
        below(
            "errors on rare classes: linupper below uniform", data, LINUPPER, UNIFORM, MEASURES[2]
        ),
        below("validation loss: quadratic below uniform", data, QUADRATIC, UNIFORM, "loss"),
        below("validation loss: linupper below quadratic", data, LINUPPER, QUADRATIC, "loss"),
        below("validation loss: linupper below extremes", data, LINUPPER, EXTREMES, "loss"),
    ]


def plot(data: Table) -> Figure:
    figure, panels = plt.subplots(2, 2, figsize=(9, 6.4), sharex=True, sharey="row")
    steps = by_seed(data, UNIFORM, math.inf, "step")[0]
    for column, temperature in enumerate(TEMPERATURES):
        for row, name in enumerate(("loss", "rare_error")):
            axes = panels[row, column]
            for scheme in (UNIFORM, *SCHEMES):
                at = math.inf if scheme == UNIFORM else temperature
                values = by_seed(data, scheme, at, name)[:, 1:]
                (line,) = axes.plot(steps[1:], values.mean(axis=0), label=scheme)
                axes.fill_between(
                    steps[1:],
                    values.min(axis=0),
                    values.max(axis=0),
                    color=line.get_color(),
                    alpha=0.12,
                    linewidth=0,
                )
        panels[0, column].set(title=f"Temperature {temperature:g}: mean and range over seeds")
        panels[1, column].set(xlabel="step")
    panels[0, 0].set(yscale="log", ylabel="validation loss")
    panels[1, 0].set(ylabel="share of errors on rare classes")
    panels[0, 0].legend()
    plt.close(figure)
    return figure


TARGET = Target(
    paper=Paper(
        title="Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining",
        authors="Sow, Woisetschläger, Bulusu, Wang, Jacobsen, Liang",
        year=2025,
        arxiv="2502.06733",
    ),
    figure="none of the paper's: its schemes on scikit-learn's digits with five rare classes, "
    "where the paper has language models and a linear regression",
    claim="Samples of low loss that weigh less let a model reach lower losses in as many steps: "
    "linupper is ahead of uniform weights and of the other schemes, and quadratic of uniform ones.",
    rule="a part holds if at both temperatures the difference after the last step, paired over "
    "seeds, which share their samples and starts, exceeds two standard errors.",
    measure=measure,
    judge=judge,
    plot=plot,
)
