"""Seven optimizers on a small decoder, each at its own tuned rate, three seeds.

Every run is `python -m experiments run --config=experiments/configs/language/optimizers.py:NAME` on
the sources of the Python standard library, 1,000 steps of 1,024 tokens. A sweep by factors of 2
starts at the config's rate and goes on until the best rate has a worse one on either side; the best
is then run from two more seeds. Runs that are done are not repeated when the command is.

*Reference*: Wen, Hall, Ma, Liang, 2025, arXiv 2509.02046.
"""

import concurrent.futures
import math
import os
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.configs.language.optimizers import OPTIMIZERS, get_config
from experiments.figures.processes import SMALL, execute
from experiments.figures.target import Paper, Part, Table, Target

MATRIX = ("muon", "scion", "soap", "kron")
SEEDS = 3
RUNS = Path("runs", "decoder_optimizers")


def run(name: str, rate: float, seed: int, steps: int, *more: str) -> float:
    """Bits per byte at the end of one run, inf if it stopped."""
    try:
        return execute(
            *(RUNS / f"{name}-{rate:.3g}-{seed}-{steps}", steps, "run"),
            f"--config=experiments/configs/language/optimizers.py:{name}",
            f"--config.optimizer.learning_rate={rate}",
            *(f"--config.seed={seed}", f"--config.steps={steps}", *more),
        )
    except FloatingPointError:
        return math.inf


def tuned(name: str, steps: int, start: float, *more: str) -> list[tuple[str, float, int, float]]:
    """The sweep from rate `start`, then the other seeds of the best rate."""
    bits: dict[float, float] = {}

    def at(power: int) -> float:
        rate = start * 2.0**power
        if rate not in bits:
            bits[rate] = run(name, rate, 0, steps, *more)
        return bits[rate]

    best = descend(at)
    rate = start * 2.0**best
    others = [(name, rate, seed, run(name, rate, seed, steps, *more)) for seed in range(1, SEEDS)]
    return [(name, rate, 0, value) for rate, value in sorted(bits.items())] + others


def descend(at: Callable[[int], float], most: int = 8) -> int:
    """The integer with a value below those of its neighbours, searched from 0."""
    best = min((0, -1, 1), key=at)
    while abs(best) < most and not at(best) <= min(at(best - 1), at(best + 1)):
        best = min((best - 1, best + 1), key=at)
    return best


def measure(quick: bool) -> Table:
    """All sweeps, two at a time: a run uses one core."""
    steps, more = (4, SMALL) if quick else (get_config().steps, ())
    names = ("adamw", "muon") if quick else tuple(OPTIMIZERS)
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, os.cpu_count() or 1)) as pool:
        jobs = [
            pool.submit(tuned, name, steps, OPTIMIZERS[name].learning_rate, *more) for name in names
        ]
        rows = [row for job in jobs for row in job.result()]
    columns = zip(*rows, strict=True)
    names_of = ("optimizer", "learning_rate", "seed", "bits_per_byte")
    return {name: np.array(column) for name, column in zip(names_of, columns, strict=True)}


def finals(data: Table) -> dict[str, tuple[float, np.ndarray]]:
    """(tuned rate, bits per byte of every seed) of each optimizer, best first."""
    found = {}
    for name in dict.fromkeys(data["optimizer"].tolist()):
        mine = data["optimizer"] == name
        rate = data["learning_rate"][mine & (data["seed"] == SEEDS - 1)][0]
        found[name] = (rate, data["bits_per_byte"][mine & (data["learning_rate"] == rate)])
    return dict(sorted(found.items(), key=lambda item: item[1][1].mean()))


def spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def judge(data: Table) -> list[Part]:
    """Matrix methods against AdamW, the ranking, and the rates."""
    final = finals(data)
    adamw = final["adamw"][1]
    parts = [
        Part(
            f"{name}, which multiplies gradients by matrices, ends below AdamW",
            f"{spread(values)} against {spread(adamw)}",
            bool(adamw.mean() - values.mean() > 2 * _error(values, adamw)),
        )
        for name, (_, values) in final.items()
        if name in MATRIX
    ]
    count = sum(name in MATRIX for name in final)
    first = list(final)[:count]
    rates = {name: rate for name, (rate, _) in final.items()}
    return [
        *parts,
        Part(
            "the fastest optimizers all multiply gradients by matrices",
            ", ".join(f"{name} {spread(values)}" for name, (_, values) in final.items()),
            all(name in MATRIX for name in first),
        ),
        Part(
            "the best rate of one optimizer is not that of another",
            ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items()),
            bool(max(rates.values()) >= 2 * min(rates.values())),
        ),
    ]


def _error(one: np.ndarray, other: np.ndarray) -> float:
    """Standard error of a difference of means."""
    return math.hypot(one.std(ddof=1), other.std(ddof=1)) / math.sqrt(len(one))


def plot(data: Table) -> Figure:
    """Left the sweeps, right the tuned runs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.8))
    final = finals(data)
    for place, (name, (_, values)) in enumerate(final.items()):
        mine = (data["optimizer"] == name) & (data["seed"] == 0)
        style = {"marker": "o" if name in MATRIX else "s", "color": f"C{place}"}
        left.plot(data["learning_rate"][mine], data["bits_per_byte"][mine], label=name, **style)
        right.plot([place] * len(values), values, linestyle="none", **style)
    left.set(xscale="log", xlabel="peak learning rate", ylabel="validation bits per byte")
    best = min(values.min() for _, values in final.values())
    left.set_ylim(best - 0.05, best + 1.0)
    left.legend(ncols=2)
    right.set_xticks(range(len(final)), list(final), rotation=45, ha="right")
    right.set_ylabel("validation bits per byte")
    return figure


TARGET = Target(
    paper=Paper(
        title="Fantastic Pretraining Optimizers and Where to Find Them",
        authors="Wen, Hall, Ma, Liang",
        year=2025,
        arxiv="2509.02046",
    ),
    figure=(
        "no figure of the paper: its question at 0.47 M parameters and 2.2 tokens a parameter, "
        "where the paper has 130 M to 1.2 B and 20 and more, on Python source in bytes"
    ),
    claim=(
        "With every optimizer tuned on its own, all the fastest ones use matrices as "
        "preconditioners, and the best hyper-parameters of one do not serve another."
    ),
    rule=(
        "an optimizer is below another when the difference of their means over three seeds exceeds "
        "two standard errors; the ranking is by means"
    ),
    measure=measure,
    judge=judge,
    plot=plot,
)
