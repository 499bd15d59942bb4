r"""How much longer a zeroth-order gradient is than the gradient: (d + n - 1) / n in squares.

.. math::
    g = \frac1n \sum_{j=1}^n z_j z_j^\top \nabla, \qquad
    \frac{E |g|^2}{|\nabla|^2} = \frac{E |z|^2 (z^\top v)^2 + n - 1}{n}, \quad
    v = \nabla / |\nabla|

With z of d independent entries of fourth moment k the expectation on the right is d - 1 + k; on the
sphere of radius sqrt(d), which the paper takes, it is d, as for +-1. Linear losses with gradients
of normal entries, for which `zeroth_order.spsa` makes no error but rounding; probes of size 1 from
the origin, so that nothing cancels. The sphere's are normal ones of jax.random, divided by their
length: the package has none, since a length is no function of one element's address.

*Reference*: Malladi et al., 2023, arXiv 2305.17333, Lemma 2.
"""

import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import zeroth_order
from experiments.figures.target import Paper, Part, Table, Target

SPHERE = "sphere"
# The fourth moments of entries.
DRAWS = {"+-1": 1.0, "popcount normal": 2.9375, "normal": 3.0}
NOISE = {
    "+-1": zeroth_order.rademacher,
    "popcount normal": zeroth_order.popcount_normal,
    "normal": zeroth_order.box_muller_normal,
}
DIMENSIONS, SAMPLES = (4, 64, 1024), (1, 4, 16, 64)
ERRORS = 4.0  # standard errors that a mean may be off

Squares = Callable[[jax.Array], jax.Array]  # seed -> |g|^2


def ours(draw: str, slope: jax.Array, samples: int) -> Squares:
    """By spsa on the loss slope'w, the estimate written out."""
    along = zeroth_order.direction(NOISE[draw])
    estimator = zeroth_order.spsa(along, epsilon=1.0, samples=samples)

    def square(seed: jax.Array) -> jax.Array:
        params = {"w": jnp.zeros_like(slope)}
        # The samples of a seed are those of the next seeds.
        found = estimator(lambda p: slope @ p["w"], params, seed * jnp.uint32(samples))
        gradient = zeroth_order.materialize(along, found.gradient, params)["w"]
        return gradient @ gradient

    return square


def on_sphere(slope: jax.Array, samples: int) -> Squares:
    """With directions of length sqrt(d)."""

    def square(seed: jax.Array) -> jax.Array:
        z = jax.random.normal(jax.random.key(seed), (samples, slope.size))
        z = z * (math.sqrt(slope.size) / jnp.linalg.norm(z, axis=1, keepdims=True))
        gradient = (z @ slope) @ z / samples
        return gradient @ gradient

    return square


def expected(draw: str, dimension: int, samples: int) -> float:
    """The ratio: the paper's on the sphere, and that of independent entries."""
    fourth = 1.0 if draw == SPHERE else DRAWS[draw]
    return (dimension - 1 + fourth + samples - 1) / samples


def measure(quick: bool) -> Table:
    """Means and standard errors over 4,096 estimates (256 if quick)."""
    count = 256 if quick else 4096
    dimensions, samples = (DIMENSIONS[:2], SAMPLES[:2]) if quick else (DIMENSIONS, SAMPLES)
    key = jax.random.fold_in(jax.random.key(0), zlib.crc32(b"gradient_norm_ratio"))
    rows = []
    for d in dimensions:
        slope = jax.random.normal(jax.random.fold_in(key, d), (d,))
        for n in samples:
            for draw in (SPHERE, *DRAWS):
                square = on_sphere(slope, n) if draw == SPHERE else ours(draw, slope, n)
                seeds = jnp.arange(count, dtype=jnp.uint32)
                squares = np.asarray(jax.jit(lambda s, f=square: jax.lax.map(f, s))(seeds))
                ratios = squares / float(slope @ slope)
                error = ratios.std(ddof=1) / math.sqrt(count)
                rows.append((draw, d, n, ratios.mean(), error, expected(draw, d, n)))
    names = ("draw", "dimension", "samples", "ratio", "standard_error", "expected")
    columns = zip(*rows, strict=True)
    return {name: np.array(column) for name, column in zip(names, columns, strict=True)}


