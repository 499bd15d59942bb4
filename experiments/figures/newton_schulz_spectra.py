r"""Newton-Schulz: where five coefficient sets take singular values, and at what cost.

.. math::
    X_0 = X / \lVert X \rVert_F, \qquad
    X_{k+1} = a_k X_k + (b_k X_k X_k' + c_k (X_k X_k')^2) X_k

Every step is three matrix products, so that cost is three times the number of steps. The sets are
those of `optim.muon` (`standard`, `dion`, `polar_express`, `aol`), the classical quintic, which is
the Taylor expansion (15, -10, 3) / 8, and `minimax`: Polar Express without the safety factor and
the cushion that its authors add for bfloat16. `dion` has five rows and `aol` four; the others can
go on. AOL scales rows first, which turns the singular vectors: its error is in both.

Two kinds of input. Numbers in [1e-3, 1], on which Polar Express is built to be best in the worst
case; and square matrices of 64 x 64 with four spectra, rounded to bfloat16 so that both precisions
start from the same, compared with the polar factor of a singular value decomposition.

*Reference*: Amsel, Persson, Musco, Gower, 2025, arXiv 2505.16932; Boissin, Massena, Mamalet,
Serrurier, Turbo-Muon, 2025, arXiv 2512.04632 (AOL with one step less).
"""

import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures.target import Paper, Part, Table, Target
from optim.solvers.newton_schulz import (
    AOL,
    DION,
    STANDARD,
    Polynomials,
    newton_schulz,
    polar_express,
)

SIZE, LOW, STEPS, MOST = 64, 1e-3, 5, 10
CLASSICAL = (15 / 8, -10 / 8, 3 / 8)
INTERVAL = "interval"
COLUMNS = ("input", "set", "dtype", "seed", "step", "products")
VALUES = ("sigma", "image", "largest", "spectral", "frobenius")


# The set that makes a number of steps, and the largest such number.
SETS: dict[str, tuple[Callable[[int], Polynomials], int]] = {
    "classical": (lambda steps: Polynomials((CLASSICAL,) * steps), MOST),
    "standard": (lambda steps: Polynomials((STANDARD[0],) * steps), MOST),
    "dion": (lambda steps: Polynomials(DION[:steps]), len(DION)),
    "aol": (lambda steps: Polynomials(AOL[:steps], scale_rows=True), len(AOL)),
    "polar_express": (lambda steps: Polynomials(polar_express(steps), safety=1.02), MOST),
    "minimax": (lambda steps: Polynomials(polar_express(steps, safety=1.0, cushion=0.0)), MOST),
}
OTHERS = ("classical", "standard", "dion", "aol")


def spectra(seed: int) -> dict[str, np.ndarray]:
    """Matrices with entries that are normal or heavy-tailed, or with given singular values."""
    key = np.random.SeedSequence([zlib.crc32(b"newton_schulz_spectra"), seed])
    rng = np.random.default_rng(key)

    def rotated(values: np.ndarray) -> np.ndarray:
        left, right = (np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0] for _ in range(2))
        return (left * values) @ right.T

    return {
        "normal entries": rng.normal(size=(SIZE, SIZE)),
        "heavy-tailed entries": rng.standard_t(1.5, size=(SIZE, SIZE)),
        "values 1 / i": rotated(1 / np.arange(1, SIZE + 1)),
        "values 1 to 1e-3": rotated(np.geomspace(1, 1e-3, SIZE)),
    }


def on_interval(points: int) -> list[tuple]:
    """Where the sets take [LOW, 1]: rows of the table, one a point."""
    sigma = np.geomspace(LOW, 1, points)
    rows = []
    for name, (make, most) in SETS.items():
        for step in range(1, most + 1):
            chosen = make(step)
            image = sigma / chosen.safety
            for a, b, c in chosen.rows:
                image = a * image + b * image**3 + c * image**5
            worst, mean = np.abs(1 - image).max(), np.sqrt(np.mean((1 - image) ** 2))
            head = (INTERVAL, name, "float64", 0, step, 3 * step)
            rows += [(*head, s, y, image.max(), worst, mean) for s, y in zip(sigma, image)]
    return rows


