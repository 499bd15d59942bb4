r"""What rounding does to MeZO: to perturbations that are undone, to small updates, and to training.

.. math::
    w \leftarrow w + \epsilon z, \quad w \leftarrow w - 2 \epsilon z, \quad
    w \leftarrow w + \epsilon z, \quad w \leftarrow w - \eta c z

each of which is rounded to the dtype of w. Weights are normal with a deviation of 0.02, z normal,
epsilon 1e-3. An update is measured by its size eta |c|; one of 5e-6, a rate of 1e-7 at a slope of
50, is what MeZO makes on OPT.

- drift: root mean square of what the three perturbations leave after so many steps. Ours never
  makes them: `zeroth_order.spsa` reads perturbed weights, and a step of size 0 is all that
  happens.
- update: the part of an update that is made, (w' - w)' z over -eta c z'z.
- training: a perceptron of 64 hidden units on scikit-learn's digits from scratch, 3,000 steps of
  `zeroth_order.spsa` with eps = 1e-2 on 256 samples each, arithmetic in float32. The fall is that
  of the loss of all training samples.

*Reference*: Malladi et al., 2023, arXiv 2305.17333, Algorithm 1; its code runs OPT in float16.
"""

import functools
import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import zeroth_order
from experiments.data.labelled import bundled
from experiments.figures.target import Paper, Part, Table, Target

DEVIATION, EPSILON, UPDATE = 0.02, 1e-3, 5e-6
DRIFT, UPDATES, TRAINING = "drift", "update", "training"
NEAREST, STOCHASTIC, RESTORED, NEVER = "nearest", "stochastic", "restored", "never perturbed"
SIZES = (1e-7, 1e-6, UPDATE, 1e-5, 1e-4, 1e-3)
ROUNDINGS = (
    ("float32", NEAREST),
    ("float16", NEAREST),
    ("bfloat16", NEAREST),
    ("bfloat16", STOCHASTIC),
)
TRAINED = (ROUNDINGS[0], *ROUNDINGS[2:])
RATES, PROBE, HIDDEN, BATCH, EVERY = (1e-4, 1e-3), 1e-2, 64, 256, 100
Row = tuple[str, str, str, float, int, int, float]
COLUMNS = ("what", "dtype", "rounding", "size", "seed", "step", "value")


def weights(key: jax.Array, count: int, dtype: str) -> dict[str, jax.Array]:
    return {"w": (DEVIATION * jax.random.normal(key, (count,))).astype(dtype)}


def drifts(key: jax.Array, dtype: str, count: int, steps: int) -> list[Row]:
    """After 1, 2, 4, ... steps, of perturbations that are undone and of those never made."""
    along = zeroth_order.direction(zeroth_order.box_muller_normal)
    start = weights(jax.random.clone(key), count, dtype)

    # Programs of their own: within one, what is rounded and widened again may stay wide.
    perturb = jax.jit(functools.partial(zeroth_order.perturb, along))

    @jax.jit
    def distance(params: Any) -> jax.Array:
        off = params["w"].astype(jnp.float32) - start["w"].astype(jnp.float32)
        return jnp.sqrt(jnp.mean(jnp.square(off)))

    def restored(params: Any, seed: jax.Array) -> Any:
        for scale in (EPSILON, -2 * EPSILON, EPSILON):
            params = perturb(params, seed, scale)
        return params

    @jax.jit
    def never(params: Any, seed: jax.Array) -> Any:
        found = zeroth_order.spsa(along, epsilon=EPSILON)(lambda p: jnp.mean(p["w"]), params, seed)
        return zeroth_order.apply(along, found.gradient, params, rate=0.0)

    def distances(step: Any) -> list[float]:
        params, found = start, []
        for seed in range(steps):
            params = step(params, jnp.uint32(seed))
            found.append(float(distance(params)))
        return found

    return [
        (DRIFT, dtype, name, EPSILON, 0, step, found[step - 1])
        for name, found in ((RESTORED, distances(restored)), (NEVER, distances(never)))
        for step in (2**power for power in range(int(math.log2(steps)) + 1))
    ]


