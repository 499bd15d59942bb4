"""Refined, linear, cosine and constant schedules on logistic regression and a small decoder.

Eight convex problems: logistic regression with a penalty on the four sets of scikit-learn, by SGD
and by Adam, 1,000 steps of 16 samples; what counts is the training objective above its optimum. And
one that is not convex: a decoder of 0.47 M parameters on the sources of the Python standard
library, 300 steps of AdamW on 512 bytes; what counts is validation loss.

The base rate of every schedule is tuned on its own, by factors of 2: on the convex problems over
one grid for all, by the mean of three seeds; on the decoder from one start until the best rate has
a worse one on either side, by one seed. The refined schedule comes from the gradient norms of one
run with linear decay at its best rate, by `optim.refine_schedule` with the defaults (Euclidean
norms for SGD, sums of absolute values before clipping for Adam, a window of a tenth), and has its
base rate tuned like the others: it costs that one run more. Results are of other seeds than the
tuning, ten and three, which all schedules share. On the decoder linear, cosine and constant begin
with a warm-up of a tenth; elsewhere nothing has one but the refined.

On the convex problems linear decay came out no worse than cosine on all and better on six, and
better than a constant rate on all; refinement helped one and harmed six. On the decoder the
constant rate ended lowest. We have not tested why: the penalty makes our problems strongly convex,
their norms are mostly noise, and 300 steps are few, in all of which the paper's may differ.

The upper row of the figure is the authors' synthetic example: made-up norms, and what follows.

*Reference*: Defazio, Cutkosky, Mehta, Mishchenko, 2023, arXiv 2310.07831;
facebookresearch/adaptive_scheduling@37a8a9ba, synthetic_sched_grid.py.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d

import optim
from experiments.figures.decoder_optimizers import descend
from experiments.figures.paired import paired
from experiments.figures.target import Paper, Part, Table, Target
from experiments.models.decoder import SIZES, Decoder
from experiments.tasks.language import LanguageModel
from experiments.tasks.logistic import LogisticRegression
from experiments.tasks.task import Task

SETS = ("breast_cancer", "digits", "iris", "wine")
SCHEDULES = ("refined", "linear", "cosine", "constant")
GRIDS = {"sgd": 2.0 ** np.arange(-9, 5), "adam": 2.0 ** np.arange(-13, 1)}
NORMS = {"sgd": "l2", "adam": "l1"}
TUNING_SEEDS, SEEDS = range(3), range(3, 13)
DECODER_SEEDS, DECODER_RATE = range(1, 4), 4e-3
KEY = jax.random.key(0)  # of losses that draw nothing
POINTS = 100  # of a curve


class Sizes(NamedTuple):
    sets: tuple[str, ...]
    steps: int
    decoder: Decoder
    decoder_steps: int


FULL = Sizes(SETS, 1000, Decoder(**SIZES["0.4m"]), 300)
QUICK = Sizes(("iris", "wine"), 60, Decoder(width=16, layers=1, heads=2, hidden=32), 10)


class Row(NamedTuple):
    """A line of the table."""

    kind: str  # "tune" or "final": a run's result; "curve": a refined schedule's multiplier
    problem: str
    schedule: str
    rate: float
    seed: int
    step: int
    value: float


def multipliers(name: str, steps: int, warmup: float = 0.0) -> jax.Array:
    """(steps,) of a schedule that needs no norms."""
    rise = round(warmup * steps)
    shapes = {"linear": steps - rise, "cosine": steps - rise, "constant": 0}
    shape = "cosine" if name == "cosine" else "linear"
    schedule = optim.wsd_schedule(
        1.0, total_steps=steps, warmup_steps=rise, decay_steps=shapes[name], decay_shape=shape
    )
    return schedule(jnp.arange(steps))


def optimizer(kind: str, values: jax.Array, rate: jax.Array) -> optax.GradientTransformation:
    """SGD, Adam, or the decoder's AdamW, with the record of norms before all else."""
    schedule = optim.array_schedule(values, peak_value=rate)
    makers: dict[str, Callable[[], optax.GradientTransformation]] = {
        "sgd": lambda: optax.sgd(schedule),
        "adam": lambda: optax.adam(schedule),
        "adamw": lambda: optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.1)
        ),
    }
    norm = NORMS.get(kind, "l1")
    return optax.chain(optim.record_gradient_norms(len(values), norm=norm), makers[kind]())


