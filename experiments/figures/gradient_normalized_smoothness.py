r"""Gradient-normalized smoothness: Newton steps with exact and with approximate Hessians.

.. math::
    (H(x) + \lambda B) d = -\nabla f(x), \qquad \lambda = \lVert \nabla f(x) \rVert_* / \gamma

`optim.regularized_newton` finds the radius gamma; an approximation changes H alone. Four problems
with the authors' constants, all of a random kind from their seed, in float64:

- log-sum-exp of 1000 x 1000, its rows shifted so that the optimum is zero; B = A'A. The
  approximation leaves out - g g' (weighted Gauss-Newton);
- |A x - b|^4 / 4 with 100 equations in 200 unknowns; B = A'A + 1e-8. The approximation is the
  rank-one term of the Hessian alone (Fisher), solved by Sherman and Morrison's formula;
- |u|^5 / 5 with the two residuals u of Rosenbrock's function, and |u|^4 / 4 with the residuals
  x_i - T_2(x_{i-1}) of Chebyshev's in 1000 unknowns; B = 1. The approximation is the Hessian of
  the norm's power over u made linear (Gauss-Newton with the rank-one term).

Beside them the super-universal Newton method with the exact Hessian, whose lambda is M |g|* and
whose search is for M, and the gradient method with the search for its L, in the norm of B (where
B = A'A that is Gauss-Newton's method) and in the Euclidean one.

*Reference*: Semenov, Jaggi, Doikov, 2025, arXiv 2506.13710; epfml/grad-norm-smooth@9f4ca00,
notebooks/examples.ipynb. Super-universal Newton: Doikov, Mishchenko, Nesterov, 2022, arXiv
2208.05888.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import optim
from experiments.figures.target import Paper, Part, Table, Target

SEED, REACHED, STOP, NEWTON_STEPS = 3124, 1e-8, 1e-10, 200
EXACT, SUPER, GAUSS_NEWTON, GRADIENT = (
    "exact Hessian",
    "super-universal Newton",
    "gradient, norm of B",
    "gradient",
)
APPROXIMATE = "approximate Hessian"
METHODS = (EXACT, APPROXIMATE, SUPER, GAUSS_NEWTON, GRADIENT)
LOG_SUM_EXP, EQUATIONS, ROSENBROCK, CHEBYSHEV = (
    "log-sum-exp",
    "equations",
    "Rosenbrock",
    "Chebyshev",
)
# What the approximation is called, in titles.
CALLED = {
    LOG_SUM_EXP: "weighted Gauss-Newton",
    EQUATIONS: "Fisher, rank one",
    ROSENBROCK: "Gauss-Newton and rank one",
    CHEBYSHEV: "Gauss-Newton and rank one",
}


class Problem(NamedTuple):
    loss: Callable[[jax.Array], jax.Array]
    start: np.ndarray
    least: float  # the loss at the optimum
    hessian: Callable[[jax.Array], Any]
    approximation: Callable[[jax.Array], Any]
    gradient_steps: int  # most of them
    metric: optim.Metric | None = None
    solve: Callable[..., Any] = optim.shifted_dense  # with the approximation


def metric(matrix: np.ndarray) -> optim.Metric:
    inverse = np.linalg.inv(matrix)
    return optim.Metric(lambda x: matrix @ x, lambda g: inverse @ g)


def log_sum_exp(size: int, steps: int) -> Problem:
    draw = np.random.RandomState(SEED)
    rows, b = draw.uniform(-1, 1, (size, size)).T, draw.uniform(-1, 1, size)
    a = jnp.asarray(rows - np.asarray(jax.nn.softmax(-b)) @ rows)

    def approximation(x: jax.Array) -> jax.Array:
        return a.T @ (jax.nn.softmax(a @ x - b)[:, None] * a)

    def hessian(x: jax.Array) -> jax.Array:
        gradient = a.T @ jax.nn.softmax(a @ x - b)
        return approximation(x) - jnp.outer(gradient, gradient)

    def loss(x: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(a @ x - b)

    least = float(loss(jnp.zeros(size)))
    norm = metric(rows.T @ rows)
    return Problem(loss, np.ones(size), least, hessian, approximation, steps, norm)


def of_residuals(
    residuals: Callable[[jax.Array], jax.Array], power: int, start: np.ndarray, steps: int
) -> Problem:
    """|u|^p / p with the Hessian of the power over u made linear."""

    def outer(u: jax.Array) -> jax.Array:
        return jnp.sum(u**2) ** (power / 2) / power

    def approximation(x: jax.Array) -> jax.Array:
        u, push = jax.linearize(residuals, x)
        return jax.hessian(lambda d: outer(u + push(d)))(jnp.zeros_like(x))

    def loss(x: jax.Array) -> jax.Array:
        return outer(residuals(x))

    return Problem(loss, start, 0.0, jax.hessian(loss), approximation, steps)


def equations(count: int, unknowns: int, steps: int) -> Problem:
    draw = np.random.RandomState(SEED)
    a, b = draw.uniform(-1, 1, (count, unknowns)), draw.uniform(-1, 1, count)

    def fisher(x: jax.Array) -> optim.RankOne:
        return optim.RankOne(2.0, jnp.asarray(a.T) @ (a @ x - b))

    problem = of_residuals(lambda x: jnp.asarray(a) @ x - b, 4, np.ones(unknowns), steps)
    norm = metric(a.T @ a + 1e-8 * np.eye(unknowns))
    return problem._replace(approximation=fisher, metric=norm, solve=optim.shifted_rank_one)


def rosenbrock(steps: int) -> Problem:
    def residuals(x: jax.Array) -> jax.Array:
        return jnp.stack([1 - x[0], 10 * (x[1] - x[0] ** 2)])

    return of_residuals(residuals, 5, np.array([-2.0, 2.0]), steps)


def chebyshev(size: int, steps: int) -> Problem:
    def residuals(x: jax.Array) -> jax.Array:
        return jnp.concatenate([(1 - x[:1]) / 2, x[1:] - (2 * x[:-1] ** 2 - 1)])

    return of_residuals(residuals, 4, np.random.RandomState(SEED).rand(size), steps)


def problems(quick: bool) -> dict[str, Problem]:
    """The authors' sizes, and smaller ones if quick."""
    return {
        LOG_SUM_EXP: log_sum_exp(40, 200) if quick else log_sum_exp(1000, 1000),
        EQUATIONS: equations(20, 40, 200) if quick else equations(100, 200, 1000),
        ROSENBROCK: rosenbrock(200 if quick else 10000),
        CHEBYSHEV: chebyshev(20, 200) if quick else chebyshev(1000, 1000),
    }


