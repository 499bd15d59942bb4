"""One run for three budgets: WSD, WSD-S and a cyclic cosine beside a cosine for each budget.

The model of configs/language/quickstart.py is trained to budgets of T, 2T and 4T steps, T = 80,
from three seeds, on one core a run, and validated on 128 sequences instead of 512. All strategies
have the same peak, which was tuned for none of them, and the same warm-up of T / 10 steps, and end
every decay at a tenth of the peak; decays of WSD and WSD-S are harmonic and a tenth of the budget.
The strategies, and the steps that they have made in all when they have the model of each budget::

    oracle        a run with a cosine for each budget             T, 3T, 7T
    wsd           branches of one run, of T, 2T, 4T steps each    T, 2.1T, 4.3T
    wsd, equal    the same, branched off so early that it spends  T, 2T, 4T
    wsd-s         one run, on from each decayed checkpoint        T, 2T, 4T
    cyclic        one run, a cosine for each budget               T, 2T, 4T

So the models of `wsd, equal` have been trained for T, 1.9T and 3.7T steps: the decays of the
smaller budgets are no part of them. After T steps both of WSD and WSD-S are one model, bit for bit,
and the oracle and the cyclic cosine have the same rates up to rounding; that alone moves them apart
by up to 0.013 bits per byte, so that smaller gaps mean nothing.

Runs lie in runs/budgets; those that are done are not repeated when the command is. There,
T-SEED/wsd/figures/branches.png shows a run with its decays (results/budgets/branches.png: seed 0).

*Reference*: Wen, Li, Wang, Hall, Liang, Ma, 2024, arXiv 2410.05192.
"""

import concurrent.futures
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.configs.language.quickstart import get_config
from experiments.figures.paired import paired
from experiments.figures.processes import SMALL, execute, reached
from experiments.figures.target import Paper, Part, Table, Target

UNIT = 80  # steps T
SEEDS = 3
RUNS = Path("runs", "budgets")
PEAK = get_config().optimizer.learning_rate
END = PEAK / 10


class Model(NamedTuple):
    """What a strategy has for one budget."""

    strategy: str
    budget: int  # steps that it may spend
    trained: int  # steps of this model
    spent: int  # steps of the strategy, up to here
    workdir: str