def trained(
    task: Task, kind: str, params: Any, batches: Any, values: jax.Array, rate: jax.Array
) -> tuple[Any, jax.Array]:
    """(parameters, norms) after a step on each of the batches."""
    tx = optimizer(kind, values, rate)

    def step(carry: Any, batch: Any) -> tuple[Any, None]:
        params, state = carry
        gradient = jax.grad(lambda p: task.loss(p, batch, KEY)[0])(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
    return params, state[0].norms


def batches_of(task: Task, seeds: Iterable[int], steps: int, size: int) -> Any:
    """(seeds, steps, size, ...) by leaf."""
    drawn = [task.batches(seed, 0, steps * size) for seed in seeds]
    return jax.tree.map(
        lambda *x: np.stack(x).reshape(len(x), steps, size, *x[0].shape[1:]), *drawn
    )


def convex(data: str, kind: str, steps: int) -> list[Row]:
    """All runs of one problem, over rates and seeds at once."""
    task = LogisticRegression(data=data).build()
    whole = task.batches(0, 0, task.facts["samples"])  # one epoch: every sample once
    start = task.init(KEY)

    @jax.jit
    def results(values: jax.Array, rates: jax.Array, batches: Any) -> tuple[jax.Array, jax.Array]:
        def one(rate: jax.Array, batches: Any) -> tuple[jax.Array, jax.Array]:
            params, norms = trained(task, kind, start, batches, values, rate)
            return task.loss(params, whole, KEY)[0] - task.facts["optimum"], norms

        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(rates, batches)

    tuning, final = (batches_of(task, seeds, steps, 16) for seeds in (TUNING_SEEDS, SEEDS))
    problem, grid = f"{data}, {kind}", GRIDS[kind]
    rows: list[Row] = []

    def tuned(name: str, values: jax.Array) -> np.ndarray:
        """Adds the runs of one schedule; the norms of its first one at the best rate."""
        losses, norms = (np.asarray(x) for x in results(values, grid, tuning))
        best = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf).mean(1)))
        ends = np.asarray(results(values, grid[best : best + 1], final)[0])[0]
        for i, rate in enumerate(grid):
            cells = zip(TUNING_SEEDS, losses[i], strict=True)
            rows.extend(Row("tune", problem, name, rate, seed, steps, x) for seed, x in cells)
        cells = zip(SEEDS, ends, strict=True)
        rows.extend(Row("final", problem, name, grid[best], seed, steps, x) for seed, x in cells)
        return norms[best, 0]

    norms = {name: tuned(name, multipliers(name, steps)) for name in SCHEDULES[1:]}
    refined = optim.refine_schedule(norms["linear"], norm=NORMS[kind])
    tuned("refined", refined)
    return rows + curve(problem, np.asarray(refined))


def decoder(model: Decoder, steps: int) -> list[Row]:
    """All runs of the decoder, one after the other in one compiled program."""
    task = LanguageModel(length=64, model=model).build()
    problem = "decoder, adamw"
    rows: list[Row] = []
    train = jax.jit(functools.partial(trained, task, "adamw"))

    @functools.cache
    def data(seed: int) -> tuple[Any, Any]:
        batches = jax.tree.map(lambda x: x[0], batches_of(task, (seed,), steps, 8))
        return task.init(jax.random.key(seed)), batches

    def run(kind: str, name: str, values: jax.Array, rate: float, seed: int) -> Any:
        params, norms = train(*data(seed), values, rate)
        loss = task.evaluate(params, jax.device_put)["loss"]
        rows.append(Row(kind, problem, name, rate, seed, steps, loss))
        print(f"  {name:8} rate {rate:.3g} seed {seed}: {loss:.4f} nats per byte", flush=True)
        return (loss if math.isfinite(loss) else math.inf), norms

    def tuned(name: str, values: jax.Array) -> np.ndarray:
        """The sweep with seed 0, then the other seeds; the norms of the best run of the sweep."""

        @functools.cache
        def at(power: int) -> Any:
            return run("tune", name, values, DECODER_RATE * 2.0**power, 0)

        best = descend(lambda power: at(power)[0])
        for seed in DECODER_SEEDS:
            run("final", name, values, DECODER_RATE * 2.0**best, seed)
        return np.asarray(at(best)[1])

    norms = {name: tuned(name, multipliers(name, steps, warmup=0.1)) for name in SCHEDULES[1:]}
    refined = optim.refine_schedule(norms["linear"], norm="l1")
    tuned("refined", refined)
    return rows + curve(problem, np.asarray(refined))


def curve(problem: str, values: np.ndarray) -> list[Row]:
    """A refined schedule at places spread evenly over the run."""
    places = np.unique(np.linspace(0, len(values) - 1, POINTS).round().astype(int))
    return [Row("curve", problem, "refined", 1.0, 0, place, values[place]) for place in places]


def measure(quick: bool) -> Table:
    sizes = QUICK if quick else FULL
    rows = [row for data in sizes.sets for kind in GRIDS for row in convex(data, kind, sizes.steps)]
    rows += decoder(sizes.decoder, sizes.decoder_steps)
    columns = zip(*rows, strict=True)
    return {name: np.array(column) for name, column in zip(Row._fields, columns, strict=True)}


def finals(data: Table, problem: str, schedule: str) -> np.ndarray:
    """(seeds,) results at the tuned rate."""
    chosen = (data["kind"] == "final") & (data["problem"] == problem)
    return data["value"][chosen & (data["schedule"] == schedule)]


def compare(data: Table, problem: str, ours: str, other: str) -> tuple[float, float]:
    """How much lower `ours` ends, and two standard errors of it, paired over seeds."""
    return paired(finals(data, problem, other), finals(data, problem, ours))