class Seen(NamedTuple):
    """After a step: the loss, the radius that the next one tries, and the tries of this one."""

    value: jax.Array
    radius: jax.Array
    tries: jax.Array


Carry = tuple[jax.Array, Any]
Walk = tuple[Carry, Callable[[Carry], tuple[Carry, Seen]]]  # the start, and a compiled step


def regularized(problem: Problem, approximate: bool) -> Walk:
    """Our method."""
    hessian, solve = problem.hessian, optim.shifted_dense
    if approximate:
        hessian, solve = problem.approximation, problem.solve
    tx = optim.regularized_newton(solve=solve, metric=problem.metric)
    value_and_gradient = optax.value_and_grad_from_state(problem.loss)

    @jax.jit
    def step(carry: Carry) -> tuple[Carry, Seen]:
        x, state = carry
        value, gradient = value_and_gradient(x, state=state)
        updates, state = tx.update(
            gradient, state, x, value=value, value_fn=problem.loss, hessian_fn=hessian
        )
        return (x + updates, state), Seen(state.value, state.gamma, state.tries)

    start = jnp.asarray(problem.start)
    return (start, tx.init(start)), step


class Trial(NamedTuple):
    """What decides about a step d with a shift."""

    value: jax.Array  # f
    fall: jax.Array  # f - f(x + d)
    slope: jax.Array  # g'd
    slope_there: jax.Array  # g(x + d)'d
    length: jax.Array  # |d|^2
    norm_there: jax.Array  # |g(x + d)|*^2
    shift: jax.Array


