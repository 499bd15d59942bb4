"""Which block to move: greedy rules, blocks and steps of block coordinate descent.

Least squares and logistic regression on the paper's data sets A and B, all lengths a tenth of the
paper's: 100 samples of 1,000 features, normal around 1, each feature scaled by 10 N(0, 1), entries
kept with probability 10 log(100) / 100, and blocks of 5 and 10 for its 50 and 100, so that its 500
iterations from 0 pass over the features as often as there. The smallest loss of both is 0. Fixed
blocks hold features of similar Lipschitz constants, variable ones any. Steps are g_b / L_b or
H_b^-1 g_b with the matrix H that bounds the Hessian, A'A or A'A / 4.

*Reference*: Nutini, Laradji, Schmidt, 2017, arXiv 1712.08859, Figures 8 and 11, rows A and B;
IssamLaradji/BlockCoordinateDescent@322066b270eb, exp_configs.py, src/datasets/datasets.py.
"""

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import optim
from experiments.figures.paired import paired
from experiments.figures.target import Paper, Part, Table, Target

SAMPLES, FEATURES, ITERATIONS, EVERY = 100, 1000, 500, 5
SIZES = (5, 10)
FLOOR = 1e-15  # of the loss at the start; the paper's runs stop at 1e-8 of 7e6
RULES: dict[str, Callable[[optim.BlockProblem], jax.Array]] = {
    "random": optim.random_blocks,
    "cyclic": optim.cyclic_blocks,
    "GS": optim.gauss_southwell,
    "GSL": optim.gauss_southwell_lipschitz,
    "GSD": optim.gauss_southwell_diagonal,
    "GSQ": optim.gauss_southwell_quadratic,
}
SHOWN = {"gradient": ("random", "cyclic", "GS", "GSL"), "Newton": ("GS", "GSL", "GSD", "GSQ")}


class Run(NamedTuple):
    """One line of a panel."""

    blocks: str  # "fixed" or "variable"
    rule: str
    step: str  # "gradient" or "Newton"
    size: int


RUNS = [
    Run(blocks, rule, step, size)
    for step, rules in SHOWN.items()
    for size in SIZES
    for blocks in ("fixed", "variable")
    for rule in rules
]


class Problem(NamedTuple):
    """A loss of A x and the matrix H that bounds its Hessian."""

    matrix: jax.Array  # (samples, features): A
    target: jax.Array  # (samples,): values, or signs
    logistic: bool

    def loss(self, x: jax.Array) -> jax.Array:
        predicted = self.matrix @ x
        if self.logistic:
            return jnp.sum(jax.nn.softplus(-self.target * predicted))
        return jnp.sum((predicted - self.target) ** 2) / 2

    def hessian(self) -> jax.Array:
        return self.matrix.T @ self.matrix / (4 if self.logistic else 1)


def problem(key: jax.Array, logistic: bool) -> Problem:
    """Data set A or, with a tenth of the signs turned, B."""
    entries, scales, kept, values, chosen, noise = jax.random.split(key, 6)
    a = 1 + jax.random.normal(entries, (SAMPLES, FEATURES))
    a = a * 10 * jax.random.normal(scales, (FEATURES,))
    density = 10 * math.log(SAMPLES) / SAMPLES
    a = jnp.where(jax.random.uniform(kept, a.shape) < density, a, 0)
    x = jnp.where(jax.random.bernoulli(chosen, 0.1, (FEATURES,)), 1.0, 0.0)
    x = x * jax.random.normal(values, (FEATURES,))
    if logistic:
        flipped = jax.random.bernoulli(noise, 0.1, (SAMPLES,))
        return Problem(a, jnp.sign(a @ x) * jnp.where(flipped, -1.0, 1.0), logistic)
    return Problem(a, a @ x + jax.random.normal(noise, (SAMPLES,)), logistic)


def descent(run: Run, hessian: jax.Array) -> Any:
    """The transformation of a run. GSL of variable blocks is the authors', GSD with other D."""
    lipschitz = jnp.diagonal(hessian)
    blocks: Any = run.size
    select, diagonal = RULES[run.rule], lipschitz
    if run.blocks == "fixed":
        blocks = jnp.argsort(lipschitz).reshape(-1, run.size)
    elif run.rule == "GSL":
        select, diagonal = optim.gauss_southwell_diagonal, jnp.abs(hessian).sum(axis=1)
    return optim.greedy_block_descent(
        blocks=blocks,
        select=select,
        newton=run.step == "Newton",
        diagonal=diagonal,
        hessian=hessian,
    )


