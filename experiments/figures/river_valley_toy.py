r"""The river valley: WSD against cosine and constant rates on a landscape of two coordinates.

.. math::
    L(x, y) = -0.01\,x + 5\,y^2, \qquad
    g = \nabla L + (0, \sqrt{10}\,\xi), \quad \xi \sim N(0, 1)

x runs along the river, a slope without end; y is the mountain, steep and noisy. SGD takes 4,000
steps from (0, 1) at a peak rate of 0.15. The paper argues with such a valley; these constants, this
start and the number of steps are our own, chosen so that both directions matter, and the curves are
not those of a figure in the paper.

WSD and cosine both end at a tenth of the peak, and that matters: over the same 32 seeds a cosine
that falls to zero ends 0.016 ± 0.009 below this WSD, because it alone has left the last noise
behind; with both falling to zero (WSD linearly) the difference, 0.004 ± 0.009, is within its error.

*Reference*: Wen, Li, Wang, Hall, Liang, Ma, 2024, arXiv 2410.05192.
"""

import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import optim
from experiments.figures.paired import above
from experiments.figures.target import Paper, Part, Table, Target

SLOPE, STIFFNESS, NOISE = 0.01, 5.0, math.sqrt(10.0)
STEPS, CHUNK = 4000, 50
DECAY_START = STEPS - STEPS // 10
PEAK, FLOOR = 0.15, 0.015
SCHEDULES = {
    "WSD": optim.wsd_schedule(
        PEAK,
        total_steps=STEPS,
        decay_steps=STEPS - DECAY_START,
        decay_shape="harmonic",
        end_value=FLOOR,
    ),
    "cosine": optax.cosine_decay_schedule(PEAK, STEPS, alpha=FLOOR / PEAK),
    "constant, peak": optax.constant_schedule(PEAK),
    "constant, low": optax.constant_schedule(FLOOR),
}


def loss(position: Mapping[str, jax.Array]) -> jax.Array:
    return -SLOPE * position["x"] + STIFFNESS * position["y"] ** 2


