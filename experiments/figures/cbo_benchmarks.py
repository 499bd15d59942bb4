r"""CBO on Rastrigin's and Ackley's functions: which noise serves how many coordinates.

.. math::
    x_i \leftarrow x_i - \lambda\,dt\,(x_i - c) + \sigma \sqrt{dt}\, n_i, \qquad
    n_i = \lVert x_i - c \rVert z_i \text{ or } (x_i - c) \odot z_i

100 particles start uniformly in :math:`[-3, 3]^d`, with the minimum at (1, ..., 1), off the middle,
and take 1,000 steps of CBXpy's defaults: dt = 0.01, lambda = 1, alpha = 1 times 1.05 a step up to
1e5. A run succeeds if no coordinate of its last consensus is further than 0.25 from the minimum's,
as CBXpy counts. Its sigma of 5.1 is tried with its halves, quarters and so on, and its double, for
both noises alike, so that neither is judged at the other's. Rastrigin in 20 coordinates does best
with the largest that was tried.

*Reference*: Carrillo, Jin, Li, Zhu, 2021, arXiv 1909.09249; CBXpy, PdIPS/CBXpy@1ff2b4a. Start,
dimensions, sigmas and number of particles are our own; the paper's tables were not read.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import zeroth_order
from experiments.figures.target import Paper, Part, Table, Target

PARTICLES, WIDTH, MINIMUM, NEAR = 100, 3.0, 1.0, 0.25
DEFAULT = 5.1  # CBXpy's sigma
SIGMAS = DEFAULT * 2.0 ** np.arange(-5, 2)
NOISES = ("isotropic", "anisotropic")


def rastrigin(x: jax.Array, batch: None = None) -> jax.Array:
    y = x - MINIMUM
    return jnp.sum(y**2 - 10 * jnp.cos(2 * jnp.pi * y) + 10)


def ackley(x: jax.Array, batch: None = None) -> jax.Array:
    y = x - MINIMUM
    bowl = -20 * jnp.exp(-0.2 * jnp.sqrt(jnp.mean(y**2)))
    return bowl - jnp.exp(jnp.mean(jnp.cos(2 * jnp.pi * y))) + 20 + math.e


FUNCTIONS = {"Rastrigin": rastrigin, "Ackley": ackley}


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def successes(
    loss: Callable[..., jax.Array], noise: str, dimension: int, seeds: int, steps: int
) -> jax.Array:
    """(sigmas, seeds): whether a run ends near the minimum. Seeds share their starts and noise."""

    def run(sigma: jax.Array, seed: jax.Array) -> jax.Array:
        key, place = jax.random.split(jax.random.key(seed))
        shape = (PARTICLES, dimension)
        algorithm = zeroth_order.cbo(loss, noise=noise, sigma=sigma)  # type: ignore[arg-type]
        state = algorithm.init(jax.random.uniform(place, shape, minval=-WIDTH, maxval=WIDTH), key)
        state, info = algorithm.update(state, None)

        def step(_: int, carry: tuple) -> tuple:
            return algorithm.update(carry[0], None)

        _, info = jax.lax.fori_loop(0, steps - 1, step, (state, info))
        return jnp.all(jnp.abs(info.consensus - MINIMUM) <= NEAR)

    runs = jax.vmap(run, (None, 0))
    return jax.lax.map(lambda sigma: runs(sigma, jnp.arange(seeds)), jnp.asarray(SIGMAS))


def measure(quick: bool) -> Table:
    """The share of seeds that succeed, for each function, noise, dimension and sigma."""
    seeds, steps, dimensions = (4, 200, (2, 6)) if quick else (100, 1000, (2, 5, 10, 15, 20))
    rows = [
        (name, noise, dimension, sigma, seeds, share)
        for name, loss in FUNCTIONS.items()
        for noise in NOISES
        for dimension in dimensions
        for sigma, share in zip(
            SIGMAS,
            np.asarray(successes(loss, noise, dimension, seeds, steps)).mean(axis=1),
            strict=True,
        )
    ]
    names = ("function", "noise", "dimension", "sigma", "seeds", "success")
    return {name: np.array(column) for name, column in zip(names, zip(*rows), strict=True)}


def shares(data: Table, function: str, noise: str) -> np.ndarray:
    """(dimensions, sigmas) of success rates."""
    chosen = (data["function"] == function) & (data["noise"] == noise)
    return data["success"][chosen].reshape(-1, len(np.unique(data["sigma"])))


def above(claim: str, high: float, low: float, seeds: int) -> Part:
    """Judges that one success rate exceeds another by more than two standard errors."""
    error = math.sqrt((high * (1 - high) + low * (1 - low)) / seeds)
    measured = f"{high:.0%} over {low:.0%} of {seeds} seeds"
    return Part(claim, measured, bool(high - low > 2 * error))


def judge(data: Table) -> list[Part]:
    seeds, most = int(data["seeds"][0]), int(data["dimension"].max())
    sigmas = np.unique(data["sigma"])
    default = int(np.argmin(np.abs(sigmas - DEFAULT)))
    parts = []
    for function in FUNCTIONS:
        isotropic, anisotropic = (shares(data, function, noise) for noise in NOISES)
        wide, narrow = (rates.min(axis=0).max() for rates in (anisotropic, isotropic))
        parts += [
            above(
                f"{function}, {most} coordinates, CBXpy's sigma: anisotropic succeeds more often",
                anisotropic[-1, default],
                isotropic[-1, default],
                seeds,
            ),
            above(
                f"{function}, {most} coordinates, each at its best sigma: the same",
                anisotropic[-1].max(),
                isotropic[-1].max(),
                seeds,
            ),
            above(
                f"{function}, one sigma for all dimensions, the worst of them: the same",
                wide,
                narrow,
                seeds,
            ),
        ]
    return parts


def draw(axes: Axes, data: Table, function: str) -> None:
    """Success over dimensions: each noise at CBXpy's sigma, and at the best one each time."""
    dimensions = np.unique(data["dimension"])
    default = int(np.argmin(np.abs(np.unique(data["sigma"]) - DEFAULT)))
    for noise, color in zip(NOISES, ("C1", "C0")):
        rates = shares(data, function, noise)
        label = f"{noise}, best sigma"
        axes.plot(dimensions, rates.max(axis=1), "o-", color=color, markersize=4, label=label)
        label = f"{noise}, sigma {DEFAULT:g}"
        axes.plot(dimensions, rates[:, default], "s:", color=color, markersize=4, label=label)
    axes.set(title=function, xlabel="coordinates", ylim=(-0.03, 1.03), xticks=dimensions)


