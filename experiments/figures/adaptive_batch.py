r"""AdAdaGrad: batches that grow as the norm test asks, against constant small and large ones.

.. math::
    b_{k+1} = \min\{4 \cdot 2^j \ge \max(b_k,\ V_k / (\eta^2 |g_k|^2))\}, \qquad b_k \le 512

with the variance V and the mean g of the single samples' gradients. Multinomial logistic regression
on scikit-learn's digits, a penalty of 1e-3 / 2 |W|^2, from zero, by AdaGrad and by AdaGrad-Norm,
65,536 samples (46 epochs) for every method. The excess is the training loss above its minimum,
which scikit-learn's L-BFGS finds.

Set, starting and largest batch, samples and seeds are our own. 0.1 and 0.5 for eta are the authors'
in runs on larger sets, whose batches are not rounded to powers of two. On this set both ask for the
largest batch within 1,024 samples; 0.9 was added when that was seen. The mean's own noise, V / b,
counts in its square, so that a batch of pure noise asks for b / eta^2: the test multiplies it by up
to 1 / eta^2 a step, and for eta above 1 leaves it alone. Every method has its own rate, constant
over the run: of the same nine, half a decade apart, that of the smallest excess at the end, mean of
three seeds; eight other seeds are judged.

*Reference*: Lau, Liu, Kolar, 2024, arXiv 2402.11215.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import optim
from experiments.data.order import sample_indices
from experiments.figures.paired import paired
from experiments.figures.target import Paper, Part, Table, Target
from experiments.tasks.logistic import LogisticRegression

SMALL, LARGE = 4, 512
SIZES = SMALL * 2 ** np.arange(8)
CHUNKS, PIECES = 64, 16  # of a run, of the first of which there are pieces; a point ends each
BATCHES = {  # first and largest batch, eta
    f"constant {SMALL}": (SMALL, SMALL, 0.1),
    f"constant {LARGE}": (LARGE, LARGE, 0.1),
    "eta 0.1": (SMALL, LARGE, 0.1),
    "eta 0.5": (SMALL, LARGE, 0.5),
    "eta 0.9": (SMALL, LARGE, 0.9),
}
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "AdaGrad": functools.partial(optax.adagrad, initial_accumulator_value=0.0, eps=1e-10),
    "AdaGrad-Norm": optim.adagrad_norm,
}
RATES = 10.0 ** np.arange(-2.0, 2.5, 0.5)


class Run(NamedTuple):
    """What a run keeps from one group of four samples to the next."""

    params: Any
    optimizer: Any
    moments: optim.GradientMoments  # of the single samples of the batch so far
    size: jax.Array  # of the batch
    steps: jax.Array


def grown(size: jax.Array, wanted: jax.Array, most: jax.Array) -> jax.Array:
    """`optim.next_batch_size` from SMALL on, traced."""
    place = jnp.searchsorted(jnp.asarray(SIZES), jnp.maximum(size, wanted))
    return jnp.minimum(jnp.asarray(SIZES)[jnp.minimum(place, len(SIZES) - 1)], most)


def train(
    make: Callable[[Any], optax.GradientTransformation],
    loss: Callable[[Any, Any], jax.Array],
    start: Any,
    data: Any,
    batch: tuple[jax.Array, jax.Array, jax.Array],
    rate: jax.Array,
    order: jax.Array,
) -> dict[str, jax.Array]:
    """Loss of all data, steps and batch size at the points.

    A batch is made of groups of SMALL samples, one a turn of the loop, so that batches of all sizes
    are one program; a step is made in the turn in which the batch is complete.
    """
    first, most, eta = batch
    tx = make(rate)
    sample_gradients = jax.vmap(
        jax.grad(lambda p, sample: loss(p, jax.tree.map(lambda x: x[None], sample))), (None, 0)
    )

    def turn(run: Run, indices: jax.Array) -> tuple[Run, None]:
        samples = jax.tree.map(lambda x: x[indices], data)
        new = optim.gradient_moments(sample_gradients(run.params, samples))
        moments = optim.merge_moments(run.moments, new)
        updates, optimizer = tx.update(moments.mean, run.optimizer, run.params)
        wanted = optim.norm_test(moments, eta=eta)
        stepped = Run(
            optax.apply_updates(run.params, updates),
            optimizer,
            jax.tree.map(jnp.zeros_like, moments),
            grown(run.size, wanted, most),
            run.steps + 1,
        )
        complete = moments.groups >= run.size
        going_on = run._replace(moments=moments)
        return jax.tree.map(lambda a, b: jnp.where(complete, a, b), stepped, going_on), None

    def chunk(run: Run, indices: jax.Array) -> tuple[Run, dict[str, jax.Array]]:
        run, _ = jax.lax.scan(turn, run, indices)
        return run, {"loss": loss(run.params, data), "steps": run.steps, "batch_size": run.size}

    none = optim.GradientMoments(jnp.zeros(()), *2 * (jax.tree.map(jnp.zeros_like, start),))
    run = Run(start, tx.init(start), none, first, jnp.zeros((), jnp.int32))
    first_chunk, rest = jnp.split(order, [len(order) // CHUNKS])
    run, early = jax.lax.scan(chunk, run, first_chunk.reshape(PIECES, -1, SMALL))
    _, late = jax.lax.scan(chunk, run, rest.reshape(CHUNKS - 1, -1, SMALL))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), early, late)


def measure(quick: bool) -> Table:
    """Both optimizers with all batches: rates on three seeds, curves on eight (two if quick)."""
    samples, seeds = (2**12, 2) if quick else (2**16, 8)
    task = LogisticRegression("digits").build()
    size = task.facts["samples"]
    data = jax.tree.map(jnp.asarray, task.batches(0, 0, size))
    start = task.init(jax.random.key(0))

    def loss(params: Any, batch: Any) -> jax.Array:
        return task.loss(params, batch, jax.random.key(0))[0]

    orders = np.stack([sample_indices(s, 0, samples, size) for s in range(3 + seeds)])
    batches = [jnp.array(column) for column in zip(*BATCHES.values(), strict=True)]
    pieces = np.arange(1, PIECES) / PIECES
    points = samples // CHUNKS * np.concatenate([pieces, np.arange(1, CHUNKS + 1)])
    columns: dict[str, list[np.ndarray]] = {}
    for name, make in OPTIMIZERS.items():
        one = functools.partial(train, make, loss, start, data)
        over_seeds = jax.vmap(one, (None, None, 0))
        tuned = jax.jit(jax.vmap(jax.vmap(over_seeds, (None, 0, None)), (0, None, None)))
        losses = tuned(tuple(batches), jnp.asarray(RATES, jnp.float32), orders[:3])["loss"]
        ends = np.nan_to_num(np.asarray(losses)[..., -1].mean(-1), nan=np.inf)
        rates = RATES[ends.argmin(-1)]
        judged = jax.jit(jax.vmap(over_seeds, (0, 0, None)))
        curves = judged(tuple(batches), jnp.asarray(rates, jnp.float32), orders[3:])
        shape = (len(BATCHES), seeds, len(points))
        for column, values in {
            "optimizer": np.array(name),
            "batch": np.array(list(BATCHES))[:, None, None],
            "seed": np.arange(3, 3 + seeds)[:, None],
            "rate": rates[:, None, None],
            "samples": points,
            "steps": np.asarray(curves["steps"]),
            "batch_size": np.asarray(curves["batch_size"]),
            "excess": np.asarray(curves["loss"], np.float64) - task.facts["optimum"],
        }.items():
            columns.setdefault(column, []).append(np.broadcast_to(values, shape).ravel())
    return {column: np.concatenate(parts) for column, parts in columns.items()}


def by_seed(data: Table, optimizer: str, batch: str, column: str) -> np.ndarray:
    """A column of one method as (seeds, points)."""
    chosen = (data["optimizer"] == optimizer) & (data["batch"] == batch)
    return data[column][chosen].reshape(-1, PIECES + CHUNKS - 1)


def logarithm(data: Table, optimizer: str, batch: str, column: str) -> np.ndarray:
    """Of the column's last value, by seed; an excess below the rounding of the loss is that."""
    return np.log(np.maximum(by_seed(data, optimizer, batch, column)[:, -1], 1e-7))


