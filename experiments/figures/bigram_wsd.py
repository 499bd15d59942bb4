r"""The river valley on text of two kinds of tokens: WSD, cosine and a constant rate by kind of row.

The chain of `experiments.tasks.bigram`: even tokens have one likely successor, odd ones 32, all
equally likely; with a small probability, the spread, any token follows. A table of logits is
trained by SGD, 2,000 steps of 16 sequences of 64 transitions. What counts is the excess of each
kind of row over its entropy, exactly, under the stationary distribution; the two add up to the
excess of the loss.

There are two chains. With the task's own spread of 0.02 a near-deterministic row has its optimum at
finite logits, and reaches it early. With 0.0005 its optimum is far away, and it goes on for the
whole run. In both, the high-entropy rows have to give up the tokens that do not follow besides, so
that they are not noise alone.

WSD and cosine end at a tenth of their peak, WSD by the harmonic decay over the last tenth. The peak
of each of the three schedules is tuned on its own, by factors of 2 over one grid, by the mean final
excess of four seeds; results are of sixteen others, which the schedules share. The gradient of a
batch depends on it through the counts of its transitions alone, so these are what a step is given.

The paper argues with such a chain and a table; its constants are not known to us, and these, the
numbers of steps and the batches are our own.

*Reference*: Wen, Li, Wang, Hall, Liang, Ma, 2024, arXiv 2410.05192.
"""

import functools
from collections.abc import Iterable

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
from experiments.tasks.bigram import BigramChain, Chain, draw, make_chain

CHAINS = {spread: BigramChain(spread=spread) for spread in (0.02, 0.0005)}
STEPS, BATCH, CHUNK = 2000, 16, 20
DECAY_START = STEPS - STEPS // 10
RATES = 2.5 * 2.0 ** np.arange(10)
TUNING_SEEDS, SEEDS = range(4), range(4, 20)
FLOOR = 0.1  # of the peak
KINDS = ("near_deterministic", "high_entropy")
SCHEDULES = {
    "WSD": optim.wsd_schedule(
        1.0,
        total_steps=STEPS,
        decay_steps=STEPS - DECAY_START,
        decay_shape="harmonic",
        end_value=FLOOR,
    ),
    "cosine": optax.cosine_decay_schedule(1.0, STEPS, alpha=FLOOR),
    "constant": optax.constant_schedule(1.0),
}


def counts(chain: Chain, length: int, seeds: Iterable[int]) -> np.ndarray:
    """(seeds, steps, vocabulary, vocabulary) how often each transition is in each batch."""
    size = len(chain.transitions)
    steps = np.repeat(np.arange(STEPS), BATCH)[:, None]

    def of(seed: int) -> np.ndarray:
        tokens = draw(chain, seed, np.arange(STEPS * BATCH), length).astype(np.int64)
        places = (steps * size + tokens[:, :-1]) * size + tokens[:, 1:]
        counted = np.bincount(places.ravel(), minlength=STEPS * size**2)
        return counted.reshape(STEPS, size, size).astype(np.uint16)

    return np.stack([of(seed) for seed in seeds])


def gradient(table: jax.Array, count: jax.Array) -> jax.Array:
    """Of the mean of -log softmax(table[token])[next] over the transitions counted."""
    count = count.astype(table.dtype)
    rows = count.sum(1, keepdims=True)
    return (rows * jax.nn.softmax(table) - count) / rows.sum()