def draw_rates(axes: Axes, data: Table, function: str, noise: str) -> None:
    """Success over sigma, one line a dimension."""
    dimensions, sigmas = np.unique(data["dimension"]), np.unique(data["sigma"])
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(dimensions)))
    for dimension, rates, shade in zip(dimensions, shares(data, function, noise), shades):
        axes.plot(sigmas, rates, "o-", color=shade, markersize=3, label=f"{dimension}")
    axes.set(title=f"{function}, {noise}", xscale="log", xlabel="sigma", ylim=(-0.03, 1.03))


def plot(data: Table) -> Figure:
    figure, panels = plt.subplots(2, 3, figsize=(10, 6.2), sharey=True)
    for row, function in zip(panels, FUNCTIONS):
        draw(row[0], data, function)
        for axes, noise in zip(row[1:], NOISES):
            draw_rates(axes, data, function, noise)
        row[0].set(ylabel="share of runs that succeed")
    panels[0, 1].legend(title="coordinates", loc="center left")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    plt.close(figure)
    return figure


TARGET = Target(
    paper=Paper(
        title="A consensus-based global optimization method for high dimensional machine learning "
        "problems",
        authors="Carrillo, Jin, Li, Zhu",
        year=2021,
        arxiv="1909.09249",
    ),
    figure="success rates on benchmark functions, in the manner of CBXpy; dimensions, start, "
    "sigmas and the number of particles are our own",
    claim="Anisotropic noise makes consensus-based optimization fit for high dimensions: its "
    "parameters need not depend on the dimension, where isotropic noise fails.",
    rule="100 seeds that share starts and noise, 100 particles, 1,000 steps; a run succeeds if its "
    "last consensus is within 0.25 of the minimum in every coordinate; a part holds if the "
    "difference exceeds two standard errors of two independent rates.",
    measure=measure,
    judge=judge,
    plot=plot,
)