def below(claim: str, low: np.ndarray, high: np.ndarray, shown: str) -> Part:
    """Judges that `low` is below `high` by more than two standard errors, paired over seeds."""
    difference, margin = paired(high, low)
    return Part(claim, shown, difference > margin)


def judge(data: Table) -> list[Part]:
    small, large, *adaptive = BATCHES
    parts = []
    for name in OPTIMIZERS:

        def ends(batch: str, column: str, name: str = name) -> np.ndarray:
            return logarithm(data, name, batch, column)

        def shown(column: str, *batches: str, name: str = name) -> str:
            values = [np.exp(logarithm(data, name, b, column).mean()) for b in batches]
            return ", ".join(f"{b}: {v:.3g}" for b, v in zip(batches, values, strict=True))

        parts.append(
            below(
                f"{name}: after the same samples, excess of the small batch below the large one's",
                ends(small, "excess"),
                ends(large, "excess"),
                shown("excess", small, large),
            )
        )
        for batch in adaptive:
            for column, near, far in (("excess", small, large), ("steps", large, small)):
                middle = (ends(near, column) + ends(far, column)) / 2
                parts.append(
                    below(
                        f"{name}, {batch}: {column} nearer to those of {near} than of {far}",
                        ends(batch, column),
                        middle,
                        shown(column, batch, near, far),
                    )
                )
    return parts


