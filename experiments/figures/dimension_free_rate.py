r"""MeZO on quadratics: at one effective rank of the Hessian the rate is one for all dimensions.

.. math::
    f(w) = \tfrac12 (Q w)^\top H\, Q w, \qquad r = \operatorname{tr} H / \lVert H \rVert, \qquad
    \gamma = \frac{d r + d - 2}{n (d + 2)} + 1

The rate is that of gradient descent, 1 / |H|, over gamma, and every run has 256 steps of n = 1,
from Q w of ones where H is not zero. H is diagonal, Q a Hadamard matrix with random signs, so that
the coordinates in which z is drawn are not H's. Of fixed effective rank: 16 ones and zeros; a
geometric row of r = 8; 1 / i^2, r = 1.64. The control is the identity, r = d. (A geometric row of
r = 16 is cut off in 2^6 dimensions, before its flattest directions, and the logarithm falls 1.17
times as far there as in 2^14; from 2^8 on it falls as far.)

On an H of ones and zeros the mean loss falls by 1 - 1 / gamma a step on the sphere; z is +-1 here,
for which only the diagonal part of Q'HQ, small after the rotation, makes a difference. With 1 / i^2
the loss of the last steps lies in directions that are nearly flat, whatever the dimension.

*Reference*: Malladi et al., 2023, arXiv 2305.17333, Theorem 1 and Lemma 3.
"""

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import zeroth_order
from experiments.figures.target import Paper, Part, Table, Target

STEPS, EVERY = 256, 16
POWERS = (6, 8, 10, 12, 14)  # d = 2^power
IDENTITY = "identity"
FIXED = ("16 ones", "geometric", "1 / i^2")
CHANGE = 0.1  # of the speed, from the least dimension to the largest


def spectrum(name: str, dimension: int) -> np.ndarray:
    """Eigenvalues, of which the largest is one."""
    index = np.arange(dimension)
    values = {
        "16 ones": np.where(index < 16, 1.0, 0.0),
        "geometric": (1 - 1 / 8) ** index,
        "1 / i^2": 1 / (1.0 + index) ** 2,
        IDENTITY: np.ones(dimension),
    }
    return values[name]


def gamma(dimension: int, rank: float, samples: int = 1) -> float:
    """By how much slower than gradient descent."""
    return (dimension * rank + dimension - 2) / (samples * (dimension + 2)) + 1


def rotated(x: jax.Array) -> jax.Array:
    """An orthonormal Hadamard matrix times x, of 2^k entries."""
    size, half = x.size, 1
    while half < size:
        pairs = x.reshape(-1, 2, half)
        x = jnp.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(-1)
        half *= 2
    return x / math.sqrt(size)