def searched(
    problem: Problem,
    curvature: Callable[[jax.Array], Any],
    normalized: bool,
    accepts: Callable[[Trial], jax.Array],
    factor: float,
    norm: optim.Metric | None,
) -> Walk:
    """Newton's method with H + shift B, with a search for M, 1 at the start.

    The shift is M |g|* if normalized, else M. M is multiplied by the factor until a step is
    accepted, and then divided by it, as far as 1e-5.
    """
    product, inverse = norm or (lambda x: x, lambda x: x)
    value_and_gradient = jax.value_and_grad(problem.loss)

    @jax.jit
    def step(carry: Carry) -> tuple[Carry, Seen]:
        x, m = carry
        value, g = value_and_gradient(x)
        scale = jnp.sqrt(g @ inverse(g)) if normalized else jnp.ones_like(value)
        solve = curvature(x)

        def attempt(search: Any) -> Any:
            _, _, m, tries = search
            d = solve(m * scale, -g)
            there, g_there = value_and_gradient(x + d)
            trial = Trial(
                value=value,
                fall=value - there,
                slope=g @ d,
                slope_there=g_there @ d,
                length=d @ product(d),
                norm_there=g_there @ inverse(g_there),
                shift=m * scale,
            )
            accepted = accepts(trial)
            m = jnp.where(accepted, jnp.maximum(m / factor, 1e-5), m * factor)
            return accepted, jnp.where(accepted, x + d, x), m, tries + 1

        start = (jnp.bool_(False), x, m, jnp.int32(0))
        _, x, m, tries = jax.lax.while_loop(lambda s: ~s[0] & (s[3] < 40), attempt, start)
        value, g = value_and_gradient(x)
        length = jnp.sqrt(g @ inverse(g))
        return (x, m), Seen(value, length / (m * length if normalized else m), tries)

    return (jnp.asarray(problem.start), jnp.ones(())), step


def super_universal(problem: Problem) -> Walk:
    def curvature(x: jax.Array) -> Callable[..., jax.Array]:
        hessian = problem.hessian(x)
        return lambda shift, b: optim.shifted_dense(hessian, b, problem.metric)(shift)

    def accepts(trial: Trial) -> jax.Array:
        return -trial.slope_there >= trial.norm_there / (4 * trial.shift)

    return searched(problem, curvature, True, accepts, 4.0, problem.metric)


def gradient_method(problem: Problem, norm: optim.Metric | None) -> Walk:
    inverse = norm.solve if norm else lambda g: g

    def accepts(trial: Trial) -> jax.Array:
        return -trial.fall <= trial.slope + trial.shift * trial.length / 2

    return searched(
        problem, lambda x: lambda shift, b: inverse(b) / shift, False, accepts, 2.0, norm
    )


def walks(problem: Problem) -> Iterator[tuple[str, Walk, int]]:
    """The methods, and the most steps of each."""
    yield EXACT, regularized(problem, approximate=False), NEWTON_STEPS
    yield APPROXIMATE, regularized(problem, approximate=True), NEWTON_STEPS
    yield SUPER, super_universal(problem), NEWTON_STEPS
    if problem.metric:
        yield GAUSS_NEWTON, gradient_method(problem, problem.metric), problem.gradient_steps
    yield GRADIENT, gradient_method(problem, None), problem.gradient_steps


def measure(quick: bool) -> Table:
    """Residuals and radii of every step, as far as a residual of STOP."""
    rows = []
    with jax.enable_x64(True):
        for name, problem in problems(quick).items():
            first = float(problem.loss(jnp.asarray(problem.start))) - problem.least
            for method, (carry, step), most in walks(problem):
                residual, count, tries = first, 0, 0
                rows.append((name, method, count, residual, 1.0, tries))
                while residual > STOP and count < most:
                    carry, seen = step(carry)
                    residual, count = float(seen.value) - problem.least, count + 1
                    tries += int(seen.tries)
                    rows.append((name, method, count, residual, float(seen.radius), tries))
    columns = ("problem", "method", "step", "residual", "radius", "tries")
    return {
        name: np.array(column)
        for name, column in zip(columns, zip(*rows, strict=True), strict=True)
    }


def of(data: Table, problem: str, method: str) -> np.ndarray:
    """Which rows are of this run."""
    return (data["problem"] == problem) & (data["method"] == method)


def steps(data: Table, problem: str, method: str) -> float:
    """Until the residual is at most REACHED; inf if it never is."""
    mine = of(data, problem, method)
    there = data["step"][mine & (data["residual"] <= REACHED)]
    return float(there[0]) if there.size else math.inf


