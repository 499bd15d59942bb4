"""Sparse-MeZO: perturbing the small weights alone, against all, random and large ones.

The model and the task are `prompted`'s, 1,000 losses of 16 samples, five seeds; thresholds from the
pretrained weights of each layer.

*Reference*: Liu et al., 2024, arXiv 2402.15751; no code was found.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import zeroth_order
from experiments.figures.prompted import (
    ALONG,
    STEPS,
    STEPS_QUICK,
    Pretrained,
    Setting,
    as_table,
    finals,
    lower,
    pretrained,
    spread,
    sweep,
)
from experiments.figures.target import Paper, Part, Table, Target

MEZO, SPARSITIES = "MeZO", (0.5, 0.75)


def small(sparsity: float) -> str:
    return f"S-MeZO, {sparsity:.0%} still"


def random(sparsity: float) -> str:
    return f"R-MeZO, {sparsity:.0%} still"


def settings(known: Pretrained) -> dict[str, Setting]:
    def along_one(along: zeroth_order.Direction) -> Setting:
        def make(loss: Any, rate: Any) -> zeroth_order.Algorithm:
            estimator = zeroth_order.spsa(along, streamed=True)
            return zeroth_order.mezo(loss, rate, estimator, along)

        return Setting(make, 3e-4, 2)

    found = {MEZO: along_one(ALONG)}
    for sparsity in SPARSITIES:
        thresholds = zeroth_order.magnitude_thresholds(ALONG, known.params, sparsity)
        found[small(sparsity)] = along_one(zeroth_order.small_weights(ALONG, thresholds))
        found[random(sparsity)] = along_one(zeroth_order.random_mask(ALONG, sparsity, seed=0))
    return found


def measure(quick: bool) -> Table:
    known = pretrained(STEPS_QUICK if quick else STEPS)
    found = sweep(known, settings(known), 4 if quick else 1000, 2 if quick else 5)
    return as_table(found)


def best_rates(data: Table) -> dict[str, float]:
    return {str(name): float(data["rate"][data["method"] == name][-1]) for name in data["method"]}


def judge(data: Table) -> list[Part]:
    loss, rates = finals(data, "test_loss"), best_rates(data)
    parts = []
    for sparsity in SPARSITIES:
        mine = loss[small(sparsity)]
        for other in (MEZO, random(sparsity)):
            shown = f"{spread(mine)} against {spread(loss[other])}"
            claim = f"{small(sparsity)}: a lower loss than {other}"
            parts.append(Part(claim, shown, lower(mine, loss[other])))
    largest = max(rates[small(sparsity)] for sparsity in SPARSITIES)
    shown = f"{largest:.3g} against {rates[MEZO]:.3g}"
    larger = Part("small weights take a larger rate than all", shown, largest > rates[MEZO] * 1.1)
    return [*parts, larger]


def plot(data: Table) -> Figure:
    """Left the sweeps, right the tuned runs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
    found = finals(data, "test_loss")
    for place, (name, values) in enumerate(found.items()):
        mine = (data["method"] == name) & (data["seed"] == 0)
        order = np.argsort(data["rate"][mine])
        loss = data["test_loss"][mine][order]
        left.plot(data["rate"][mine][order], loss, "o-", label=name, markersize=4)
        right.plot(values, [place] * len(values), "o", markersize=4)
    least = min(values.min() for values in found.values())
    left.set(xscale="log", xlabel="rate", ylabel="test loss", ylim=(least - 0.02, least + 0.4))
    left.legend()
    right.set_yticks(range(len(found)), list(found))
    right.set_xlabel("test loss")
    right.invert_yaxis()
    plt.close(figure)
    return figure


TARGET = Target(
    paper=Paper(
        title="Sparse MeZO: Less Parameters for Better Performance in Zeroth-Order LLM Fine-Tuning",
        authors="Liu et al.",
        year=2024,
        arxiv="2402.15751",
    ),
    figure="no figure of the paper: its ablation at 0.16 M parameters and 1,000 forward passes, "
    "where the paper has 7 B, on lines of Python's sources, every method at its own best rate.",
    claim="Perturbing and updating only the small weights is better than all of them and than a "
    "random choice of as many, and takes a larger rate.",
    rule="means of the test loss over five seeds differ by two standard errors",
    measure=measure,
    judge=judge,
    plot=plot,
)