def updates(key: jax.Array, dtype: str, rounding: str, count: int, seeds: int) -> list[Row]:
    """How much of an update is made, by its size."""
    along = zeroth_order.direction(zeroth_order.box_muller_normal)

    @jax.jit
    def made(start: Any, size: jax.Array, seed: jax.Array) -> Any:
        gradient = zeroth_order.SeededGradient(seed, jnp.ones(1))
        stochastic = rounding == STOCHASTIC
        return zeroth_order.apply(along, gradient, start, rate=size, stochastic=stochastic)

    # Another program: within one, what is rounded and widened again may stay wide.
    @jax.jit
    def part(start: Any, after: Any, size: jax.Array, seed: jax.Array) -> jax.Array:
        moved = after["w"].astype(jnp.float32) - start["w"].astype(jnp.float32)
        z = zeroth_order.materialize(along, zeroth_order.SeededGradient(seed, jnp.ones(1)), start)
        return -(moved @ z["w"]) / (size * (z["w"] @ z["w"]))

    def share(size: float, number: int) -> float:
        start, seed = weights(jax.random.fold_in(key, number), count, dtype), jnp.uint32(number)
        return float(part(start, made(start, size, seed), size, seed))

    return [
        (UPDATES, dtype, rounding, size, seed, 1, share(size, seed))
        for size in SIZES
        for seed in range(seeds)
    ]


