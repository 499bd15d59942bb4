"""QZO: a language model of 8 and 4 bits, tuned by its scales, against MeZO in full precision.

The model and the task are `prompted`'s, 1,000 losses of 16 samples, five seeds; matrices of the
blocks are quantised in groups of 16 rows. Memory is of the parameters alone, the rest of a step
being the same; MeZO's in 16 bits is half of its bytes here.

*Reference*: Shang et al., 2025, arXiv 2505.13430; maifoundations/QZO@f843ddc.
"""

from typing import Any

import jax
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
    before,
    finals,
    pretrained,
    spread,
    sweep,
)
from experiments.figures.target import Paper, Part, Table, Target
from experiments.models.quantized import quantized

MEZO, GROUP, BITS = "MeZO, float32", 16, (8, 4)
SCALES = zeroth_order.direction(stack={"blocks/.*": 1}, select={".*kernel/scale": True})


def named(bits: int) -> str:
    return f"QZO, int{bits}"


def untuned(name: str) -> str:
    return f"{name}, before"


def of_bits(known: Pretrained, bits: int) -> Any:
    return quantized(known.params, {"blocks/.*kernel": True}, bits=bits, group=GROUP)


def sizes(params: Any) -> Any:
    """The mean scale of each layer of each leaf, by which its probe and step are multiplied."""
    leaves = SCALES(params)

    def one(leaf: Any, value: Any) -> Any:
        return 1.0 if leaf is None else abs(value).mean(tuple(range(leaf.stack, value.ndim)))

    ends = lambda x: x is None or isinstance(x, zeroth_order.Leaf)  # noqa: E731
    return jax.tree.map(one, leaves, params, is_leaf=ends)


def settings(known: Pretrained) -> dict[str, Setting]:
    def mezo(loss: Any, rate: Any) -> zeroth_order.Algorithm:
        estimator = zeroth_order.spsa(ALONG, streamed=True)
        return zeroth_order.mezo(loss, rate, estimator, ALONG)

    def of(params: Any) -> Setting:
        along = zeroth_order.scaled(SCALES, sizes(params))

        def make(loss: Any, rate: Any) -> zeroth_order.Algorithm:
            estimator = zeroth_order.spsa(along, epsilon=1e-2, streamed=True)
            return zeroth_order.qzo(loss, rate, estimator, along)

        return Setting(make, 1e-3, 2, params)

    return {MEZO: Setting(mezo, 3e-4, 2)} | {named(b): of(of_bits(known, b)) for b in BITS}


def measure(quick: bool) -> Table:
    known = pretrained(STEPS_QUICK if quick else STEPS)
    chosen = settings(known)
    rows = sweep(known, chosen, 4 if quick else 1000, 2 if quick else 5)
    held = {}
    for name, setting in chosen.items():
        params = known.params if setting.params is None else setting.params
        rows.insert(0, (untuned(name), 0.0, 0, *before(known, params)))
        held[name] = sum(x.nbytes for x in jax.tree.leaves(params["blocks"]))
    data = as_table(rows)
    data["block_bytes"] = np.array([held[n.removesuffix(", before")] for n in data["method"]])
    return data


def judge(data: Table) -> list[Part]:
    loss = finals(data, "test_loss")
    held = {name: finals(data, "block_bytes")[name][0] for name in loss}
    parts = []
    for bits in BITS:
        name = named(bits)
        first, share = float(loss[untuned(name)][0]), held[name] / held[MEZO]
        error = loss[name].std(ddof=1) / len(loss[name]) ** 0.5
        gained = first - loss[name].mean()
        parts.append(
            Part(
                f"{name}: tuning the scales alone lowers the loss",
                f"{first:.3f} before, {spread(loss[name])} after",
                bool(gained > 2 * error),
            )
        )
        parts.append(
            Part(
                f"{name}: the blocks take less than {bits / 16 + 0.1:.0%} of 16 bits' memory",
                f"{held[name]:,} bytes, {2 * share:.0%}",
                bool(2 * share < bits / 16 + 0.1),
            )
        )
        whole = float(loss[untuned(MEZO)][0]) - loss[MEZO].mean()
        parts.append(
            Part(
                f"{name}: at least half of what MeZO gains in full precision",
                f"{gained:.3f} of {whole:.3f} nats",
                bool(gained >= whole / 2),
            )
        )
    return parts


def plot(data: Table) -> Figure:
    figure, axes = plt.subplots(figsize=(5, 3))
    loss, held = finals(data, "test_loss"), finals(data, "block_bytes")
    for place, name in enumerate([MEZO, *map(named, BITS)]):
        size = held[name][0] / 1024
        color = f"C{place}"
        axes.plot(size, loss[untuned(name)][0], "x", color=color)
        axes.plot([size] * len(loss[name]), loss[name], "o", color=color, label=name, markersize=4)
    axes.set(xscale="log", xlabel="KiB of the blocks (x: before tuning)", ylabel="test loss")
    axes.legend()
    plt.close(figure)
    return figure


TARGET = Target(
    paper=Paper(
        title="Fine-tuning Quantized Neural Networks with Zeroth-order Optimization",
        authors="Shang et al.",
        year=2025,
        arxiv="2505.13430",
    ),
    figure="no figure of the paper: its comparison at 0.16 M parameters and 1,000 forward passes, "
    "where the paper has 6.7 B and 40,000, on lines of Python's sources, every method at its own "
    "best rate. Probes and steps are in proportion to each layer's scales; in the paper they are "
    "absolute, with a probe of the size of a scale.",
    claim="The scales of a quantised model, tuned by clipped zeroth-order estimates, are enough to "
    "fine-tune it, with a fraction of the memory.",
    rule="a loss is lower when it is by two standard errors over five seeds; what the paper's "
    "models lose to quantisation differs by task, so that half of MeZO's gain is comparable",
    measure=measure,
    judge=judge,
    plot=plot,
)
