r"""FZooS on the authors' federated quadratic, against random gradient-free clients.

.. math::
    F_i(x) = \tfrac{0.1}{d} \left( c_{1i} \cdot y^2 + c_{2i} \cdot y + 1 \right), \qquad
    y = 20\,\mathrm{clip}(x, 0, 1) - 10

with d = 300 and n = 5 clients, whose coefficients are 1 + 0.5 (p - 1/n), p from Dirichlet's
distribution with parameters 1/n, so that they differ and their mean is known: F has its minimum at
y = -1/2. Problems and starts are those of the authors' seeds, 1234 and on; so are 10 iterations a
round and Adam at 0.01. The others estimate gradients by forward differences of 0.01 along 20
orthonormal directions and, in the authors' terms, correct them by nothing (none), by x minus the
round's start (prox, here from the first round on), by estimates at that start (diff), or by the
last round's averages (scaf).

A query is a value that a method uses, of one client: 106 a round here and 11 at the start; 210, or
230 (diff), and 1 for the others. The authors count diff's estimates not at all, some values twice.

*Reference*: Shu, Lin, Dai, Low, 2023, arXiv 2308.04077; shuyao95/FZooS@27cd341, run_exp.py,
settings.py, optimizers.py, funcs/synthetics.py. The paper's figure was not read.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import zeroth_order
from experiments.figures.target import Paper, Part, Table, Target

CLIENTS, DIVERGENCE, ITERATIONS, RATE = 5, 0.5, 10, 0.01
DIRECTIONS, PROBE = 20, 0.01
SHARES = {"a tenth": 0.1, "a hundredth": 0.01}  # of the first gap: what is to be reached
CORRECTIONS = ("none", "prox", "diff", "scaf")
METHODS = ("FZooS", *(f"RGF, {name}" for name in CORRECTIONS))


def problem(trial: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (clients, 2, dimension) and the start, as the authors draw them."""
    rng = np.random.RandomState(1234 + trial)
    shares = [rng.dirichlet([1 / CLIENTS] * CLIENTS, size=dimension).T for _ in range(2)]
    coefficients = 1 + DIVERGENCE * (np.stack(shares, axis=1) - 1 / CLIENTS)
    return coefficients, rng.uniform(size=dimension)


def loss(x: jax.Array, coefficients: jax.Array) -> jax.Array:
    y = 20 * jnp.clip(x, 0, 1) - 10
    return 0.1 / x.size * (coefficients[0] @ y**2 + coefficients[1] @ y + 1)


def least(dimension: int) -> float:
    """The minimum of the clients' mean."""
    return 0.1 / dimension * (1 - dimension / 4)