def on_matrices(seeds: int) -> list[tuple]:
    """What the sets make of matrices: rows of the table, one a matrix, for its least value."""
    drawn = [spectra(seed) for seed in range(seeds)]
    names = [(name, seed) for seed, found in enumerate(drawn) for name in found]
    stack = np.stack([x for found in drawn for x in found.values()])
    stack /= np.linalg.norm(stack, axis=(1, 2), keepdims=True)
    stack = stack.astype(jnp.bfloat16).astype(np.float64)
    left, values, right = np.linalg.svd(stack)
    rows = []
    for set_name, (make, most) in SETS.items():
        for step in range(1, min(STEPS, most) + 1):
            for dtype in ("float64", "bfloat16"):
                results = orthogonalized(stack, make(step), dtype)
                for (name, seed), s, y, polar in zip(names, values, results, left @ right):
                    head = (name, set_name, dtype, seed, step, 3 * step)
                    rows.append((*head, s[-1] / s[0], *measured(y, polar)))
    return rows


def orthogonalized(stack: np.ndarray, chosen: Polynomials, dtype: str) -> np.ndarray:
    with jax.enable_x64(True):
        result = newton_schulz(
            jnp.asarray(stack, dtype),
            chosen.rows,
            safety=chosen.safety,
            scale_rows=chosen.scale_rows,
        )
        return np.asarray(result.astype(jnp.float64))


def measured(result: np.ndarray, polar: np.ndarray) -> tuple[float, float, float, float]:
    """Least and largest singular value, and the distance from the polar factor in two norms."""
    if not np.isfinite(result).all():
        return (np.inf,) * 4
    values = np.linalg.svd(result, compute_uv=False)
    off = result - polar
    norms = np.linalg.norm(off, 2), np.linalg.norm(off) / SIZE**0.5
    return float(values[-1]), float(values[0]), float(norms[0]), float(norms[1])


def measure(quick: bool) -> Table:
    """All sets on the interval, and on matrices of three seeds (one if quick)."""
    rows = on_interval(50 if quick else 400) + on_matrices(1 if quick else 3)
    return {
        name: np.array(column)
        for name, column in zip(COLUMNS + VALUES, zip(*rows, strict=True), strict=True)
    }


def mean(data: Table, column: str, given: str, name: str, step: int, dtype: str) -> float:
    """Over seeds, of one column, after so many steps, or all that the set has if those are less."""
    step = min(step, SETS[name][1])
    chosen = (data["input"] == given) & (data["set"] == name) & (data["step"] == step)
    return float(data[column][chosen & (data["dtype"] == dtype)].mean())


def below(claim: str, ours: str, values: Mapping[str, float]) -> Part:
    """Judges that one set's value is the smallest."""
    measured = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    return Part(claim, measured, all(values[ours] < v for k, v in values.items() if k != ours))


def judge(data: Table) -> list[Part]:
    given = [name for name in dict.fromkeys(data["input"].tolist()) if name != INTERVAL]

    def compared(what: str, steps: Mapping[str, int], column: str = "spectral") -> dict[str, float]:
        return {name: mean(data, column, what, name, k, "float64") for name, k in steps.items()}

    def all_after(step: int) -> dict[str, int]:
        return {"polar_express": step, **dict.fromkeys(OTHERS, step)}

    early = [
        below(
            f"step {step} on [{LOW:g}, 1]: worst error of Polar Express smallest",
            "polar_express",
            compared(INTERVAL, all_after(step)),
        )
        for step in range(1, STEPS + 1)
    ]
    late = below(
        f"step 8 on [{LOW:g}, 1]: of the sets that go on, Polar Express nearest",
        "polar_express",
        compared(INTERVAL, dict.fromkeys(("polar_express", "classical", "standard"), 8)),
    )
    on_each = [
        below(
            f"{STEPS} steps (AOL 4), {what}: spectral error of Polar Express smallest",
            "polar_express",
            compared(what, all_after(STEPS)),
        )
        for what in given
    ]
    less = [
        below(
            f"{what}: Frobenius error of AOL after 4 steps below the standard rows' after 5",
            "aol",
            compared(what, {"aol": 4, "standard": 5}, "frobenius"),
        )
        for what in given
    ]
    return [*early, late, *on_each, in_bfloat16(data, given), *less]


