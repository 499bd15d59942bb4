"""Zeroth-order methods on a prompted classification, each tuned, at one budget of forward passes.

The model and the task are `prompted`'s, 1,000 losses of 16 samples, five seeds. A step of forward
gradients counts as two losses, one of back-propagation as three.

*Reference*: Zhang et al., 2024, arXiv 2402.11592; ZO-Bench/ZO-LLM@bf210fa.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
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
    lower,
    pretrained,
    spread,
    sweep,
)
from experiments.figures.target import Paper, Part, Table, Target

SPSA = zeroth_order.spsa(ALONG, streamed=True)
FORWARD, SGD, BLOCKS = "forward gradient", "ZO-SGD", "block-wise ZO-SGD"
FIRST_ORDER, BEFORE = "SGD (back-propagation)", "before"
SPARSE = "ZO-SGD, half masked"


def optimizer(tx: Callable[[Any], optax.GradientTransformation]) -> Callable[..., Any]:
    return lambda loss, rate: zeroth_order.zo_optimizer(loss, tx(rate), SPSA, ALONG)


def mezo(estimator: Any, along: Any = ALONG) -> Callable[..., Any]:
    return lambda loss, rate: zeroth_order.mezo(loss, rate, estimator, along)


def first_order(loss: Any, rate: Any) -> zeroth_order.Algorithm:
    """SGD, in the shape of the others."""

    def init(params: Any, key: jax.Array) -> zeroth_order.DescentState:
        return zeroth_order.DescentState(params, key, jnp.int32(0))

    def update(state: zeroth_order.DescentState, batch: Any) -> tuple[Any, None]:
        gradient = jax.grad(lambda p: jnp.mean(loss(p, batch)))(state.params)
        params = jax.tree.map(lambda p, g: p - rate * g, state.params, gradient)
        return state._replace(params=params, step=state.step + 1), None

    return zeroth_order.Algorithm(init, update)


def settings(known: Pretrained) -> dict[str, Setting]:
    """The methods, from rates near their best."""
    groups = zeroth_order.layer_groups(ALONG, known.params)
    make = functools.partial(zeroth_order.spsa, streamed=True)
    masked = zeroth_order.random_mask(ALONG, 0.5)
    thin = zeroth_order.low_rank(ALONG, 1)

    def blockwise(loss: Any, rate: Any) -> zeroth_order.Algorithm:
        return zeroth_order.mezo_blockwise(loss, rate, make, ALONG, groups)

    def conservative(loss: Any, rate: Any) -> zeroth_order.Algorithm:
        return zeroth_order.zo_sgd_conservative(loss, rate, SPSA, ALONG)

    return {
        SGD: Setting(mezo(SPSA), 3e-4, 2),
        "ZO-SGD-MMT": Setting(optimizer(lambda r: optax.sgd(r, momentum=0.9)), 3e-5, 2),
        "ZO-SGD-Sign, code's": Setting(mezo(zeroth_order.signed(SPSA)), 1e-3, 2),
        "ZO-SGD-Sign, paper's": Setting(optimizer(optax.sign_sgd), 1e-3, 2),
        "ZO-SGD-Cons": Setting(conservative, 3e-4, 5),
        "ZO-Adam": Setting(optimizer(optax.adam), 1e-3, 2),
        FORWARD: Setting(mezo(zeroth_order.forward_gradient(ALONG, streamed=True)), 3e-4, 2),
        BLOCKS: Setting(blockwise, 1e-3, 10),
        SPARSE: Setting(mezo(make(masked), masked), 3e-4, 2),
        "ZO-SGD, rank 1": Setting(mezo(make(thin), thin), 3e-4, 2),
        FIRST_ORDER: Setting(first_order, 3e-2, 3),
    }


def measure(quick: bool) -> Table:
    known = pretrained(STEPS_QUICK if quick else STEPS)
    chosen = settings(known)
    if quick:
        chosen = {name: chosen[name] for name in (SGD, FORWARD, BLOCKS, SPARSE, FIRST_ORDER)}
    start = (BEFORE, 0.0, 0, *before(known, known.params))
    return as_table([start, *sweep(known, chosen, 10 if quick else 1000, 2 if quick else 5)])


def judge(data: Table) -> list[Part]:
    loss = finals(data, "test_loss")
    zero_shot = float(loss.pop(BEFORE)[0])
    first = loss.pop(FIRST_ORDER)
    behind = [name for name, values in loss.items() if not values.mean() < zero_shot]
    best = min(loss, key=lambda name: float(loss[name].mean()))

    def below(claim: str, name: str, other: str) -> Part:
        shown = f"{spread(loss[name])} against {spread(loss[other])}"
        return Part(claim, shown, lower(loss[name], loss[other]))

    return [
        Part(
            "with the prompt every method lowers the loss of the pretrained model",
            f"{zero_shot:.3f} before; "
            + (", ".join(behind) + " above" if behind else f"{best} {spread(loss[best])} best"),
            not behind,
        ),
        Part(
            "back-propagation stays ahead at the same budget",
            f"{spread(first)} against {spread(loss[best])}",
            lower(first, loss[best]),
        ),
        Part(
            "forward gradients are no worse than ZO-SGD",
            f"{spread(loss[FORWARD])} against {spread(loss[SGD])}",
            not lower(loss[SGD], loss[FORWARD]),
        ),
        below("block-wise descent improves ZO-SGD", BLOCKS, SGD),
        below("gradient sparsity improves ZO-SGD", SPARSE, SGD),
    ]


def plot(data: Table) -> Figure:
    """Test losses of all seeds, and accuracies."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True)
    for axes, column in zip(panels, ("test_loss", "test_accuracy"), strict=True):
        found = finals(data, column)
        zero_shot = found.pop(BEFORE)[0]
        for place, values in enumerate(found.values()):
            axes.plot(values, [place] * len(values), "o", markersize=4)
        axes.axvline(zero_shot, color="#999999", linewidth=0.8)
        axes.set_yticks(range(len(found)), list(found))
        axes.set_xlabel(column.replace("_", " "))
        mean = np.array([values.mean() for values in found.values()])
        axes.plot(mean, range(len(mean)), "|", color="black", markersize=10)
    panels[0].invert_yaxis()
    plt.close(figure)
    return figure


TARGET = Target(
    paper=Paper(
        title="Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning",
        authors="Zhang et al.",
        year=2024,
        arxiv="2402.11592",
    ),
    figure="no figure of the paper: its comparison at 0.16 M parameters and 1,000 forward passes, "
    "where the paper has 1.3 B and more and 40,000, on lines of Python's sources, every method at "
    "its own best rate; the line is the model before any step.",
    claim="Aligned with pretraining by a prompt, zeroth-order methods tune a language model; "
    "forward gradients are a strong baseline, and block-wise descent and gradient sparsity improve "
    "on plain ZO-SGD.",
    rule="a method is below another when the means of the test losses over five seeds differ by "
    "two standard errors; rates are chosen by the training loss of one seed",
    measure=measure,
    judge=judge,
    plot=plot,
)