def draw(axes: Axes, data: Table, optimizer: str, x: str, y: str) -> None:
    """The geometric mean over seeds, at the mean of x, of every kind of batch."""
    for batch in BATCHES:
        values = np.maximum(by_seed(data, optimizer, batch, y), 1e-7)
        places = by_seed(data, optimizer, batch, x).mean(0)
        axes.plot(places, np.exp(np.log(values).mean(0)), label=batch)
    axes.set(yscale="log", xlabel=x, title=optimizer)


def plot(data: Table) -> Figure:
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.2))
    for row, optimizer in zip(axes, OPTIMIZERS, strict=True):
        draw(row[0], data, optimizer, "samples", "batch_size")
        row[0].set(ylabel="batch size", xscale="log")
        row[0].set_yscale("log", base=2)
        draw(row[1], data, optimizer, "samples", "excess")
        draw(row[2], data, optimizer, "steps", "excess")
        row[1].set(xscale="log", ylabel="training loss above its minimum")
        row[2].set(xscale="log", xlim=(0.9, None), ylabel="training loss above its minimum")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5)
    plt.close(figure)
    return figure


TARGET = Target(
    paper=Paper(
        title="AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods",
        authors="Lau, Liu, Kolar",
        year=2024,
        arxiv="2402.11215",
    ),
    figure="batch sizes and losses of AdAdaGrad and AdAdaGrad-Norm on a convex problem of our own: "
    "logistic regression on scikit-learn's digits, batches of 4 to 512 samples in powers of two, "
    "65,536 samples for every method",
    claim="a batch that grows as the norm test asks keeps the small batch's loss for the samples "
    "it has seen, and makes about as few steps as the large batch; the wording is ours.",
    rule="of the last point of every curve: the logarithm of the excess (or of the steps) lies "
    "nearer to that of the one constant batch than to that of the other, by more than two standard "
    "errors, paired over eight seeds that share their order of samples; every method has the best "
    "of nine constant rates from 0.01 to 100, found on three other seeds.",
    measure=measure,
    judge=judge,
    plot=plot,
)