def losses(key: jax.Array, logistic: bool, run: Run, iterations: int) -> jax.Array:
    """The loss before every EVERY-th iteration and after the last, over that at the start."""
    data = problem(jax.random.fold_in(key, 0), logistic)
    run_key = jax.random.fold_in(key, 1)
    tx = descent(run, data.hessian())

    def step(carry: Any, count: jax.Array) -> tuple[Any, None]:
        x, state = carry
        drawn = jax.random.fold_in(run_key, count)
        updates, state = tx.update(jax.grad(data.loss)(x), state, x, key=drawn)
        return (x + updates, state), None

    def chunk(carry: Any, counts: jax.Array) -> tuple[Any, jax.Array]:
        return jax.lax.scan(step, carry, counts)[0], data.loss(carry[0])

    start = jnp.zeros(FEATURES, data.matrix.dtype)
    counts = jnp.arange(iterations).reshape(-1, EVERY)
    (x, _), values = jax.lax.scan(chunk, (start, tx.init(start)), counts)
    return jnp.append(values, data.loss(x)) / values[0]


def keys(seeds: int) -> jax.Array:
    """One a seed, of data and of random blocks."""
    key = jax.random.fold_in(jax.random.key(0), zlib.crc32(b"block_coordinate_rules"))
    return jax.random.split(key, seeds)


def measure(quick: bool) -> Table:
    """Every run over 5 seeds that share their data; if quick, few runs, 2 seeds, 60 iterations."""
    seeds, iterations = (2, 60) if quick else (5, ITERATIONS)
    rows: list[dict[str, Any]] = []
    with jax.enable_x64(True):
        for logistic in (False,) if quick else (False, True):
            for run in QUICK if quick else RUNS:
                every = jax.jit(
                    jax.vmap(lambda k, run=run, f=logistic: losses(k, f, run, iterations))
                )
                rows += [
                    {
                        "loss": "logistic" if logistic else "least squares",
                        **run._asdict(),
                        "seed": seed,
                        "iteration": EVERY * index,
                        "value": value,
                    }
                    for seed, line in enumerate(np.asarray(every(keys(seeds))))
                    for index, value in enumerate(line)
                ]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


QUICK = [
    *(Run("fixed", rule, "gradient", 5) for rule in ("random", "GS", "GSL")),
    *(Run("variable", rule, "Newton", 5) for rule in ("GSD", "GSQ")),
]