def losses(params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Of a perceptron, in float32."""
    first, last = (params[name].astype(jnp.float32) for name in ("first", "last"))
    logits = jax.nn.relu(inputs @ first) @ last
    picked = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return jax.nn.logsumexp(logits, 1) - picked


class Draws(NamedTuple):
    """All that is random about a run."""

    params: dict[str, jax.Array]  # at the start
    batch: jax.Array  # (steps, BATCH), int32: sample numbers
    seed: jax.Array  # (steps,), uint32: of directions and roundings


def drawn(key: jax.Array, samples: int, steps: int) -> Draws:
    first, last, batch, seed = jax.random.split(key, 4)
    params = {
        "first": math.sqrt(2 / 64) * jax.random.normal(first, (64, HIDDEN)),
        "last": math.sqrt(1 / HIDDEN) * jax.random.normal(last, (HIDDEN, 10)),
    }
    batches = jax.random.randint(batch, (steps, BATCH), 0, samples)
    return Draws(params, batches, jax.random.bits(seed, (steps,), jnp.uint32))


def trained(
    draws: Draws,
    rate: Any,
    inputs: jax.Array,
    labels: jax.Array,
    *,
    dtype: str,
    rounding: str,
) -> jax.Array:
    """Losses of all training samples, at the start and after every EVERY steps."""
    along = zeroth_order.direction()
    estimator = zeroth_order.spsa(along, epsilon=PROBE)

    def step(params: Any, drawn: Any) -> tuple[Any, None]:
        batch, seed = drawn
        found = estimator(lambda p: losses(p, inputs[batch], labels[batch]), params, seed)
        stochastic = rounding == STOCHASTIC
        return zeroth_order.apply(
            along, found.gradient, params, rate=rate, stochastic=stochastic
        ), None

    def chunk(params: Any, drawn: Any) -> tuple[Any, jax.Array]:
        params, _ = jax.lax.scan(step, params, drawn)
        return params, jnp.mean(losses(params, inputs, labels))

    params = jax.tree.map(lambda x: x.astype(dtype), draws.params)
    in_chunks = jax.tree.map(lambda x: x.reshape(-1, EVERY, *x.shape[1:]), draws[1:])
    _, found = jax.lax.scan(chunk, params, in_chunks)
    return jnp.concatenate([jnp.mean(losses(params, inputs, labels))[None], found])


def trainings(key: jax.Array, dtype: str, rounding: str, steps: int, seeds: int) -> list[Row]:
    """Runs of all seeds at all rates; the rounding does not change what they draw."""
    train = bundled("digits").train
    inputs, labels = jnp.asarray(train.inputs / 8.0 - 0.6, jnp.float32), jnp.asarray(train.labels)
    keys = jax.random.split(jax.random.clone(key), seeds)
    draws = jax.vmap(functools.partial(drawn, samples=len(labels), steps=steps))(keys)
    run = functools.partial(trained, dtype=dtype, rounding=rounding)
    all_seeds = jax.jit(jax.vmap(run, (0, None, None, None)))
    rows: list[Row] = []
    for rate in RATES:
        found = np.asarray(all_seeds(draws, rate, inputs, labels))
        rows += [
            (TRAINING, dtype, rounding, rate, seed, EVERY * i, float(value))
            for seed, curve in enumerate(found)
            for i, value in enumerate(curve)
        ]
    return rows


def measure(quick: bool) -> Table:
    """2^18 weights, 256 steps of drift, 8 seeds; if quick, 2^12, 16, 2 and 200 training steps."""
    count, drift_steps, seeds, steps = (2**12, 16, 2, 200) if quick else (2**18, 256, 8, 3000)
    key = jax.random.fold_in(jax.random.key(0), zlib.crc32(b"zeroth_order_precision"))
    drift, update, training = jax.random.split(key, 3)
    rows: list[Row] = []
    for dtype in ("float32", "float16", "bfloat16"):
        rows += drifts(drift, dtype, count, drift_steps)
    for dtype, rounding in ROUNDINGS:
        rows += updates(update, dtype, rounding, count, seeds)
    for dtype, rounding in TRAINED:
        rows += trainings(training, dtype, rounding, steps, seeds)
    columns = zip(*rows, strict=True)
    return {name: np.array(column) for name, column in zip(COLUMNS, columns, strict=True)}


def where(data: Table, **values: Any) -> np.ndarray:
    return np.all([data[column] == value for column, value in values.items()], axis=0)


def judge(data: Table) -> list[Part]:
    return [
        *(undone(data, dtype) for dtype in ("float32", "float16", "bfloat16")),
        never_made(data),
        *(in_full(data, dtype, rounding) for dtype, rounding in ROUNDINGS),
        *(falls(data, rounding, rate) for rate in RATES for rounding in (NEAREST, STOCHASTIC)),
    ]


def undone(data: Table, dtype: str) -> Part:
    """Judges that one step's restored perturbations leave less than 1 % of an update."""
    drift = data["value"][where(data, what=DRIFT, dtype=dtype, rounding=RESTORED, step=1)][0]
    return Part(
        f"{dtype}: perturbations that are undone leave the weights as they were",
        f"off by {drift:.2g} after one step, {drift / UPDATE:.2g} of an update of {UPDATE:g}",
        bool(drift < 0.01 * UPDATE),
    )


def never_made(data: Table) -> Part:
    values = data["value"][where(data, what=DRIFT, rounding=NEVER)]
    return Part(
        "perturbations that are never made leave the weights as they were, in all dtypes",
        f"off by {values.max():g} after {data['step'][where(data, what=DRIFT)].max()} steps",
        bool((values == 0).all()),
    )


def shares(data: Table, dtype: str, rounding: str, size: float) -> tuple[float, float]:
    """How much of an update is made, mean over seeds, with its standard error."""
    chosen = where(data, what=UPDATES, dtype=dtype, rounding=rounding)
    values = data["value"][chosen & np.isclose(data["size"], size)]
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def in_full(data: Table, dtype: str, rounding: str) -> Part:
    """Judges that updates of all sizes are made in full, to 2 % and four standard errors."""
    found = {size: shares(data, dtype, rounding, size) for size in SIZES}
    return Part(
        f"{dtype}, {rounding}: updates of all sizes are made in full",
        ", ".join(f"{100 * share:.3g} % of {size:g}" for size, (share, _) in found.items()),
        all(abs(share - 1) < 0.02 + 4 * error for share, error in found.values()),
    )


def fall(data: Table, dtype: str, rounding: str, rate: float) -> np.ndarray:
    """Of the training loss, one a seed."""
    chosen = where(data, what=TRAINING, dtype=dtype, rounding=rounding)
    chosen &= np.isclose(data["size"], rate)
    curves = data["value"][chosen].reshape(len(np.unique(data["seed"][chosen])), -1)
    return curves[:, 0] - curves[:, -1]


def falls(data: Table, rounding: str, rate: float) -> Part:
    """Judges that bfloat16 falls at least 95 % as far as float32."""
    ours, wide = fall(data, "bfloat16", rounding, rate), fall(data, "float32", NEAREST, rate)
    ratios = ours / wide
    error = ratios.std(ddof=1) / math.sqrt(len(ratios))
    return Part(
        f"bfloat16, {rounding}, rate {rate:g}: the loss of the digits falls as far as in float32",
        f"{ours.mean():.3f} for {wide.mean():.3f}, {100 * ratios.mean():.1f} ± {200 * error:.1f} %",
        bool(ratios.mean() >= 0.95),
    )


def plot(data: Table) -> Figure:
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4))
    draw_drifts(axes[0, 0], data)
    draw_updates(axes[0, 1], data)
    for place, rate in zip(axes[1], RATES, strict=True):
        draw_training(place, data, rate)
    plt.close(figure)
    return figure


