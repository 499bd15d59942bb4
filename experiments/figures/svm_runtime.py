r"""Time and memory of hypergradients of a multiclass SVM, implicit and unrolled, as features grow.

.. math::
    x^*(\theta) = \arg\min_{x \in \triangle^k \times \dots \times \triangle^k}
    \tfrac{\theta}{2} \lVert W \rVert_F^2 + \langle x, Y \rangle, \qquad
    W = X^\top (Y - x) / \theta

is the dual, a simplex for each of m samples; the outer loss is |X_val W - Y_val|^2 / 2, which is
differentiated by lambda, one number, theta = exp(lambda). Theta is twice the mean of |x_i|^2: where
it is below that mean and features are many, all of x* is inside the simplices, X W is Y but for a
constant a row, and the gradient is zero.

Three solvers run a number of steps that is given, the same for both kinds of derivative. With L the
largest eigenvalue of X X' / theta they are projected gradient, with the step 1 / L; mirror descent
by entropy, with the step 2 / L, which is safe, since |v|_1^2 >= 2 |v|_2^2 for differences v of two
points of a simplex; and block coordinate descent, a row of x at a time. The implicit derivative is
that of a fixed point, which need not be the solver's: each of the first two has its own, and block
coordinate descent either. It is solved for by GMRES. Unrolling keeps all states, as `jax.grad`
does. float64, one thread; temporaries are what the compiled program sets aside. The truth is the
implicit derivative at the end of many more sweeps.

The problem, `make_classification` with five classes, the solvers, the pairs of solver and fixed
point, and 2500 steps, or 500 of block coordinate descent, are the paper's as remembered; there m is
700 and features are 100 to 10000. m and features here are for a run of minutes on one thread. They,
ten informative features, theta, step sizes, and starts in the middle of the simplices are our own.

*Reference*: Blondel et al., 2021, arXiv 2105.15183, the section on multiclass SVMs and Figure 4.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import sklearn.datasets
from matplotlib.figure import Figure

import bilevel
import optim
from experiments.benchmarks.harness import Candidate, compile_candidate, time_interleaved
from experiments.figures.implicit_differentiation import PAPER
from experiments.figures.target import Part, Table, Target

SAMPLES, VALIDATION, CLASSES, INFORMATIVE = 50, 50, 5, 10
FEATURES = (100, 300, 1000, 3000)
GRADIENT, MIRROR, BLOCK = "projected gradient", "mirror descent", "block coordinate descent"
STEPS = {GRADIENT: 2500, MIRROR: 2500, BLOCK: 500}
QUICK_STEPS = dict.fromkeys(STEPS, 20)
TRUE_SWEEPS, ROUNDS = 2000, 5
UNROLLED = "unrolled"
ERROR, SECONDS, BYTES = "error", "seconds", "bytes"
AGREES = 1e-3
# Fixed points whose derivative is taken where the solver has ended.
FIXED_POINTS = {GRADIENT: (GRADIENT,), MIRROR: (MIRROR,), BLOCK: (GRADIENT, MIRROR)}
SOLVE = functools.partial(optim.gmres, tolerance=1e-8)
Row = tuple[str, str, str, int, int, float]
COLUMNS = ("what", "solver", "derivative", "features", "round", "value")


class Data(NamedTuple):
    samples: jax.Array  # (m, features)
    labels: jax.Array  # (m, classes), one-hot
    validation: jax.Array  # (samples, features)
    targets: jax.Array  # (samples, classes), one-hot
    curvature: jax.Array  # (), the largest eigenvalue of samples samples'


def classification(features: int) -> Data:
    samples, classes = sklearn.datasets.make_classification(
        n_samples=SAMPLES + VALIDATION,
        n_features=features,
        n_informative=INFORMATIVE,
        n_classes=CLASSES,
        random_state=0,
    )
    labels = np.eye(CLASSES)[classes]
    train, validation = np.split(samples, [SAMPLES])
    curvature = np.linalg.norm(train, 2) ** 2
    parts = (train, labels[:SAMPLES], validation, labels[SAMPLES:], curvature)
    return Data(*map(jnp.asarray, parts))


def weights(x: jax.Array, theta: jax.Array, data: Data) -> jax.Array:
    return data.samples.T @ (data.labels - x) / theta


def dual(x: jax.Array, theta: jax.Array, data: Data) -> jax.Array:
    return theta / 2 * jnp.sum(weights(x, theta, data) ** 2) + jnp.vdot(x, data.labels)


def outer_loss(x: jax.Array, theta: jax.Array, data: Data) -> jax.Array:
    return jnp.sum((data.validation @ weights(x, theta, data) - data.targets) ** 2) / 2


simplices = jax.vmap(optax.projections.projection_simplex)


def step_size(theta: jax.Array, data: Data) -> jax.Array:
    return jax.lax.stop_gradient(theta) / data.curvature


def gradient_step(x: jax.Array, theta: jax.Array, data: Data) -> jax.Array:
    step = step_size(theta, data)
    return bilevel.projected_gradient_map(lambda x: dual(x, theta, data), simplices, step)(x)


def mirror_step(x: jax.Array, theta: jax.Array, data: Data) -> jax.Array:
    step = 2 * step_size(theta, data)
    return bilevel.mirror_descent_map(lambda x: dual(x, theta, data), step=step)(x)


def sweep(x: jax.Array, theta: jax.Array, data: Data) -> jax.Array:
    """What `bilevel.block_coordinate_descent` does in a step, with a derivative."""
    squares = jnp.sum(data.samples**2, axis=1)

    def block(carry: Any, row: Any) -> tuple[Any, jax.Array]:
        sample, label, square, old = row
        step = jax.lax.stop_gradient(theta) / square
        slope = label - sample @ carry / theta
        new = optax.projections.projection_simplex(old - step * slope)
        return carry - jnp.outer(sample, new - old), new

    scaled = data.samples.T @ (data.labels - x)  # theta W
    return jax.lax.scan(block, scaled, (data.samples, data.labels, squares, x))[1]


def solve_by_gradient(init: jax.Array, theta: jax.Array, data: Data, steps: int) -> jax.Array:
    return bilevel.projected_gradient(
        lambda x: dual(x, theta, data),
        init,
        projection_fn=simplices,
        step=step_size(theta, data),
        accelerate=False,
        tolerance=0.0,
        max_steps=steps,
    )[0]


def solve_by_mirror(init: jax.Array, theta: jax.Array, data: Data, steps: int) -> jax.Array:
    return bilevel.mirror_descent(
        lambda x: dual(x, theta, data),
        init,
        step=2 * step_size(theta, data),
        tolerance=0.0,
        max_steps=steps,
    )[0]


def solve_by_block(init: jax.Array, theta: jax.Array, data: Data, steps: int) -> jax.Array:
    start = data.samples.T @ data.labels
    return bilevel.block_coordinate_descent(
        lambda product: jnp.sum((start - product) ** 2) / (2 * theta),
        init,
        matrix=data.samples.T,
        block_prox_fn=lambda row, _: optax.projections.projection_simplex(row),
        smoothness=1 / theta,
        linear=data.labels,
        tolerance=0.0,
        max_steps=steps,
    )[0]


class Solver(NamedTuple):
    solve: Callable[[jax.Array, jax.Array, Data, int], jax.Array]
    step: Callable[[jax.Array, jax.Array, Data], jax.Array]


SOLVERS = {
    GRADIENT: Solver(solve_by_gradient, gradient_step),
    MIRROR: Solver(solve_by_mirror, mirror_step),
    BLOCK: Solver(solve_by_block, sweep),
}


def solution(theta: jax.Array, data: Data, solver: str, derivative: str, steps: int) -> jax.Array:
    """After some steps, with the derivative of those or of a fixed point."""
    init = jnp.full(data.labels.shape, 1 / CLASSES)
    if derivative == UNROLLED:
        step = SOLVERS[solver].step
        return bilevel.unroll(
            lambda x, _: step(x, theta, data), init, steps, checkpoint_every=steps
        )
    fixed = bilevel.custom_fixed_point(SOLVERS[derivative].step, solve=SOLVE)
    run = fixed(lambda init, theta, data: SOLVERS[solver].solve(init, theta, data, steps))
    return run(init, theta, data)


def loss(exponent: jax.Array, data: Data, solver: str, derivative: str, steps: int) -> jax.Array:
    """The outer loss at theta = exp(exponent)."""
    theta = jnp.exp(exponent)
    return outer_loss(solution(theta, data, solver, derivative, steps), theta, data)


def exponent_of(data: Data) -> jax.Array:
    return jnp.log(2 * jnp.mean(jnp.sum(data.samples**2, axis=1)))


hypergradient = jax.jit(jax.grad(loss), static_argnames=("solver", "derivative", "steps"))


def pairs() -> list[tuple[str, str]]:
    """Of solver and derivative."""
    return [(solver, name) for solver in SOLVERS for name in (*FIXED_POINTS[solver], UNROLLED)]


def candidate(data: Data, solver: str, derivative: str, steps: int) -> Candidate:
    def step(carry: Any, data: Data) -> Any:
        exponent, _ = carry
        return exponent, jax.grad(loss)(exponent, data, solver, derivative, steps)

    exponent = exponent_of(data)
    return Candidate(step, (exponent, jnp.zeros_like(exponent)), data)


def rows(features: int, steps: Mapping[str, int], rounds: int) -> Iterator[Row]:
    data = classification(features)
    true = float(hypergradient(exponent_of(data), data, BLOCK, GRADIENT, TRUE_SWEEPS))
    compiled = {
        f"{solver}, {derivative}": compile_candidate(
            candidate(data, solver, derivative, steps[solver])
        )
        for solver, derivative in pairs()
    }
    gradients = {
        name: float(one.call(jax.tree.map(jnp.array, one.carry), one.inputs)[1])
        for name, one in compiled.items()
    }
    seconds = time_interleaved(compiled, rounds)
    for (solver, derivative), name in zip(pairs(), compiled, strict=True):
        labels = solver, derivative, features
        yield ERROR, *labels, 0, abs(gradients[name] - true) / abs(true)
        yield BYTES, *labels, 0, float(compiled[name].facts["temporary_bytes"])
        for number, sample in enumerate(seconds[name]):
            yield SECONDS, *labels, number, float(sample)


def measure(quick: bool) -> Table:
    """Rows of three kinds, `what`; errors are of a hypergradient, relative."""
    numbers, steps, rounds = ((60, 120), QUICK_STEPS, 2) if quick else (FEATURES, STEPS, ROUNDS)
    with jax.enable_x64(True):
        found = [row for features in numbers for row in rows(features, steps, rounds)]
    kinds = (str, str, str, int, int, float)
    return {
        name: np.array([kind(value) for value in column])
        for name, kind, column in zip(COLUMNS, kinds, zip(*found, strict=True), strict=True)
    }


def of(data: Table, what: str, solver: str, derivative: str, features: int) -> np.ndarray:
    """The values, by round."""
    mine = (data["what"] == what) & (data["solver"] == solver) & (data["features"] == features)
    mine &= data["derivative"] == derivative
    return data["value"][mine][np.argsort(data["round"][mine])]


def sizes(data: Table) -> list[int]:
    return sorted({int(features) for features in data["features"]})


def all_of(data: Table, what: str, solver: str, derivative: str) -> np.ndarray:
    """Of what has no rounds, by the number of features."""
    return np.array([of(data, what, solver, derivative, size)[0] for size in sizes(data)])


def slower(data: Table, solver: str, derivative: str) -> np.ndarray:
    """Median over rounds of unrolling's time over this one's, by the number of features."""
    return np.array(
        [
            np.median(
                of(data, SECONDS, solver, UNROLLED, size)
                / of(data, SECONDS, solver, derivative, size)
            )
            for size in sizes(data)
        ]
    )


def time_part(data: Table, solver: str) -> Part:
    ratios = {name: slower(data, solver, name) for name in FIXED_POINTS[solver]}
    return Part(
        f"{solver}: the implicit derivative takes less time than unrolling",
        "; ".join(
            f"unrolling takes {', '.join(f'{ratio:.2f}' for ratio in found)} times that of the "
            f"fixed point of {name}"
            for name, found in ratios.items()
        )
        + f", at {', '.join(map(str, sizes(data)))} features",
        all(bool(found.min() > 1) for found in ratios.values()),
    )


def judge(data: Table) -> list[Part]:
    implicit = [(solver, name) for solver, name in pairs() if name != UNROLLED]
    errors = {name: all_of(data, ERROR, *name).max() for name in implicit}
    unrolled = {solver: all_of(data, ERROR, solver, UNROLLED).max() for solver in SOLVERS}
    saved = {
        (solver, name): all_of(data, BYTES, solver, UNROLLED) / all_of(data, BYTES, solver, name)
        for solver, name in implicit
    }
    return [
        Part(
            "both derivatives are the true one, whichever the fixed point",
            "largest relative error, implicit "
            + ", ".join(f"{error:.1e} ({s} by {name})" for (s, name), error in errors.items())
            + "; unrolled "
            + ", ".join(f"{error:.1e} ({s})" for s, error in unrolled.items()),
            bool(max(*errors.values(), *unrolled.values()) <= AGREES),
        ),
        *(time_part(data, solver) for solver in SOLVERS),
        Part(
            "the implicit derivative keeps less",
            "; ".join(
                f"unrolled {s} keeps {ratio.min():.1f} to {ratio.max():.1f} times that of {name}"
                for (s, name), ratio in saved.items()
            ),
            all(bool(ratio.min() > 1) for ratio in saved.values()),
        ),
    ]


def plot(data: Table) -> Figure:
    figure, panels = plt.subplots(2, len(SOLVERS), figsize=(10, 5.5), sharex=True, sharey="row")
    for (seconds, memory), solver in zip(panels.T, SOLVERS, strict=True):
        for name in (UNROLLED, *FIXED_POINTS[solver]):
            label = name if name == UNROLLED else f"implicit, {name}"
            samples = [of(data, SECONDS, solver, name, size) for size in sizes(data)]
            seconds.plot(sizes(data), [np.median(one) for one in samples], marker=".", label=label)
            mebibytes = all_of(data, BYTES, solver, name) / 2**20
            memory.plot(sizes(data), mebibytes, marker=".", label=label)
        seconds.set(xscale="log", yscale="log", title=solver.capitalize())
        memory.set(yscale="log", xlabel="features")
        seconds.legend()
    ticks = [f"{size:g}" for size in sizes(data)]
    panels[1, 0].set_xticks(sizes(data), ticks)
    panels[1, 0].minorticks_off()
    panels[0, 0].set(ylabel="seconds")
    panels[1, 0].set(ylabel="MiB of temporaries")
    plt.close(figure)
    return figure


TARGET = Target(
    paper=PAPER,
    figure="after the figure of the time of hypergradients of a multiclass SVM, by three solvers "
    "as features grow; here with errors and temporaries. Solvers and fixed points are as "
    "remembered, sizes are smaller, step sizes and theta our own.",
    claim="Implicit hypergradients of a multiclass SVM take less time than unrolled ones, whatever "
    "the number of features, with projected gradient, mirror descent and block coordinate descent; "
    "the fixed point that is differentiated need not be the solver's.",
    rule=f"true is a relative error of at most {AGREES:g}; less time is a median ratio within "
    "rounds above 1, at each number of features and for each fixed point; less memory likewise, of "
    "the compiler's count of temporaries.",
    measure=measure,
    judge=judge,
    plot=plot,
)