def judge(data: Table) -> list[Part]:
    def taken(problem: str, *methods: str) -> dict[str, float]:
        return {method: steps(data, problem, method) for method in methods}

    ordered = [
        in_order(
            f"{LOG_SUM_EXP}: exact, then weighted Gauss-Newton, then both gradient methods",
            taken(LOG_SUM_EXP, EXACT, APPROXIMATE, GAUSS_NEWTON, GRADIENT),
        ),
        in_order(
            f"{EQUATIONS}: Fisher's term first, then Gauss-Newton, exact, the gradient method",
            taken(EQUATIONS, APPROXIMATE, GAUSS_NEWTON, EXACT, GRADIENT),
        ),
        in_order(
            f"{CHEBYSHEV}: approximate, then super-universal, then the gradient method",
            taken(CHEBYSHEV, APPROXIMATE, SUPER, GRADIENT),
        ),
    ]
    faster = [
        at_most(
            f"{ROSENBROCK}: {method} in a tenth of the gradient method's steps",
            taken(ROSENBROCK, method, GRADIENT),
            0.1,
        )
        for method in (EXACT, APPROXIMATE)
    ]
    beside = [
        at_most(
            f"{problem}: {EXACT} in no more steps than super-universal",
            taken(problem, EXACT, SUPER),
            1.0,
        )
        for problem in CALLED
    ]
    return [*ordered, *faster, radius_stays(data), *beside]


def listed(values: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {value:.0f}" if math.isfinite(value) else f"{name} never"
        for name, value in values.items()
    )


def in_order(claim: str, values: dict[str, float]) -> Part:
    """Judges that each takes fewer steps than the next; one that never arrives may be last."""
    counts: Sequence[float] = list(values.values())
    return Part(claim, listed(values), all(a < b for a, b in itertools.pairwise(counts)))


def at_most(claim: str, values: dict[str, float], share: float) -> Part:
    """Judges that the first takes at most this share of the other's steps."""
    first, other = values.values()
    return Part(claim, listed(values), math.isfinite(first) and first <= share * other)


def radius_stays(data: Table) -> Part:
    least = {}
    for method in (EXACT, APPROXIMATE):
        mine = of(data, LOG_SUM_EXP, method)
        least[method] = float(data["radius"][mine & (data["residual"] > REACHED)].min())
    return Part(
        f"{LOG_SUM_EXP}: the radius stays away from zero, as a linear rate needs",
        ", ".join(f"least of {name} {value:.3g}" for name, value in least.items()),
        min(least.values()) >= 1,
    )


def plot(data: Table) -> Figure:
    figure, panels = plt.subplots(2, 2, figsize=(9, 6.8))
    for axes, name in zip(panels.flat, CALLED, strict=True):
        draw(axes, data, name)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5)
    plt.close(figure)
    return figure


def draw(axes: Axes, data: Table, problem: str) -> None:
    """Residuals over steps; a method has the same look in every panel."""
    for method in METHODS:
        mine = of(data, problem, method)
        count, residual = data["step"][mine], data["residual"][mine]
        axes.plot(count[1:], np.maximum(residual[1:], STOP), label=method)
    axes.axhline(REACHED, color="#999999", linewidth=0.8, linestyle="-", zorder=1)
    axes.set(xscale="log", yscale="log", xlabel="step", ylabel="f - f*", ylim=(STOP, None))
    axes.set(title=f"{problem}; approximate: {CALLED[problem]}")


TARGET = Target(
    paper=Paper(
        title="Gradient-Normalized Smoothness for Optimization with Approximate Hessians",
        authors="Semenov, Jaggi, Doikov",
        year=2025,
        arxiv="2506.13710",
    ),
    figure="residuals over steps on four problems of the authors' notebook, with their sizes, "
    "starts and seed; super-universal Newton stands beside the exact Hessian everywhere (the "
    "notebook has it on Chebyshev's alone, as its exact Newton), gradient methods go on longer.",
    claim="With the radius searched for, Newton steps with an approximate Hessian converge about "
    "as exact ones do, sometimes faster, and far faster than gradient methods; on softmax problems "
    "at a global linear rate.",
    rule=f"steps to a residual of {REACHED:g}: the order has to be that of the authors' plots; "
    "for Rosenbrock's, a tenth of the gradient method's; the radius, least until then, at least "
    "the first, which is 1. Beside the paper: the exact Hessian's are at most super-universal "
    "Newton's.",
    measure=measure,
    judge=judge,
    plot=plot,
)
