"""MeZO's ablations on a prompted classification: the prompt, and two losses a step against one.

The model and the task are `prompted`'s, 1,000 losses of 16 samples, five seeds. Without a prompt a
new head of two classes is tuned with everything else, by MeZO, or exactly beside it (hybrid).

*Reference*: Malladi et al., 2023, arXiv 2305.17333, Tables 5 and 11; princeton-nlp/MeZO@552cb1b.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
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

TWO, ONE, NO_PROMPT, HYBRID = (
    "prompt, two losses a step",
    "prompt, one loss a step",
    "no prompt",
    "no prompt, exact head",
)
BEFORE = "before, prompt"


def two_point(loss: Any, rate: Any) -> zeroth_order.Algorithm:
    estimator = zeroth_order.spsa(ALONG, streamed=True)
    return zeroth_order.mezo(loss, rate, estimator, ALONG)


def one_point(epsilon: float, loss: Any, rate: Any) -> zeroth_order.Algorithm:
    return zeroth_order.one_point_residual(loss, rate, ALONG, epsilon=epsilon, streamed=True)


def hybrid(loss: Any, rate: Any) -> zeroth_order.Algorithm:
    """MeZO with the exact gradient of the head, in the shape of the others."""
    along = zeroth_order.direction(stack={"blocks/.*": 1}, select={"(?!classes).*": True})
    estimator = zeroth_order.spsa(along, streamed=True)

    def init(params: Any, key: jax.Array) -> zeroth_order.DescentState:
        return zeroth_order.DescentState(params, key, jnp.int32(0))

    def update(state: zeroth_order.DescentState, batch: Any) -> tuple[Any, None]:
        fn = zeroth_order.hybrid_value_and_grad(
            lambda p: loss(p, batch), estimator, along, exact={"classes": True}
        )
        seed = jax.random.bits(jax.random.fold_in(state.key, state.step), (), "uint32")
        _, gradient = fn(state.params, seed)
        params = jax.tree.map(lambda p, g: p - rate * g, state.params, gradient)
        return state._replace(params=params, step=state.step + 1), None

    return zeroth_order.Algorithm(init, update)


def settings(known: Pretrained) -> dict[str, Setting]:
    head = 0.02 * jax.random.normal(jax.random.key(0), (256, 2))
    new = {**known.params, "classes": head}
    return {
        TWO: Setting(two_point, 3e-4, 2),
        ONE: Setting(functools.partial(one_point, 1e-2), 1e-5, 1),
        NO_PROMPT: Setting(two_point, 3e-5, 2, new, prompt=False),
        HYBRID: Setting(hybrid, 3e-5, 4, new, prompt=False),
    }


def measure(quick: bool) -> Table:
    known = pretrained(STEPS_QUICK if quick else STEPS)
    start = (BEFORE, 0.0, 0, *before(known, known.params))
    chosen = settings(known)
    return as_table([start, *sweep(known, chosen, 8 if quick else 1000, 2 if quick else 5)])


def judge(data: Table) -> list[Part]:
    error = {name: 1 - values for name, values in finals(data, "test_accuracy").items()}
    loss = finals(data, "test_loss")
    zero_shot = 1 - float(error[BEFORE][0])
    return [
        Part(
            "with a prompt the model classifies before any step",
            f"{zero_shot:.1%} of test lines right",
            zero_shot > 0.6,
        ),
        Part(
            "MeZO with the prompt is more accurate than without",
            f"errors {spread(error[TWO])} against {spread(error[NO_PROMPT])}",
            lower(error[TWO], error[NO_PROMPT]),
        ),
        Part(
            "two losses a step beat one at the same number of losses",
            f"loss {spread(loss[TWO])} against {spread(loss[ONE])}",
            lower(loss[TWO], loss[ONE]),
        ),
        Part(
            "beside the paper: an exact head improves MeZO without a prompt",
            f"loss {spread(loss[HYBRID])} against {spread(loss[NO_PROMPT])}",
            lower(loss[HYBRID], loss[NO_PROMPT]),
        ),
    ]


def plot(data: Table) -> Figure:
    figure, panels = plt.subplots(1, 2, figsize=(8, 2.4), sharey=True)
    for axes, column in zip(panels, ("test_loss", "test_accuracy"), strict=True):
        found = finals(data, column)
        axes.axvline(found.pop(BEFORE)[0], color="#999999", linewidth=0.8)
        for place, values in enumerate(found.values()):
            axes.plot(values, [place] * len(values), "o", markersize=4)
        axes.set_yticks(range(len(found)), list(found))
        axes.set_xlabel(column.replace("_", " "))
    panels[0].invert_yaxis()
    plt.close(figure)
    return figure


TARGET = Target(
    paper=Paper(
        title="Fine-Tuning Language Models with Just Forward Passes",
        authors="Malladi et al.",
        year=2023,
        arxiv="2305.17333",
    ),
    figure="Tables 5 and 11 at 0.16 M parameters and 1,000 forward passes, where the paper has "
    "350 M and 200,000, on lines of Python's sources, every method at its own best rate; the line "
    "is the prompted model before any step.",
    claim="MeZO needs a prompt that makes the task like pretraining, and estimates from one loss a "
    "step are much less efficient than those from two.",
    rule="means over five seeds differ by two standard errors; a prompted model classifies when it "
    "has 60 % of balanced classes right",
    measure=measure,
    judge=judge,
    plot=plot,
)