def descend(values: jax.Array, rate: float, steps: int, key: jax.Array) -> jax.Array:
    """One run: the loss over that of the start, at the start and after every EVERY steps."""
    signs_key, run_key = jax.random.split(key)
    signs = jax.random.rademacher(signs_key, values.shape, values.dtype)

    def loss(params: Any, batch: None) -> jax.Array:
        return 0.5 * jnp.sum(values * jnp.square(rotated(signs * params["w"])))

    along = zeroth_order.direction()
    algorithm = zeroth_order.mezo(loss, rate, zeroth_order.spsa(along, epsilon=1e-3), along)

    def chunk(state: Any, _: None) -> tuple[Any, jax.Array]:
        state, _ = jax.lax.scan(
            lambda s, _: (algorithm.update(s, None)[0], None), state, length=EVERY
        )
        return state, loss(state.params, None)

    # The rotation is its own inverse.
    start = {"w": signs * rotated(jnp.where(values > 0, 1.0, 0.0))}
    state = algorithm.init(start, run_key)
    _, found = jax.lax.scan(chunk, state, length=steps // EVERY)
    first = loss(start, None)
    return jnp.concatenate([first[None], found]) / first


def measure(quick: bool) -> Table:
    """All spectra and dimensions over 32 seeds; if quick, 4 seeds and three dimensions to 2^8."""
    seeds, powers = (4, (6, 7, 8)) if quick else (32, POWERS)
    key = jax.random.fold_in(jax.random.key(0), zlib.crc32(b"dimension_free_rate"))
    columns: dict[str, list[np.ndarray]] = {}
    for name in (*FIXED, IDENTITY):
        for dimension in (2**power for power in powers):
            values = spectrum(name, dimension)
            slower = gamma(dimension, values.sum())
            weights = jnp.asarray(values, jnp.float32)
            run = jax.jit(jax.vmap(lambda k, w=weights, g=slower: descend(w, 1 / g, STEPS, k)))
            # All share their draws, as far as their dimensions let them.
            losses = np.asarray(run(jax.random.split(jax.random.clone(key), seeds)))
            rows = {
                "spectrum": np.array(name),
                "dimension": np.array(dimension),
                "gamma": np.array(slower),
                "seed": np.arange(seeds)[:, None],
                "step": np.arange(0, STEPS + 1, EVERY),
                "loss": losses,
            }
            for column, found in rows.items():
                columns.setdefault(column, []).append(np.broadcast_to(found, losses.shape).ravel())
    return {name: np.concatenate(found) for name, found in columns.items()}


def final(data: Table, name: str, dimension: int) -> np.ndarray:
    """Losses after the last step, one a seed."""
    chosen = (data["spectrum"] == name) & (data["dimension"] == dimension)
    return data["loss"][chosen & (data["step"] == data["step"].max())]


def speed(losses: np.ndarray) -> tuple[float, float]:
    """How far the logarithm of the loss falls, mean over seeds, with its standard error."""
    falls = -np.log(losses)
    return float(falls.mean()), float(falls.std(ddof=1) / math.sqrt(len(falls)))


def judge(data: Table) -> list[Part]:
    dimensions = np.unique(data["dimension"]).tolist()
    parts = [same(data, name, dimensions) for name in FIXED]
    least, most = dimensions[0], dimensions[-1]
    slow, fast = (speed(final(data, IDENTITY, d))[0] for d in (most, least))
    ratio, linear = fast / slow, most / least
    return [
        *parts,
        Part(
            f"identity, r = d: from d = {least} to {most} the loss falls more slowly, by d",
            f"{ratio:.4g} times more slowly, d is {linear:g} times larger",
            bool(abs(ratio / linear - 1) < CHANGE),
        ),
        theory(data, dimensions),
    ]


def same(data: Table, name: str, dimensions: list[int]) -> Part:
    """Judges that the loss falls as far in all dimensions."""
    speeds = [speed(final(data, name, d)) for d in dimensions]
    change = max(value for value, _ in speeds) / min(value for value, _ in speeds) - 1
    falls = ", ".join(f"{value:.3g} ± {2 * error:.1g}" for value, error in speeds)
    gammas = [
        data["gamma"][(data["spectrum"] == name) & (data["dimension"] == d)][0] for d in dimensions
    ]
    return Part(
        f"{name}: after {STEPS} steps the loss has fallen as far for all d",
        f"log of the fall {falls} for d = {', '.join(map(str, dimensions))} "
        f"(gamma {gammas[0]:.1f} to {gammas[-1]:.1f}); largest over least {1 + change:.3f}",
        bool(change < CHANGE),
    )


def theory(data: Table, dimensions: list[int]) -> Part:
    """Judges that no mean loss is above what the theory allows on 16 ones and the identity."""
    worst = -math.inf
    for name in (FIXED[0], IDENTITY):
        for d in dimensions:
            losses = final(data, name, d)
            chosen = (data["spectrum"] == name) & (data["dimension"] == d)
            bound = (1 - 1 / data["gamma"][chosen][0]) ** STEPS
            error = losses.std(ddof=1) / math.sqrt(len(losses))
            worst = max(worst, float((losses.mean() - bound) / max(error, 1e-4 * bound)))
    return Part(
        f"16 ones and identity: the mean loss is at most (1 - 1 / gamma)^{STEPS} of the first",
        f"at most {worst:.1f} standard errors above, of {2 * len(dimensions)}",
        worst <= 3,
    )


def plot(data: Table) -> Figure:
    figure, (curves, over) = plt.subplots(1, 2, figsize=(9, 3.6))
    draw_curves(curves, data)
    draw_speeds(over, data)
    plt.close(figure)
    return figure


def draw_curves(axes: Axes, data: Table) -> None:
    """Medians over seeds on the least and the largest dimension."""
    dimensions = np.unique(data["dimension"])
    for place, name in enumerate((*FIXED, IDENTITY)):
        for d, line in ((dimensions[0], "--"), (dimensions[-1], "-")):
            chosen = (data["spectrum"] == name) & (data["dimension"] == d)
            steps = np.unique(data["step"])
            losses = np.median(data["loss"][chosen].reshape(-1, len(steps)), axis=0)
            label = name if line == "-" else None
            axes.plot(steps, losses, color=f"C{place}", linestyle=line, label=label)
    axes.set(
        yscale="log", xlabel="step", title=f"Loss, d = {dimensions[-1]} (dashed {dimensions[0]})"
    )
    axes.legend()


def draw_speeds(axes: Axes, data: Table) -> None:
    dimensions = np.unique(data["dimension"])
    for place, name in enumerate((*FIXED, IDENTITY)):
        speeds = np.array([speed(final(data, name, d)) for d in dimensions])
        axes.errorbar(
            dimensions,
            speeds[:, 0] / speeds[0, 0],
            2 * speeds[:, 1] / speeds[0, 0],
            color=f"C{place}",
            marker="o^sv"[place],
            linestyle="-",
            markersize=4,
        )
    axes.plot(dimensions, dimensions[0] / dimensions, color="0.5", linestyle=":", label="1 / d")
    axes.set(xscale="log", yscale="log", xlabel="dimension d")
    axes.set(title=f"Fall of log loss in {STEPS} steps, over the first")
    axes.legend()


TARGET = Target(
    paper=Paper(
        title="Fine-Tuning Language Models with Just Forward Passes",
        authors="Malladi, Gao, Nichani, Damian, Lee, Chen, Arora",
        year=2023,
        arxiv="2305.17333",
    ),
    figure="no figure of the paper: its Theorem 1 on quadratics in 2^6 to 2^14 dimensions, "
    "without noise of batches, z = +-1",
    claim="At the rate of gradient descent over gamma, MeZO slows down by the effective rank of "
    "the Hessian, not by the number of parameters.",
    rule=f"with losses after {STEPS} steps over 32 seeds: of fixed rank, the mean fall of the "
    f"logarithm differs by less than {CHANGE:.0%} among dimensions; of the identity, it is "
    "inversely proportional to d as closely; a mean loss is at most the theory's if it is less "
    "than three standard errors above.",
    measure=measure,
    judge=judge,
    plot=plot,
)