def fzoos(start: jax.Array, clients: jax.Array, key: jax.Array, rounds: int, sizes: dict) -> tuple:
    """Queries of a client and values of F, at the start and after each round."""
    optimizer = optax.adam(RATE)
    algorithm = zeroth_order.fzoos(loss, optimizer, iterations=ITERATIONS, **sizes)
    state = algorithm.init(start, key, clients)
    queries, values = [int(state.queries.total[0])], [float(jnp.mean(state.losses))]
    update = jax.jit(algorithm.update, donate_argnums=0)
    for _ in range(rounds):
        state, info = update(state, clients)
        queries.append(queries[-1] + int(info.evaluations) // CLIENTS)
        values.append(float(info.loss))
    return np.array(queries), np.array(values)


def estimate(x: jax.Array, client: jax.Array, key: jax.Array) -> jax.Array:
    """Forward differences along orthonormal directions, averaged."""
    directions = jnp.linalg.qr(jax.random.normal(key, (x.size, DIRECTIONS), x.dtype))[0].T
    values = jax.vmap(lambda u: loss(x + PROBE * u, client))(directions)
    return (values - loss(x, client)) / PROBE @ directions / DIRECTIONS


def walk(
    correction: str, start: jax.Array, client: Any, own: Any, mean: Any, key: Any
) -> tuple[jax.Array, jax.Array]:
    """One client's iterations: where they end, and its mean estimate."""
    optimizer = optax.adam(RATE)

    def step(carry: tuple, t: jax.Array) -> tuple:
        x, state = carry
        found = estimate(x, client, jax.random.fold_in(key, t))
        shift = x - start if correction == "prox" else mean - own
        updates, state = optimizer.update(found + shift, state)
        return (x + jnp.asarray(updates), state), found

    first = (start, optimizer.init(start))
    estimates: jax.Array
    (end, _), estimates = jax.lax.scan(step, first, jnp.arange(ITERATIONS))
    return end, jnp.mean(estimates, axis=0)


@functools.partial(jax.jit, static_argnums=(0, 4))
def rgf(
    correction: str, start: jax.Array, clients: jax.Array, key: jax.Array, rounds: int
) -> jax.Array:
    """Values of F at the start and after each round; a round that does not lower F is undone."""

    def value(x: jax.Array) -> jax.Array:
        return jnp.mean(jax.vmap(loss, (None, 0))(x, clients))

    def one(carry: tuple, key: jax.Array) -> tuple:
        x, own = carry
        walking, probing = jax.random.split(key, (2, CLIENTS))
        ends, averages = jax.vmap(functools.partial(walk, correction), (None, 0, 0, None, 0))(
            x, clients, own, jnp.mean(own, axis=0), walking
        )
        y = jnp.mean(ends, axis=0)
        x = jnp.where(value(y) < value(x), y, x)
        if correction == "diff":
            own = jax.vmap(estimate, (None, 0, 0))(x, clients, probing)
        if correction == "scaf":
            own = averages
        return (x, own), value(x)

    own = jnp.zeros((CLIENTS, start.size), start.dtype)
    values: jax.Array = jax.lax.scan(one, (start, own), jax.random.split(key, rounds))[1]
    return jnp.concatenate([value(start)[None], values])


def measure(quick: bool) -> Table:
    """The gap to the minimum after each round of each method and trial."""
    dimension, trials, few, many = (20, 2, 3, 8) if quick else (300, 3, 15, 50)
    sizes = {"features": 200, "memory": 300, "neighbours": 60} if quick else {}
    names = ("method", "trial", "round", "queries", "gap")
    rows: list[tuple] = []
    with jax.enable_x64(True):
        for trial in range(trials):
            coefficients, start = map(jnp.asarray, problem(trial, dimension))
            key = jax.random.key(trial)
            found = {"FZooS": fzoos(start, coefficients, jax.random.clone(key), few, sizes)}
            for name in CORRECTIONS:
                values = rgf(name, start, coefficients, jax.random.clone(key), many)
                cost = ITERATIONS * (DIRECTIONS + 1) + (DIRECTIONS if name == "diff" else 0)
                found[f"RGF, {name}"] = (1 + cost * np.arange(many + 1), np.asarray(values))
            for method, (queries, values) in found.items():
                gaps = values - least(dimension)
                rows += [(method, trial, r, q, g) for r, (q, g) in enumerate(zip(queries, gaps))]
    return {name: np.array(column) for name, column in zip(names, zip(*rows), strict=True)}


def reached(data: Table, method: str, column: str, share: float) -> np.ndarray:
    """For each trial, queries or rounds until the gap is this share of the first; inf if never."""
    taken = []
    for trial in np.unique(data["trial"]):
        chosen = (data["method"] == method) & (data["trial"] == trial)
        gaps = data["gap"][chosen]
        there = gaps <= share * gaps[0]
        taken.append(float(data[column][chosen][np.argmax(there)]) if there.any() else np.inf)
    return np.array(taken)


def listed(counts: np.ndarray) -> str:
    return ", ".join(f"{c:.0f}" if np.isfinite(c) else "never" for c in counts)


def judge(data: Table) -> list[Part]:
    parts = []
    for words, share in SHARES.items():
        for column in ("queries", "round"):
            ours = reached(data, "FZooS", column, share)
            for method in METHODS[1:]:
                theirs = reached(data, method, column, share)
                claim = f"to {words}: fewer {column.rstrip('s')}s than {method}"
                measured = f"{listed(ours)} against {listed(theirs)}"
                parts.append(Part(claim, measured, bool(np.all(ours < theirs))))
    return parts


def draw(axes: Axes, data: Table, column: str) -> None:
    """The mean gap over trials, and all of them as a band."""
    for method in METHODS:
        chosen = data["method"] == method
        gaps = data["gap"][chosen].reshape(len(np.unique(data["trial"])), -1)
        along = data[column][chosen].reshape(gaps.shape)[0]
        (line,) = axes.plot(along, gaps.mean(axis=0), label=method)
        low, high = gaps.min(axis=0), gaps.max(axis=0)
        axes.fill_between(along, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(yscale="log")


def plot(data: Table) -> Figure:
    figure, (queries, rounds) = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    draw(queries, data, "queries")
    draw(rounds, data, "round")
    queries.set(
        xlabel="queries of a client", ylabel="F - minimum", title="Mean and range of trials"
    )
    rounds.set(xlabel="rounds of communication")
    figure.legend(*queries.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    plt.close(figure)
    return figure


TARGET = Target(
    paper=Paper(
        title="Federated Zeroth-Order Optimization using Trajectory-Informed Surrogate Gradients",
        authors="Shu, Lin, Dai, Low",
        year=2023,
        arxiv="2308.04077",
    ),
    figure="the synthetic quadratic of the authors' code, d = 300, 5 clients, divergence 0.5, on "
    "their seeds 1234 to 1236; 15 rounds for FZooS, 50 for the others",
    claim="FZooS needs fewer queries and fewer rounds of communication than federated zeroth-order "
    "methods that estimate gradients by finite differences, however these are corrected.",
    rule="until the gap to the minimum is a tenth, and a hundredth, of the first one; a part holds "
    "if FZooS needs fewer in every trial.",
    measure=measure,
    judge=judge,
    plot=plot,
)