def by_seed(data: Table, loss: str, run: Run) -> np.ndarray:
    """The relative loss of a run as (seeds, recorded iterations); empty if it was not measured."""
    chosen = data["loss"] == loss
    for name, value in run._asdict().items():
        chosen = chosen & (data[name] == value)
    seeds = len(np.unique(data["seed"]))
    return data["value"][chosen].reshape(seeds, chosen.sum() // seeds)


def rates(lines: np.ndarray) -> np.ndarray:
    """Decimal digits that the loss of each line lost in 100 iterations, to the end or the floor."""
    arrived = lines <= FLOOR
    last = np.where(arrived.any(axis=1), arrived.argmax(axis=1), lines.shape[1] - 1)
    ends = np.maximum(lines[np.arange(len(lines)), last], FLOOR)
    return -100 * np.log10(ends) / (EVERY * last)


def faster(data: Table, loss: str, better: Run, worse: Run) -> Part | None:
    """Judges the rates, paired over seeds; None if one of them was not measured."""
    pair = [by_seed(data, loss, run) for run in (better, worse)]
    if not all(lines.size for lines in pair):
        return None
    high, low = map(rates, pair)
    difference, margin = paired(high, low)
    measured = f"{high.mean():.2f} and {low.mean():.2f}: {difference:+.2f} ± {margin:.2f}"
    claim = f"{loss}: {described(better, worse)} above {described(worse, better)}"
    return Part(claim, measured, difference > margin)


def described(run: Run, beside: Run) -> str:
    """A run, by its rule and by what distinguishes it from the other or both from the default."""
    words = [run.rule, run.blocks]
    if run.step == "Newton" or beside.step == "Newton":
        words.append(run.step)
    if run.size != beside.size:
        words.append(str(run.size))
    return " ".join(words)


def comparisons() -> list[tuple[Run, Run]]:
    """Faster, slower."""
    small, large = SIZES

    def fixed(rule: str, step: str = "gradient", size: int = small) -> Run:
        return Run("fixed", rule, step, size)

    def variable(rule: str, step: str = "gradient", size: int = small) -> Run:
        return Run("variable", rule, step, size)

    return [
        (fixed("GS"), fixed("random")),
        (fixed("GS"), fixed("cyclic")),
        (fixed("GSL"), fixed("random")),
        (fixed("GSL"), fixed("cyclic")),
        (fixed("GSL"), fixed("GS")),
        (variable("GS"), variable("random")),
        (variable("GSL"), variable("GS")),
        (variable("GS"), fixed("GS")),
        (variable("GSL"), fixed("GSL")),
        (fixed("GSQ", "Newton"), fixed("GS", "Newton")),
        (variable("GSD", "Newton"), variable("GS", "Newton")),
        (variable("GSQ", "Newton"), variable("GSD", "Newton")),
        (variable("GSQ", "Newton"), fixed("GSQ", "Newton")),
        (fixed("GSL", "Newton"), fixed("GSL")),
        (variable("GSL", "Newton"), variable("GSL")),
        (variable("GSL", size=large), variable("GSL")),
        (variable("GSQ", "Newton", large), variable("GSQ", "Newton")),
    ]


def judge(data: Table) -> list[Part]:
    parts = [
        faster(data, loss, better, worse)
        for loss in ("least squares", "logistic")
        for better, worse in comparisons()
    ]
    return [part for part in parts if part is not None]


def draw(axes: Axes, data: Table, loss: str, step: str, size: int) -> None:
    """The geometric mean over seeds, as long as one is above the floor."""
    for run in RUNS:
        values = np.maximum(by_seed(data, loss, run), FLOOR)
        if run.step == step and run.size == size and values.size:
            mean = np.exp(np.log(values).mean(axis=0))
            axes.semilogy(
                EVERY * np.arange(values.shape[1]),
                np.where(values.max(axis=0) > FLOOR, mean, np.nan),
                color=f"C{list(RULES).index(run.rule)}",
                linestyle="-" if run.blocks == "variable" else "--",
            )
    if loss == "least squares":
        axes.set(ylim=(FLOOR, 3))


def plot(data: Table) -> Figure:
    panels = [(step, size) for step in SHOWN for size in SIZES]
    figure, grid = plt.subplots(2, len(panels), figsize=(11, 6), sharex=True, sharey="row")
    for row, loss in zip(grid, ("least squares", "logistic")):
        for axes, (step, size) in zip(row, panels):
            draw(axes, data, loss, step, size)
        row[0].set_ylabel(f"{loss}: loss / first loss")
    for axes, (step, size) in zip(grid[0], panels):
        axes.set_title(f"{step} steps, blocks of {size}")
    for axes in grid[1]:
        axes.set_xlabel("iteration")
    handles = [Line2D([], [], color=f"C{index}", linestyle="-") for index in range(len(RULES))]
    handles += [Line2D([], [], color="0.3", linestyle=style) for style in ("-", "--")]
    names = [*RULES, "variable blocks", "fixed blocks"]
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    plt.close(figure)
    return figure


TARGET = Target(
    paper=Paper(
        title="Let's Make Block Coordinate Descent Converge Faster: Faster Greedy Rules, "
        "Message-Passing, Active-Set Complexity, and Superlinear Convergence",
        authors="Nutini, Laradji, Schmidt",
        year=2017,
        arxiv="1712.08859",
    ),
    figure="Figures 8 and 11, the rows of data sets A (least squares) and B (logistic) and their "
    "columns of blocks of 50 and 100, all lengths a tenth of the paper's: 100 samples, 1,000 "
    f"features, blocks of {SIZES[0]} and {SIZES[1]}; lines are means over seeds, the paper's of "
    "one; GSL of variable blocks is, as there, GSD with the sums of |H_ij|; scores of fixed blocks "
    "are sums of squares, where the paper's code sums absolute values; GSQ of variable blocks "
    "thresholds in scaled coordinates",
    claim="Greedy rules that know Lipschitz constants or the block's Hessian (GSL, GSD, GSQ) make "
    "more progress an iteration than Gauss-Southwell, which makes more than cyclic and random "
    "blocks; variable blocks, larger blocks and Newton steps help further.",
    rule="a part holds if the difference of two rates, paired over 5 seeds, exceeds two standard "
    "errors; a rate is the decimal digits that the loss loses in 100 iterations, over 500 or until "
    f"it is {FLOOR:g} of the first; steps are g / L and blocks of {SIZES[0]} unless given.",
    measure=measure,
    judge=judge,
    plot=plot,
)