def in_bfloat16(data: Table, given: Sequence[str]) -> Part:
    """Judges the largest singular value, beside that without safety factor and cushion."""

    def largest(name: str, dtype: str) -> float:
        return max(mean(data, "largest", what, name, STEPS, dtype) for what in given)

    ours, exact = (largest("polar_express", dtype) for dtype in ("bfloat16", "float64"))
    return Part(
        f"{STEPS} steps in bfloat16: singular values of Polar Express stay where they belong",
        f"largest {ours:.3f}, in float64 {exact:.3f}; without safety and cushion "
        f"{largest('minimax', 'bfloat16'):.3g}",
        abs(ours - exact) < 0.05,
    )


def plot(data: Table) -> Figure:
    figure, ((curves, worst), (errors, rounded)) = plt.subplots(2, 2, figsize=(9, 6.8))
    draw_curves(curves, data)
    draw_worst(worst, data)
    draw_errors(errors, data)
    draw_rounded(rounded, data)
    figure.legend(*worst.get_legend_handles_labels(), loc="outside upper center", ncols=6)
    plt.close(figure)
    return figure


def draw_curves(axes: Axes, data: Table) -> None:
    """Where each set takes the interval in five steps, AOL in four."""
    for name, (_, most) in SETS.items():
        chosen = (data["input"] == INTERVAL) & (data["set"] == name)
        chosen &= data["step"] == min(STEPS, most)
        axes.plot(data["sigma"][chosen], data["image"][chosen])
    # Above 0.1 they go on as they are there, ever faster.
    axes.set(xscale="log", xlabel="singular value", xlim=(LOW, 0.1), ylim=(0, 1.3))
    axes.set(title=f"Singular values after {STEPS} steps (AOL 4)")


def draw_worst(axes: Axes, data: Table) -> None:
    for name, (_, most) in SETS.items():
        steps = np.arange(1, most + 1)
        values = [mean(data, "spectral", INTERVAL, name, int(k), "float64") for k in steps]
        axes.plot(3 * steps, values, marker="o", markersize=3, label=name)
    axes.set(yscale="log", ylim=(1e-8, 2), xlabel="matrix products")
    axes.set(title=f"Worst error on [{LOW:g}, 1]")


def draw_errors(axes: Axes, data: Table) -> None:
    given = [name for name in dict.fromkeys(data["input"].tolist()) if name != INTERVAL]
    width = 0.8 / len(SETS)
    for place, name in enumerate(SETS):
        heights = [mean(data, "spectral", what, name, STEPS, "float64") for what in given]
        axes.bar(np.arange(len(given)) + (place - 2.5) * width, heights, width)
    axes.set_xticks(range(len(given)), [name.replace(" ", "\n", 1) for name in given])
    axes.grid(False, axis="x")
    axes.set(title=f"Spectral error after {STEPS} steps (AOL 4), 64 x 64")


def draw_rounded(axes: Axes, data: Table) -> None:
    """The largest singular value of all matrices in bfloat16."""
    chosen = (data["input"] != INTERVAL) & (data["dtype"] == "bfloat16")
    for name, (_, most) in SETS.items():
        steps = np.arange(1, min(STEPS, most) + 1)
        mine = chosen & (data["set"] == name)
        values = [data["largest"][mine & (data["step"] == step)].max() for step in steps]
        axes.plot(3 * steps, values, marker="o", markersize=3)
    axes.set(yscale="log", xlabel="matrix products", title="Largest singular value in bfloat16")


TARGET = Target(
    paper=Paper(
        title="The Polar Express: Optimal Matrix Sign Methods and Their Application to the Muon "
        "Algorithm",
        authors="Amsel, Persson, Musco, Gower",
        year=2025,
        arxiv="2505.16932",
    ),
    figure="no figure of the paper: its convergence plots on inputs of our own, the interval "
    f"[{LOW:g}, 1] and matrices of {SIZE} x {SIZE}; the last parts are the claim of Turbo-Muon, "
    "arXiv 2512.04632",
    claim="Polar Express minimizes the error in the worst case, so that it converges as fast as "
    "possible both in the early steps and in the end, and it works in bfloat16; with AOL's scaling "
    "of rows one of five steps can be left out without a worse approximation.",
    rule="a part holds if the named set has the smallest error, mean of three seeds for matrices, "
    "in float64, each set with the authors' safety factor; in bfloat16, if the largest singular "
    "value is within 0.05 of that in float64.",
    measure=measure,
    judge=judge,
    plot=plot,
)