def descend(schedule: optax.Schedule, noise: jax.Array) -> dict[str, jax.Array]:
    """One run of SGD on one noise a step: each chunk's mean noiseless loss, and last position."""
    optimizer = optax.sgd(schedule)
    start = {"x": jnp.array(0.0), "y": jnp.array(1.0)}

    def step(carry: Any, noise: jax.Array) -> tuple[Any, jax.Array]:
        position, state = carry
        value, gradient = jax.value_and_grad(loss)(position)
        gradient = {**gradient, "y": gradient["y"] + NOISE * noise}
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(position, updates), state), value

    def chunk(carry: Any, noise: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        carry, values = jax.lax.scan(step, carry, noise)
        return carry, {"loss": values.mean(), **carry[0]}

    return jax.lax.scan(chunk, (start, optimizer.init(start)), noise.reshape(-1, CHUNK))[1]


def measure(quick: bool) -> Table:
    """All schedules over 32 seeds (8 if quick), which share their noise, in one compilation."""
    seeds = 8 if quick else 32
    key = jax.random.fold_in(jax.random.key(0), zlib.crc32(b"river_valley_toy"))

    @jax.jit
    def runs(key: jax.Array) -> dict[str, dict[str, jax.Array]]:
        noise = jax.random.normal(key, (seeds, STEPS))
        return {
            name: jax.vmap(functools.partial(descend, schedule))(noise)
            for name, schedule in SCHEDULES.items()
        }

    results = runs(key)
    steps = np.arange(CHUNK, STEPS + 1, CHUNK)
    rates = {name: jax.vmap(schedule)(steps - 1) for name, schedule in SCHEDULES.items()}
    shape = (len(SCHEDULES), seeds, len(steps))
    columns = {
        "schedule": np.array(list(SCHEDULES))[:, None, None],
        "seed": np.arange(seeds)[:, None],
        "step": steps,
        "learning_rate": np.stack([rates[name] for name in SCHEDULES])[:, None],
        **{
            column: np.stack([results[name][column] for name in SCHEDULES])
            for column in ("loss", "x", "y")
        },
    }
    return {name: np.broadcast_to(column, shape).ravel() for name, column in columns.items()}


def by_seed(data: Table, schedule: str, column: str) -> np.ndarray:
    """A column of one schedule as (seeds, chunks)."""
    chosen = data["schedule"] == schedule
    return data[column][chosen].reshape(len(np.unique(data["seed"])), -1)


def judge(data: Table) -> list[Part]:
    before = DECAY_START // CHUNK - 1
    wsd, cosine, peak, low = (by_seed(data, name, "loss") for name in SCHEDULES)
    ends = [by_seed(data, name, "x")[:, -1] for name in SCHEDULES]
    return [
        above("before the decay, loss: WSD above cosine", wsd[:, before], cosine[:, before]),
        above("at the end, loss: cosine above WSD", cosine[:, -1], wsd[:, -1]),
        above("at the end, loss: constant peak above WSD", peak[:, -1], wsd[:, -1]),
        above("at the end, loss: constant low above WSD", low[:, -1], wsd[:, -1]),
        above("along the river, x: constant peak above WSD", ends[2], ends[0]),
        above("along the river, x: WSD above cosine", ends[0], ends[1]),
        above("along the river, x: cosine above constant low", ends[1], ends[3]),
    ]


def draw(axes: Axes, data: Table, column: str) -> None:
    """The mean over seeds with the quartiles as a band, and where WSD's decay begins."""
    for name in SCHEDULES:
        steps, values = by_seed(data, name, "step")[0], by_seed(data, name, column)
        # WSD and the constant rate agree until the decay: a thin line above a thick one shows both.
        (line,) = axes.plot(
            steps, values.mean(axis=0), label=name, lw=2.6 if name == "WSD" else 1.3
        )
        lower, upper = np.quantile(values, [0.25, 0.75], axis=0)
        axes.fill_between(steps, lower, upper, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axvline(DECAY_START, color="0.5", linewidth=0.8, linestyle="-")
    axes.set(xlabel="step")


def draw_paths(axes: Axes, data: Table) -> None:
    """The first seed's positions at the ends of chunks, over the contours of the loss."""
    x, y = np.meshgrid(np.linspace(-0.2, 6.3, 100), np.linspace(-1.9, 1.9, 200))
    height = -SLOPE * x + STIFFNESS * y**2
    axes.contourf(x, y, height, 12, cmap="Greys", vmax=3 * height.max())
    colors = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for name, color in reversed(list(zip(SCHEDULES, colors))):
        along, across = by_seed(data, name, "x")[0], by_seed(data, name, "y")[0]
        axes.plot(along, across, color=color, linewidth=0.9, linestyle="-")
        axes.plot(along[-1], across[-1], "o", color=color, markersize=7, markeredgecolor="white")
    axes.grid(False)
    axes.set(xlabel="x, along the river", ylabel="y, up the mountain")


def plot(data: Table) -> Figure:
    figure, ((whole, end), (rates, valley)) = plt.subplots(2, 2, figsize=(9, 6.4))
    draw(whole, data, "loss")
    whole.set(title="Loss without noise: mean and quartiles over seeds", ylim=(-0.15, 2.2))
    whole.annotate("decay", (DECAY_START, 2.08), (-4, 0), textcoords="offset points", ha="right")
    draw(end, data, "loss")
    end.set(title="The same, last steps", xlim=(DECAY_START - 400, STEPS), ylim=(-0.045, 0.13))
    draw(rates, data, "learning_rate")
    rates.set(title="Learning rate", ylim=(0, 0.165))
    draw_paths(valley, data)
    valley.set(title="Paths in the valley (dots: last step), one seed")
    figure.legend(*whole.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    plt.close(figure)
    return figure


TARGET = Target(
    paper=Paper(
        title="Understanding Warmup-Stable-Decay Learning Rates: "
        "A River Valley Loss Landscape Perspective",
        authors="Wen, Li, Wang, Hall, Liang, Ma",
        year=2024,
        arxiv="2410.05192",
    ),
    figure="the river-valley picture, on a toy landscape whose constants are our own "
    "(L = -0.01 x + 5 y^2, noise sqrt(10) on y, 4,000 steps, peak rate 0.15; WSD and cosine end "
    "at a tenth of it; they would tie if both fell to zero, and cosine would win if it alone did)",
    claim="WSD's loss stays above cosine's until the decay and ends below it, because the high "
    "rate travels further along the river and the decay then descends from the mountain.",
    rule="a part holds if the difference, paired over seeds that share their noise, exceeds two "
    f"standard errors; loss is without noise, mean of {CHUNK} steps (the last before the decay at "
    f"step {DECAY_START}, and the last of all); x is that of the last step.",
    measure=measure,
    judge=judge,
    plot=plot,
)
