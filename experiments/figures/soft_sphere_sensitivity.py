r"""How a packing of soft spheres moves with the diameter of the small ones.

.. math::
    E(x, \theta) = \sum_{i < j} \tfrac12 \max(0, 1 - r_{ij} / \sigma_{ij})^2, \qquad
    H \, \partial x^*(\theta) = -\partial_\theta \nabla_x E(x^*, \theta)

in a periodic box of two dimensions; half the spheres have the diameter 1, half theta = 0.6, and
sigma_ij is the mean of two diameters. x* is where FIRE ends, and its sensitivity a forward
derivative of `bilevel.custom_root` around FIRE, with BiCGSTAB. The Hessian H is singular along the
two translations. Nothing is done about them: forces add up to zero whatever theta is, so that the
right-hand side and all that BiCGSTAB makes of it are orthogonal to translations, and FIRE keeps the
centre of mass. Checked against central differences of packings that are minimised anew from x*, and
beside it the derivative of FIRE's own iterates, at every tolerance on the largest force. float64.

128 spheres, diameters, FIRE and BiCGSTAB are the paper's as remembered; the packing fraction 0.95,
ten starts drawn uniformly, FIRE's time steps (from 0.1, at most 0.4), and the energy's power 2, as
jax-md has it, are our own.

*Reference*: Blondel et al., 2021, arXiv 2105.15183, the section on molecular dynamics. FIRE: Bitzek
et al., Structural relaxation made simple, 2006.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure

import bilevel
import optim
from experiments.figures.implicit_differentiation import PAPER
from experiments.figures.target import Part, Table, Target

THETA, FRACTION = 0.6, 0.95
SPHERES, PACKINGS = 128, 10
QUICK_SPHERES, QUICK_PACKINGS = 24, 2
DIFFERENCES = (1e-3, 1e-4, 1e-5, 1e-6)  # h of central differences
FORCES = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)  # where FIRE stops
AGREES, SOLVED, CLOSE, WRONG = 1e-5, 1e-9, 1e-2, 1e-3
BICGSTAB = functools.partial(optim.bicgstab, tolerance=1e-10)
PARTICLE, DIFFERENCE, STOPPED, SOLVE = "particle", "difference", "stopped", "solve"


def side(spheres: int) -> float:
    """Of the box, at THETA."""
    return math.sqrt(spheres / 2 * math.pi / 4 * (1 + THETA**2) / FRACTION)


def diameters(spheres: int, theta: Any) -> jax.Array:
    return jnp.where(jnp.arange(spheres) < spheres // 2, 1.0, theta)


def energy(x: jax.Array, theta: Any) -> jax.Array:
    """Of positions (spheres, 2); all pairs, each seen twice."""
    spheres, box = len(x), side(len(x))
    diameter = diameters(spheres, theta)
    sigma = (diameter[:, None] + diameter) / 2
    apart = x[:, None] - x
    apart = apart - box * jnp.round(apart / box)
    itself = jnp.eye(spheres, dtype=bool)
    distance = jnp.sqrt(jnp.where(itself, 1.0, jnp.sum(apart**2, axis=-1)))
    touch = ~itself & (distance < sigma)
    return jnp.sum(jnp.where(touch, 1 - distance / sigma, 0.0) ** 2) / 4


gradient = jax.grad(energy)


class Motion(NamedTuple):
    x: jax.Array
    velocity: jax.Array
    force: jax.Array
    time_step: jax.Array
    mixing: jax.Array
    downhill: jax.Array  # steps since the power was last negative
    steps: jax.Array


def fire(start: jax.Array, theta: Any, tolerance: Any) -> Motion:
    """Until no component of a force is above the tolerance."""

    def goes_on(motion: Motion) -> jax.Array:
        return (jnp.abs(motion.force).max() > tolerance) & (motion.steps < 100_000)

    def step(motion: Motion) -> Motion:
        x, v, f, dt, mixing, downhill, steps = motion
        along = jnp.vdot(f, v) > 0
        speed, push = jnp.linalg.norm(v), jnp.linalg.norm(f)
        v = jnp.where(along, (1 - mixing) * v + mixing * f * speed / push, 0.0)
        downhill = jnp.where(along, downhill + 1, 0)
        faster = downhill > 5
        dt = jnp.where(along, jnp.where(faster, jnp.minimum(1.1 * dt, 0.4), dt), dt / 2)
        mixing = jnp.where(along, jnp.where(faster, 0.99 * mixing, mixing), 0.1)
        v = v + dt * f
        x = x + dt * v
        return Motion(x, v, -gradient(x, theta), dt, mixing, downhill, steps + 1)

    force, dtype = -gradient(start, theta), start.dtype
    constants = jnp.asarray(0.1, dtype), jnp.asarray(0.1, dtype), jnp.int32(0), jnp.int32(0)
    return jax.lax.while_loop(
        goes_on, step, Motion(start, jnp.zeros_like(start), force, *constants)
    )


def minimiser(start: jax.Array, theta: Any, tolerance: Any) -> jax.Array:
    """Where FIRE stops, with the derivative of a minimiser."""
    solver = bilevel.custom_root(gradient, symmetric=True, solve=BICGSTAB)(
        lambda start, theta: fire(start, theta, tolerance).x
    )
    return solver(start, theta)


@jax.jit
def implicit(start: jax.Array, theta: Any, tolerance: Any) -> tuple[jax.Array, jax.Array]:
    """x and dx / dtheta."""
    return jax.jvp(lambda theta: minimiser(start, theta, tolerance), (theta,), (1.0,))


@jax.jit
def unrolled(start: jax.Array, theta: Any, tolerance: Any) -> tuple[jax.Array, jax.Array]:
    """dx / dtheta through FIRE's steps, and how many they are."""
    (_, steps), (tangent, _) = jax.jvp(
        lambda theta: (lambda end: (end.x, end.steps))(fire(start, theta, tolerance)),
        (theta,),
        (1.0,),
    )
    return tangent, steps