def descend(chain: Chain, rates: jax.Array, counts: jax.Array) -> jax.Array:
    """One run at the rates of its steps: (chunks, 2) excess of the kinds of rows after each."""
    weights = jnp.asarray(chain.stationary[:, None] * chain.transitions, jnp.float32)
    log_p = jnp.asarray(np.log(chain.transitions), jnp.float32)

    def step(table: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        rate, count = inputs
        return table - rate * gradient(table, count), None

    def chunk(table: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        table, _ = jax.lax.scan(step, table, inputs)
        rows = jnp.sum(weights * (log_p - jax.nn.log_softmax(table)), 1)
        return table, jnp.stack([rows[::2].sum(), rows[1::2].sum()])

    chunks = jax.tree.map(lambda x: x.reshape(-1, CHUNK, *x.shape[1:]), (rates, counts))
    return jax.lax.scan(chunk, jnp.zeros(log_p.shape), chunks)[1]


def measure(quick: bool) -> Table:
    """Both chains: the tuning, then the results at each schedule's best rate."""
    parts = [part for task in CHAINS.values() for part in of_chain(task, quick)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def of_chain(task: BigramChain, quick: bool) -> tuple[Table, Table]:
    chain = make_chain(task.vocabulary, task.spread)
    tuning, seeds = (TUNING_SEEDS[:1], SEEDS[:2]) if quick else (TUNING_SEEDS, SEEDS)
    grid = RATES[1::3] if quick else RATES

    @jax.jit
    def runs(rates: jax.Array, counts: jax.Array) -> jax.Array:
        """(schedules, seeds, chunks, 2) from (schedules, steps)."""
        return jax.lax.map(
            lambda rates: jax.vmap(lambda c: descend(chain, rates, c))(counts), rates
        )

    shapes = np.stack([jax.vmap(schedule)(jnp.arange(STEPS)) for schedule in SCHEDULES.values()])
    trial = counts(chain, task.length, tuning)
    swept = np.stack([np.asarray(runs(rate * shapes, trial)) for rate in grid])
    final = swept[..., -1, :].sum(-1).mean(-1)  # (rates, schedules)
    best = grid[np.argmin(np.where(np.isfinite(final), final, np.inf), 0)]
    excess = np.asarray(runs(best[:, None] * shapes, counts(chain, task.length, seeds)))
    steps = np.arange(CHUNK, STEPS + 1, CHUNK)
    return (
        _columns("tune", task.spread, grid[:, None, None], tuning, [STEPS], swept[..., -1:, :]),
        _columns("final", task.spread, best[:, None], seeds, steps, excess),
    )


def _columns(
    kind: str,
    spread: float,
    rates: np.ndarray,
    seeds: Iterable[int],
    steps: Iterable[int],
    excess: np.ndarray,
) -> Table:
    """Excess (..., schedules, seeds, steps, 2) as columns."""
    columns = {
        "kind": np.array(kind),
        "spread": np.array(spread),
        "schedule": np.array(list(SCHEDULES))[:, None, None],
        "peak": np.broadcast_to(rates[..., None], (*rates.shape, 1)),
        "seed": np.array(list(seeds))[:, None],
        "step": np.array(list(steps)),
        **{f"excess_{name}": excess[..., i] for i, name in enumerate(KINDS)},
    }
    return {
        name: np.broadcast_to(column, excess.shape[:-1]).ravel() for name, column in columns.items()
    }


def by_seed(data: Table, spread: float, schedule: str, column: str) -> np.ndarray:
    """A column of one schedule's results on one chain as (seeds, chunks)."""
    chosen = (data["schedule"] == schedule) & (data["kind"] == "final")
    chosen &= data["spread"] == spread
    return data[column][chosen].reshape(len(np.unique(data["seed"][chosen])), -1)


def excess(data: Table, spread: float, schedule: str) -> tuple[np.ndarray, np.ndarray]:
    """Of near-deterministic and of high-entropy rows, (seeds, chunks) each."""
    near, high = (by_seed(data, spread, schedule, f"excess_{name}") for name in KINDS)
    return near, high


def judge(data: Table) -> list[Part]:
    return [part for spread in CHAINS for part in judge_chain(data, spread)]


def judge_chain(data: Table, spread: float) -> list[Part]:
    middle, before = DECAY_START // CHUNK // 2 - 1, DECAY_START // CHUNK - 1
    near, high = excess(data, spread, "WSD")
    wsd, cosine, constant = (np.add(*excess(data, spread, name)) for name in SCHEDULES)
    stable_fall = high[:, middle] - high[:, before]
    decay_fall = high[:, before] - high[:, -1]
    chain = f"spread {spread}"
    exceeds = functools.partial(above, digits=5)
    return [
        exceeds(
            f"{chain}, steady rate, near-deterministic rows: step {DECAY_START // 2} above "
            f"{DECAY_START}",
            near[:, middle],
            near[:, before],
        ),
        Part(
            f"{chain}, same steps, high-entropy rows: less than a tenth of the decay's fall",
            f"{stable_fall.mean():.5f} against {decay_fall.mean():.5f}",
            bool(stable_fall.mean() < decay_fall.mean() / 10),
        ),
        exceeds(
            f"{chain}, decay, high-entropy rows: its start above its end",
            high[:, before],
            high[:, -1],
        ),
        exceeds(
            f"{chain}, decay: high-entropy rows fall more than near-deterministic ones",
            decay_fall,
            near[:, before] - near[:, -1],
        ),
        exceeds(f"{chain}, before the decay: WSD above cosine", wsd[:, before], cosine[:, before]),
        exceeds(f"{chain}, at the end: cosine above WSD", cosine[:, -1], wsd[:, -1]),
        exceeds(f"{chain}, at the end: constant above WSD", constant[:, -1], wsd[:, -1]),
    ]


def draw_excess(axes: Axes, data: Table, spread: float, kind: str) -> None:
    """The mean over seeds with the quartiles as a band, and where WSD's decay begins."""
    for name in SCHEDULES:
        steps = by_seed(data, spread, name, "step")[0]
        values = by_seed(data, spread, name, f"excess_{kind}")
        (line,) = axes.plot(steps, values.mean(axis=0), label=name, lw=1.4)
        lower, upper = np.quantile(values, [0.25, 0.75], axis=0)
        axes.fill_between(steps, lower, upper, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axvline(DECAY_START, color="0.5", linewidth=0.8, linestyle="-")
    rows = kind.replace("_", "-")
    axes.set(xlabel="step", yscale="log", title=f"Excess of {rows} rows, nats")


def draw_sweep(axes: Axes, data: Table, spread: float) -> None:
    for name in SCHEDULES:
        chosen = (data["schedule"] == name) & (data["kind"] == "tune") & (data["spread"] == spread)
        peaks = np.unique(data["peak"][chosen])
        total = sum(data[f"excess_{kind}"][chosen] for kind in KINDS)
        means = [total[data["peak"][chosen] == peak].mean() for peak in peaks]
        axes.plot(peaks, means, marker="o", label=name)
    axes.set(title=f"Spread {spread}: excess at the end", xscale="log", yscale="log")
    axes.set(xlabel="peak rate")


def plot(data: Table) -> Figure:
    """A row a chain: the tuning, and the excess of the two kinds of rows over the steps."""
    figure, grid = plt.subplots(len(CHAINS), 3, figsize=(11, 6.2))
    for spread, (sweep, near, high) in zip(CHAINS, grid, strict=True):
        draw_sweep(sweep, data, spread)
        draw_excess(near, data, spread, KINDS[0])
        draw_excess(high, data, spread, KINDS[1])
    figure.legend(*near.get_legend_handles_labels(), loc="outside upper center", ncols=3)
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
    figure="no figure of the paper: its argument on two bigram chains whose constants, steps and "
    f"batches are our own (64 tokens, {STEPS} steps of {BATCH} sequences of 64 transitions; WSD "
    "and cosine end at a tenth of their peak)",
    claim="At a steady high rate the near-deterministic rows, the river, go on improving while the "
    "noise keeps the high-entropy rows up; the decay brings those down, and WSD ends no worse than "
    "schedules that fall earlier.",
    rule="each schedule at the peak rate that its own sweep found best; a part holds if the "
    "difference, paired over sixteen seeds that share their data, exceeds two standard errors; the "
    "second part compares means.",
    measure=measure,
    judge=judge,
    plot=plot,
)