def plan(unit: int) -> list[Model]:
    """The models of every strategy; `workdir` is below that of the seed."""
    budgets = (unit, 2 * unit, 4 * unit)
    models = []
    for number, budget in enumerate(budgets):
        decay = budget // 10
        past = sum(budgets[:number])
        models += [
            Model("oracle", budget, budget, past + budget, f"oracle-{budget}"),
            Model("wsd", budget, budget, budget + past // 10, branch(budget - decay, decay)),
        ]
        early = budget - past // 10 - decay
        name = branch(early, decay) if not past else f"equal-{early}+{decay}"
        models += [
            Model("wsd, equal", budget, early + decay, budget, name),
            Model("wsd-s", budget, budget, budget, "wsd-s"),
            Model("cyclic", budget, budget, budget, "cyclic"),
        ]
    return models


def branch(at: int, decay: int) -> str:
    return f"wsd/branches/{at}+{decay}"


def jobs(unit: int, seed: int, more: tuple[str, ...]) -> list[Callable[[], None]]:
    """The runs of one seed; the branches follow theirs."""
    runs = home(unit, seed)
    budgets = (unit, 2 * unit, 4 * unit)
    end = {"end_value": END}

    def start(workdir: Path, steps: int, name: str, kwargs: dict, *flags: str) -> None:
        execute(
            *(workdir, steps, "run", "--config=experiments/configs/language/quickstart.py"),
            *(f"--config.seed={seed}", f"--config.steps={steps}"),
            f"--config.optimizer.schedule.name={name}",
            f"--config.optimizer.schedule.kwargs={ {'warmup_steps': unit // 10, **kwargs} }",
            *(f"--config.evaluate_every={unit}", "--config.task.validation_sequences=128"),
            *("--config.log_every=4", *more, *flags),
        )

    def wsd() -> None:
        steps = budgets[-1] - budgets[-1] // 10
        kept = (f"--config.checkpoint_every={unit // 10}", "--config.keep_checkpoints=40")
        start(runs / "wsd", steps, "wsd_schedule", {"decay_steps": 0}, *kept)
        for model in plan(unit):
            if model.strategy.startswith("wsd,") or model.strategy == "wsd":
                decay = model.budget // 10
                execute(
                    *(runs / model.workdir, model.trained, "branch", f"--from={runs / 'wsd'}"),
                    *(f"--at={model.trained - decay}", f"--decay={decay}"),
                    *("--shape=harmonic", f"--end_value={END}"),
                )

    def wsd_s() -> None:
        kwargs = {"budgets": budgets, "decay_shape": "harmonic", **end}
        start(runs / "wsd-s", budgets[-1], "wsd_s_schedule", kwargs)

    def cyclic() -> None:
        kwargs = {"budgets": budgets, **end}
        start(runs / "cyclic", budgets[-1], "cyclic_cosine_schedule", kwargs)

    def oracle() -> None:
        kwargs = {"init_value": 0.0, **end}
        for budget in budgets:
            name = "optax.warmup_cosine_decay_schedule"
            start(runs / f"oracle-{budget}", budget, name, kwargs)

    return [wsd, oracle, wsd_s, cyclic]


def measure(quick: bool) -> Table:
    """Every run, two at a time: one uses one core."""
    unit, seeds = (10, 2) if quick else (UNIT, SEEDS)
    more = SMALL if quick else ()
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        waiting = [pool.submit(job) for seed in range(seeds) for job in jobs(unit, seed, more)]
        for job in concurrent.futures.as_completed(waiting):
            if job.exception():
                pool.shutdown(wait=False, cancel_futures=True)
            job.result()
    rows = [
        (
            m.strategy,
            m.budget,
            m.trained,
            m.spent,
            seed,
            reached(home(unit, seed) / m.workdir, m.trained),
        )
        for m in plan(unit)
        for seed in range(seeds)
    ]
    names = ("strategy", "budget", "trained", "spent", "seed", "bits_per_byte")
    return {name: np.array(column) for name, column in zip(names, zip(*rows), strict=True)}


def home(unit: int, seed: int) -> Path:
    return RUNS / f"{unit}-{seed}"


def finals(data: Table, strategy: str, budget: int) -> np.ndarray:
    """Bits per byte of every seed, in the order of the seeds."""
    mine = (data["strategy"] == strategy) & (data["budget"] == budget)
    return data["bits_per_byte"][mine][np.argsort(data["seed"][mine])]


def judge(data: Table) -> list[Part]:
    """WSD-S against what spends as many steps, budget by budget."""
    first, *later = np.unique(data["budget"]).tolist()
    pairs = [("wsd, equal", budget) for budget in later]
    pairs += [("cyclic", budget) for budget in (first, *later)]
    parts = []
    for other, budget in pairs:
        mine, theirs = finals(data, "wsd-s", budget), finals(data, other, budget)
        lower, margin = paired(theirs, mine)
        name = {"wsd, equal": "WSD", "cyclic": "the cyclic cosine"}[other]
        parts.append(
            Part(
                f"WSD-S is below {name} after {budget} steps spent",
                f"{mine.mean():.3f} against {theirs.mean():.3f}, {lower:+.3f} ± {margin:.3f} lower",
                lower > margin,
            )
        )
    return parts


def plot(data: Table) -> Figure:
    """Left what each strategy reaches, right how far that is above a cosine of that length."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.0))
    budgets = np.unique(data["budget"])
    oracle = np.stack([finals(data, "oracle", budget) for budget in budgets])
    for place, strategy in enumerate(dict.fromkeys(data["strategy"].tolist())):
        values = np.stack([finals(data, strategy, budget) for budget in budgets])
        spent = data["spent"][data["strategy"] == strategy].max()
        style = {"marker": "os^vD"[place], "color": f"C{place}"}
        left.plot(budgets, values.mean(1), label=f"{strategy} ({spent} steps in all)", **style)
        above = values - oracle
        right.errorbar(budgets, above.mean(1), _error(above), capsize=2, **style)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, [str(budget) for budget in budgets])
        axes.set_xlabel("budget (steps)")
    left.set_ylabel("validation bits per byte")
    left.legend()
    right.set_ylabel("bits per byte above the oracle")
    return figure


def _error(values: np.ndarray) -> np.ndarray:
    """Standard errors of the means of rows."""
    return values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])


TARGET = Target(
    paper=Paper(
        title=(
            "Understanding Warmup-Stable-Decay Learning Rates: "
            "A River Valley Loss Landscape Perspective"
        ),
        authors="Wen, Li, Wang, Hall, Liang, Ma",
        year=2024,
        arxiv="2410.05192",
    ),
    figure=(
        "no figure of the paper: its comparison at 1.2 M parameters and 80 k to 330 k bytes, where "
        "the paper has 0.1 B to 1.2 B parameters, with one untuned peak for all"
    ),
    claim=(
        "WSD-S outperforms WSD and Cyclic-Cosine in obtaining multiple checkpoints across various "
        "compute budgets in a single run."
    ),
    rule=(
        "WSD-S is below another strategy when the mean over three seeds of their difference, seed "
        "by seed, exceeds two standard errors; WSD is charged for the decays of all its branches"
    ),
    measure=measure,
    judge=judge,
    plot=plot,
)
