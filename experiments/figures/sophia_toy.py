r"""Sophia's toy: a sharp coordinate that is not convex, and a flat one.

.. math::
    L(x, y) = 8 (x - 1)^2 (1.3 x^2 + 2 x + 1) + \frac{c}{2} (y - 4)^2

A loss of the kind by which the paper motivates the method; that it is the very one of its Figure 2,
with c = 1, was not checked against the paper. The minimum is at (1, 4), x = 0 a maximum of the
first term, whose curvature is negative between -0.37 and 0.60. All start at (0.2, 0), and each
takes the rate of a grid of powers of two at which it is soonest within 0.05 of the minimum, for
good. Sophia is without averages, each step at most the rate :math:`\rho`: clip(g / h, -rho, rho).
Starts and rates are our own. Besides, 200 starts drawn from [0.05, 1.5] x [-1, 8], and flatter
second coordinates, c = 0.1 and 0.01, for the claim that curvature does not set Sophia's time.

*Reference*: Liu, Li, Hall, Liang, Ma, 2023, arXiv 2305.14342.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import optim
from experiments.figures.descents import descend, steps_until
from experiments.figures.target import Paper, Part, Table, Target

START, MINIMUM, NEAR = (0.2, 0.0), (1.0, 4.0), 0.05
FLATNESS = (1.0, 0.1, 0.01)
RATES = 2.0 ** np.arange(-10, 3)


def loss(flatness: float, position: jax.Array) -> jax.Array:
    x, y = position
    return 8 * (x - 1) ** 2 * (1.3 * x**2 + 2 * x + 1) + flatness / 2 * (y - 4) ** 2


def newton(rate: jax.Array) -> optax.GradientTransformation:
    """The loss has no mixed derivative, so that its diagonal is the Hessian."""

    def update(updates, state, params=None, *, curvature, **extra_args):
        return jax.tree.map(lambda g, h: -rate * g / h, updates, curvature), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    return optim.with_curvature(inner)


def sophia(rate: jax.Array) -> optax.GradientTransformation:
    inner = optim.sophia(rate, b1=0.0, b2=0.0, gamma=rate, variant="paper", weight_decay=0.0)
    return optim.with_curvature(inner)


def sign_descent(rate: jax.Array) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(rate))


METHODS: Mapping[str, Callable[[jax.Array], optax.GradientTransformation]] = {
    "gradient descent": optax.sgd,
    "sign descent": sign_descent,
    "Adam": optax.adam,
    "Newton": newton,
    "Sophia": sophia,
}


def near(path: np.ndarray) -> np.ndarray:
    """(..., 2) -> whether it is near the minimum."""
    with np.errstate(over="ignore", invalid="ignore"):  # of runs that diverge
        return np.linalg.norm(path - np.array(MINIMUM), axis=-1) <= NEAR


def starts(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.uniform(0.05, 1.5, count), rng.uniform(-1, 8, count)], axis=1)


def measure(quick: bool) -> Table:
    """The path of each method at its best rate, and how long it takes; rows by method and step."""
    steps, drawn = (500, 20) if quick else (4000, 200)
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    for name, make in METHODS.items():
        for flatness in FLATNESS:
            loss_fn = functools.partial(loss, flatness)
            rates = np.ones(1) if name == "Newton" else RATES
            paths = descend(make, loss_fn, np.array([START]), rates, steps)[0]
            taken = steps_until(near(paths))
            best = int(np.argmin(taken))
            share = np.nan
            if flatness == 1:
                others = descend(make, loss_fn, starts(drawn), rates[best, None], steps)
                share = near(others[:, 0, -1]).mean()
            kept = paths[best, : SHOWN + 1] if flatness == 1 else paths[best, -1:]
            numbers = np.arange(len(kept)) if flatness == 1 else [steps]
            for step, (x, y) in zip(numbers, kept, strict=True):
                row = (name, flatness, rates[best], taken[best], share, step, x, y)
                for column, value in zip(COLUMNS, row, strict=True):
                    columns[column].append(value)
    return {name: np.array(values) for name, values in columns.items()}


SHOWN = 60  # steps of a path that are kept
COLUMNS = ("method", "flatness", "rate", "steps_taken", "share_of_starts", "step", "x", "y")


def value(data: Table, column: str, method: str, flatness: float = 1.0) -> float:
    """A column that is the same for all steps of a run."""
    chosen = (data["method"] == method) & (data["flatness"] == flatness)
    return float(data[column][chosen][0])


def path(data: Table, method: str) -> np.ndarray:
    chosen = (data["method"] == method) & (data["flatness"] == 1.0)
    return np.stack([data["x"][chosen], data["y"][chosen]], axis=1)


def count(steps: float) -> str:
    return f"{steps:.0f}" if np.isfinite(steps) else "never"


def judge(data: Table) -> list[Part]:
    ours = value(data, "steps_taken", "Sophia")
    slower = []
    for name in ("gradient descent", "sign descent", "Adam"):
        taken = value(data, "steps_taken", name)
        text = f"{count(taken)} steps at rate {value(data, 'rate', name):g}, Sophia {count(ours)}"
        slower.append(Part(f"{name} makes slow progress", text, taken >= 2 * ours))
    x, y = path(data, "Newton")[-1]
    saddle = abs(x) < 1e-3 and abs(y - MINIMUM[1]) < 1e-3
    growth = {
        name: value(data, "steps_taken", name, FLATNESS[-1]) / value(data, "steps_taken", name)
        for name in ("Sophia", "gradient descent")
    }
    shares = {name: value(data, "share_of_starts", name) for name in ("Sophia", "Newton")}
    return [
        *slower,
        Part("Newton's method ends at a saddle point", f"at ({x:.3f}, {y:.3f})", bool(saddle)),
        Part("Sophia is at the minimum in a few steps", f"{count(ours)} steps", ours <= 20),
        Part(
            "how flat the flat coordinate is does not set Sophia's time, but descent's",
            f"flatter by {FLATNESS[0] / FLATNESS[-1]:g}: Sophia {growth['Sophia']:.3g} times the "
            f"steps, gradient descent {growth['gradient descent']:.3g} times (inf: not in the run)",
            growth["Sophia"] <= 2 and growth["gradient descent"] >= 10,
        ),
        Part(
            "Sophia finds the minimum from all starts, Newton's method does not",
            f"{shares['Sophia']:.0%} and {shares['Newton']:.0%} of the starts",
            shares["Sophia"] == 1 and shares["Newton"] < 1,
        ),
    ]


def plot(data: Table) -> Figure:
    figure, (plane, times) = plt.subplots(1, 2, figsize=(9, 3.8), width_ratios=(1.5, 1))
    draw_paths(plane, data)
    draw_times(times, data)
    figure.legend(*plane.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    plt.close(figure)
    return figure


def draw_paths(axes: Axes, data: Table) -> None:
    """Contours of the loss and the first steps of each method."""
    x, y = np.linspace(-0.9, 1.6, 200), np.linspace(-0.7, 5.2, 200)
    values = loss(1.0, jnp.stack(jnp.meshgrid(x, y)))
    axes.contour(x, y, values, levels=np.geomspace(0.05, 60, 16), colors="0.8", linewidths=0.6)
    for name in METHODS:
        axes.plot(*path(data, name).T, marker="o", markersize=2.5, linewidth=1, label=name)
    axes.plot(*MINIMUM, marker="*", color="black", markersize=9, linestyle="")
    axes.plot(0, MINIMUM[1], marker="x", color="black", markersize=6, linestyle="")
    axes.set(xlim=(-0.9, 1.6), ylim=(-0.7, 5.2), xlabel="x, sharp", ylabel="y, flat")
    axes.set(title=f"First {SHOWN} steps from (0.2, 0); star: minimum, cross: saddle")
    axes.grid(False)


def draw_times(axes: Axes, data: Table) -> None:
    for name in METHODS:
        taken = [value(data, "steps_taken", name, flatness) for flatness in FLATNESS]
        axes.plot(1 / np.array(FLATNESS), taken, marker="o", markersize=4)
    axes.set(
        xscale="log", yscale="log", xlabel="1 / c", title="Steps to the minimum, at the best rate"
    )


TARGET = Target(
    paper=Paper(
        title="Sophia: A Scalable Stochastic Second-order Optimizer for Language Model "
        "Pre-training",
        authors="Liu, Li, Hall, Liang, Ma",
        year=2023,
        arxiv="2305.14342",
    ),
    figure="after Figure 2: whether the loss is the very same was not checked, start and rates are "
    "our own; starts at random and flatter coordinates "
    "are added, for the theorem that the condition number does not enter.",
    claim="Gradient descent is slow along the flat coordinate since the sharp one limits its rate; "
    "sign descent and Adam bounce along the sharp one and are slow along the flat one; Newton's "
    "method ends at a saddle; Sophia is soon at the minimum, however flat it is.",
    rule="each method at the rate of 2^-10 ... 4 (Newton 1) with the fewest steps until it stays "
    "within 0.05 of the minimum; slow is at least twice Sophia's steps, soon is 20 steps, and the "
    "time does not depend on flatness if 100 times flatter at most doubles it, and does for "
    "descent if it makes it 10 times as long.",
    measure=measure,
    judge=judge,
    plot=plot,
)