@jax.jit
def solved(x: jax.Array, theta: Any, tangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Residual of H dx = -b over |b|, and the eigenvalues of H."""
    hessian = jax.hessian(energy)(x, theta).reshape(x.size, x.size)
    b = jax.jvp(lambda theta: gradient(x, theta), (theta,), (1.0,))[1].ravel()
    residual = jnp.linalg.norm(hessian @ tangent.ravel() + b) / jnp.linalg.norm(b)
    return residual, jnp.linalg.eigvalsh(hessian)


def distance(a: jax.Array, b: jax.Array) -> float:
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


COLUMNS = ("what", "packing", "setting", "steps", "implicit", "unrolled", "x", "y", "dx", "dy")


def row(what: str, packing: int, setting: float, **values: float) -> tuple[Any, ...]:
    return what, packing, setting, *(values.get(name, math.nan) for name in COLUMNS[3:])


def rows(packing: int, spheres: int) -> list[tuple[Any, ...]]:
    start = side(spheres) * jax.random.uniform(jax.random.key(packing), (spheres, 2))
    tightest = FORCES[-1]
    x, sensitivity = implicit(start, THETA, tightest)
    found = []
    if packing == 0:
        numbers = zip(diameters(spheres, THETA), x % side(spheres), sensitivity, strict=True)
        for size, (a, b), (da, db) in numbers:
            found.append(row(PARTICLE, packing, size, x=a, y=b, dx=da, dy=db))
    residual, eigenvalues = solved(x, THETA, sensitivity)
    # The setting of a solve is the least eigenvalue but for the translations'.
    found.append(row(SOLVE, packing, eigenvalues[2], implicit=residual))
    for h in DIFFERENCES:
        up, down = (implicit(x, theta, tightest)[0] for theta in (THETA + h, THETA - h))
        found.append(
            row(DIFFERENCE, packing, h, implicit=distance(sensitivity, (up - down) / (2 * h)))
        )
    for force in FORCES:
        through, steps = unrolled(start, THETA, force)
        errors = {
            "implicit": distance(implicit(start, THETA, force)[1], sensitivity),
            "unrolled": distance(through, sensitivity),
        }
        found.append(row(STOPPED, packing, force, steps=steps, **errors))
    return found


def measure(quick: bool) -> Table:
    """Rows of four kinds, `what`: the spheres of a packing, solves, differences, tolerances."""
    spheres, packings = (QUICK_SPHERES, QUICK_PACKINGS) if quick else (SPHERES, PACKINGS)
    with jax.enable_x64(True):
        found = [one for packing in range(packings) for one in rows(packing, spheres)]
        kinds: list[type] = [str, int] + [float] * (len(COLUMNS) - 2)
        columns = zip(COLUMNS, kinds, zip(*found, strict=True), strict=True)
        return {name: np.array([kind(v) for v in values]) for name, kind, values in columns}


def of(data: Table, what: str, setting: float | None = None) -> dict[str, np.ndarray]:
    mine = data["what"] == what
    if setting is not None:
        mine &= np.isclose(data["setting"], setting, rtol=1e-3, atol=0)
    return {name: column[mine] for name, column in data.items()}


def judge(data: Table) -> list[Part]:
    solves = of(data, SOLVE)
    agreement = of(data, DIFFERENCE, 1e-5)["implicit"]
    early, last = (of(data, STOPPED, force) for force in (1e-6, FORCES[-1]))
    wrong = int((~(last["unrolled"] <= WRONG)).sum())  # NaN is wrong
    return [
        Part(
            "BiCGSTAB solves with the Hessian, singular as it is",
            f"largest residual {solves['implicit'].max():.1e} of the right-hand side; the least "
            f"eigenvalue but for two is {solves['setting'].min():.3g} or more",
            bool(solves["implicit"].max() <= SOLVED),
        ),
        Part(
            "the implicit sensitivity is that of central differences, h = 1e-5",
            f"relative distance {agreement.min():.1e} to {agreement.max():.1e}",
            bool(agreement.max() <= AGREES),
        ),
        Part(
            "it needs no exact minimiser: near already where forces are 1e-6",
            f"relative distance to the last {early['implicit'].min():.1e} to "
            f"{early['implicit'].max():.1e}",
            bool(early["implicit"].max() <= CLOSE),
        ),
        Part(
            "most derivatives through FIRE's steps are wrong, even where forces are 1e-12",
            f"{wrong} of {len(last['unrolled'])} by more than {WRONG:g}, median "
            f"{np.median(last['unrolled']):.1e}, largest {last['unrolled'].max():.1e}",
            wrong > len(last["unrolled"]) / 2,
        ),
    ]


def plot(data: Table) -> Figure:
    figure, (packing, differences, stops) = plt.subplots(
        1, 3, figsize=(11, 4), width_ratios=(1.35, 1, 1)
    )
    draw_packing(packing, of(data, PARTICLE))
    draw_distances(differences, of(data, DIFFERENCE), ("implicit",))
    draw_distances(stops, of(data, STOPPED), ("implicit", "unrolled"))
    differences.set(xlabel="h", title="Distance to central differences")
    stops.set(xlabel="largest force at the end", title="Distance to the last implicit one")
    stops.invert_xaxis()
    stops.legend()
    plt.close(figure)
    return figure


def draw_distances(axes: Axes, rows: dict[str, np.ndarray], names: Sequence[str]) -> None:
    """Over the setting, a line a packing; the last implicit one is left out, as it is zero."""
    for name, colour, dashes in zip(names, ("C0", "C1"), ("-", "--"), strict=False):
        for number in np.unique(rows["packing"]):
            mine = (rows["packing"] == number) & (rows[name] > 0)
            axes.plot(
                rows["setting"][mine],
                rows[name][mine],
                color=colour,
                linestyle=dashes,
                linewidth=1,
                label=name if number == 0 else None,
            )
    axes.set(xscale="log", yscale="log")


def draw_packing(axes: Axes, spheres: dict[str, np.ndarray]) -> None:
    """The spheres and how they move, arrows in one scale."""
    box, size = side(len(spheres["x"])), spheres["setting"]
    places = np.stack([spheres["x"], spheres["y"]], axis=1)
    colours = np.where(size == 1, "#9ecae1", "#fdd0a2")
    axes.add_collection(
        EllipseCollection(
            size,
            size,
            np.zeros_like(size),
            units="xy",
            offsets=places,
            facecolors=colours,
            edgecolors="0.5",
            linewidths=0.5,
            transOffset=axes.transData,
        )
    )
    axes.quiver(*places.T, spheres["dx"], spheres["dy"], zorder=3, width=0.005)
    axes.set(xlim=(0, box), ylim=(0, box), aspect="equal", title="Packing 0, dx*/dtheta")
    axes.grid(False)


TARGET = Target(
    paper=PAPER,
    figure="after the figure of the sensitivity of a packing: 128 soft spheres with arrows, here "
    "beside distances to central differences and to what FIRE's own iterates say. Packing "
    "fraction, starts, FIRE's time steps and the energy's scale are our own.",
    claim="Implicit differentiation in forward mode, with BiCGSTAB, gives the sensitivity of the "
    "minimal-energy positions to the diameter of the small spheres; the derivative of the "
    "unrolled FIRE often does not converge.",
    rule=f"of every packing the residual is at most {SOLVED:g}, the relative distance to central "
    f"differences {AGREES:g}, and to the last one, from forces of 1e-6, {CLOSE:g}; a derivative "
    f"through FIRE is wrong where it is {WRONG:g} or more from the implicit one at forces of "
    "1e-12, and often is in more than half of the packings.",
    measure=measure,
    judge=judge,
    plot=plot,
)