def counted(data: Table, problems: list[str], ours: str, other: str) -> Part:
    """Judges that one schedule is as good as another or better on most problems."""
    pairs = [compare(data, problem, ours, other) for problem in problems]
    better = sum(lower > error for lower, error in pairs)
    worse = [p for p, (lower, error) in zip(problems, pairs, strict=True) if lower < -error]
    measured = f"below on {better}, above on {len(worse)} of {len(problems)}"
    return Part(
        f"logistic regression, most problems: {ours} ends at {other} or below",
        measured + (f" ({'; '.join(worse)})" if worse else ""),
        len(problems) - len(worse) > len(problems) / 2,
    )


def on_the_decoder(data: Table, ours: str, other: str) -> Part:
    problem = "decoder, adamw"
    lower, error = compare(data, problem, ours, other)
    means = (finals(data, problem, name).mean() for name in (ours, other))
    return Part(
        f"decoder: {ours} ends at {other} or below",
        "{:.4f} against {:.4f} nats per byte: ".format(*means)
        + f"lower by {lower:.4f} ± {error:.4f}",
        lower >= -error,
    )


PAIRS = (("refined", "linear"), ("linear", "cosine"), ("linear", "constant"))


def judge(data: Table) -> list[Part]:
    problems = [p for p in dict.fromkeys(data["problem"].tolist()) if not p.startswith("decoder")]
    better = [compare(data, problem, "refined", "linear") for problem in problems]
    strictly = sum(lower > error for lower, error in better)
    return [
        *(counted(data, problems, *pair) for pair in PAIRS),
        Part(
            "logistic regression, most problems: refined ends below linear",
            f"below on {strictly} of {len(problems)}",
            strictly > len(problems) / 2,
        ),
        *(on_the_decoder(data, *pair) for pair in PAIRS),
    ]


def synthetic() -> dict[str, np.ndarray]:
    """The norms of the authors' example, (2000,) each."""
    x, knots = np.linspace(0, 1, 2000), [0, 0.003, 0.02, 0.03, 0.1, 1]
    ends = {"flat": 1.0, "growing": 2.0, "shrinking": 0.7}
    curves = {name: np.interp(x, knots, [15, 6, 4, 2, 1, end]) for name, end in ends.items()}
    curves = {"constant": np.ones(2000), **curves}
    return {name: gaussian_filter1d(g, sigma=40, mode="nearest") for name, g in curves.items()}


def plot(data: Table) -> Figure:
    """The example above; below the refined schedules of the problems, and the results."""
    figure, ((norms, example), (curves, ends)) = plt.subplots(2, 2, figsize=(9, 6.6))
    for name, series in synthetic().items():
        x = np.linspace(0, 100, len(series))
        norms.plot(x, series, label=name)
        example.plot(x, optim.refine_schedule(series, filter_width=None), label=name)
    norms.set(title="Norms of the gradient, made up", ylim=(0, 10), xlabel="% of the run")
    norms.legend()
    example.set(title="Their refined schedules", xlabel="% of the run")
    problems = list(dict.fromkeys(data["problem"].tolist()))
    sets = list(dict.fromkeys(problem.split(",")[0] for problem in problems))
    for problem in problems:
        mine = (data["kind"] == "curve") & (data["problem"] == problem)
        place = data["step"][mine] / max(data["step"][mine].max(), 1)
        name, kind = problem.split(", ")
        style = {"color": f"C{sets.index(name)}", "linestyle": "--" if kind == "sgd" else "-"}
        curves.plot(100 * place, data["value"][mine], label=problem, linewidth=1.1, **style)
    curves.set(title="Refined schedules of the problems", xlabel="% of the run", ylim=(0, 1.4))
    curves.legend(fontsize=6.5, ncols=3, loc="upper center")
    for number, name in enumerate(SCHEDULES):
        if name != "linear":
            ratios = [
                finals(data, problem, name).mean() / finals(data, problem, "linear").mean()
                for problem in problems
            ]
            places = np.arange(len(problems)) + 0.15 * (number - 1.5)
            ends.plot(places, ratios, linestyle="none", marker="osD^"[number], label=name)
    ends.axhline(1.0, color="0.4", linewidth=0.8, linestyle="-")
    ends.set_xticks(range(len(problems)), problems, rotation=40, ha="right", fontsize=7)
    ends.set(title="End: mean over seeds, over linear's", yscale="log")
    ends.legend()
    plt.close(figure)
    return figure


TARGET = Target(
    paper=Paper(
        title="When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement",
        authors="Defazio, Cutkosky, Mehta, Mishchenko",
        year=2023,
        arxiv="2310.07831",
    ),
    figure="the synthetic example of the authors' code, and no other figure of the paper: its "
    "question on problems of our own, eight logistic regressions on scikit-learn's sets and a "
    "decoder of 0.47 M parameters",
    claim="Linear decay matches or outperforms cosine and constant rates, and a schedule refined "
    "by the gradient norms of a run with linear decay improves on it.",
    rule="every base rate tuned alike; results of other seeds (ten, three on the decoder), paired; "
    "at or below means not above by more than two standard errors, below means lower by more than "
    "two; most means more than half of the problems.",
    measure=measure,
    judge=judge,
    plot=plot,
)