def judge(data: Table) -> list[Part]:
    """One part a draw, and one whether the paper's formula does for normal entries."""
    parts = []
    for draw in dict.fromkeys(data["draw"].tolist()):
        formula = {SPHERE: "", "+-1": ""}.get(draw, f", with d + {DRAWS.get(draw, 1) - 1:g} for d")
        mine = data["draw"] == draw
        parts.append(agrees(f"{draw}: the ratio is (d + n - 1) / n{formula}", data, mine))
    normal = data["draw"] == "normal"
    papers = (data["dimension"] + data["samples"] - 1) / data["samples"]
    claim = "normal: the ratio is the sphere's, (d + n - 1) / n"
    return [*parts, agrees(claim, {**data, "expected": papers}, normal)]


def agrees(claim: str, data: Table, chosen: np.ndarray) -> Part:
    """Judges that every mean is within its error of what is expected."""
    ratio, error, right = (data[c][chosen] for c in ("ratio", "standard_error", "expected"))
    # Of a constant only rounding is left.
    off = np.abs(ratio - right) / np.maximum(error, 1e-5 * right)
    worst = int(off.argmax())
    d, n = (int(data[c][chosen][worst]) for c in ("dimension", "samples"))
    measured = (
        f"worst of {off.size}, d = {d}, n = {n}: {ratio[worst]:.4g} ± {error[worst]:.2g} "
        f"for {right[worst]:.4g}, {off[worst]:.1f} errors"
    )
    return Part(claim, measured, bool(off[worst] <= ERRORS))


def plot(data: Table) -> Figure:
    """The ratio over n, and how far it is from the paper's formula."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    draws, dimensions = (list(dict.fromkeys(data[c].tolist())) for c in ("draw", "dimension"))
    width = 0.06
    for place, draw in enumerate(draws):
        for d in dimensions:
            mine = (data["draw"] == draw) & (data["dimension"] == d)
            n, ratio, error = (data[c][mine] for c in ("samples", "ratio", "standard_error"))
            shifted, papers = n * (1 + width * (place - 1.5)), (d + n - 1) / n
            style = {"color": f"C{place}", "linestyle": "none", "marker": "o^sv"[place]}
            label = draw if d == dimensions[0] else None
            left.errorbar(shifted, ratio, ERRORS * error, label=label, markersize=4, **style)
            if d == dimensions[0]:
                right.errorbar(shifted, ratio / papers, ERRORS * error / papers, **style)
    fine = np.geomspace(1, max(data["samples"]), 100)
    for d in dimensions:
        left.plot(fine, (d + fine - 1) / fine, color="0.4", linestyle="-", linewidth=0.8, zorder=0)
        left.annotate(f"d = {d}", (1, d), (-6, 4), textcoords="offset points", ha="right")
    right.axhline(1, color="0.4", linestyle="-", linewidth=0.8)
    left.set(xscale="log", yscale="log", xlabel="samples n", xlim=(0.35, None))
    left.set(title="E |g|² / |gradient|², lines (d + n - 1) / n")
    right.set(xscale="log", xlabel="samples n", title=f"Over the line, d = {dimensions[0]}")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    plt.close(figure)
    return figure


TARGET = Target(
    paper=Paper(
        title="Fine-Tuning Language Models with Just Forward Passes",
        authors="Malladi, Gao, Nichani, Damian, Lee, Chen, Arora",
        year=2023,
        arxiv="2305.17333",
    ),
    figure="no figure of the paper: its Lemma 2, measured on linear losses in "
    f"{', '.join(map(str, DIMENSIONS))} dimensions, 4,096 estimates each; lines in the figure are "
    f"its formula, bars {ERRORS:g} standard errors",
    claim="The squared length of an n-sample zeroth-order gradient is (d + n - 1) / n times that "
    "of the gradient, z on the sphere of radius sqrt(d).",
    rule=f"a part holds if every mean is within {ERRORS:g} standard errors of the formula.",
    measure=measure,
    judge=judge,
    plot=plot,
)