def draw_drifts(axes: Axes, data: Table) -> None:
    for dtype in ("float32", "float16", "bfloat16"):
        mine = where(data, what=DRIFT, dtype=dtype, rounding=RESTORED)
        axes.plot(data["step"][mine], data["value"][mine], label=dtype)
    steps = data["step"][where(data, what=DRIFT)]
    axes.axhline(UPDATE, color="0.5", linewidth=0.8, linestyle="-")
    axes.annotate(
        "one update", (steps.max(), UPDATE), (0, 3), textcoords="offset points", ha="right"
    )
    axes.set(xscale="log", yscale="log", xlabel="step")
    axes.set(title="Drift of perturbations that are undone (never made: 0)")
    axes.legend()


def draw_updates(axes: Axes, data: Table) -> None:
    for dtype, rounding in ROUNDINGS:
        found = [shares(data, dtype, rounding, size)[0] for size in SIZES]
        axes.plot(SIZES, found, marker="o", markersize=3, label=f"{dtype}, {rounding}")
    axes.set(xscale="log", xlabel="size of the update", ylim=(0, None))
    axes.set(title="Part of an update that is made")
    axes.legend()


def draw_training(axes: Axes, data: Table, rate: float) -> None:
    """Means over seeds, with the least and the largest as a band."""
    for dtype, rounding in TRAINED:
        mine = where(data, what=TRAINING, dtype=dtype, rounding=rounding)
        mine &= np.isclose(data["size"], rate)
        steps = np.unique(data["step"][mine])
        curves = data["value"][mine].reshape(-1, len(steps))
        label = dtype if dtype == "float32" else f"{dtype}, {rounding}"
        (line,) = axes.plot(steps, curves.mean(axis=0), label=label)
        low, high = curves.min(axis=0), curves.max(axis=0)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set(xlabel="step", title=f"Training loss of the digits, rate {rate:g}")
    axes.legend()


TARGET = Target(
    paper=Paper(
        title="Fine-Tuning Language Models with Just Forward Passes",
        authors="Malladi, Gao, Nichani, Damian, Lee, Chen, Arora",
        year=2023,
        arxiv="2305.17333",
    ),
    figure="no figure of the paper: what rounding does to its Algorithm 1 and to ours",
    claim="Perturbations made in place are undone before the descent, which then moves the "
    "parameters by the learning rate times the projected gradient; in 16 bits as in 32.",
    rule=f"undone, if what is left after one step is below 1 % of an update of {UPDATE:g}; made in "
    "full, if the part of each size is within 2 % and four standard errors of one; as far, if the "
    "ratio of falls, mean over seeds that share their draws, is at least 95 %.",
    measure=measure,
    judge=judge,
    plot=plot,
)
