r"""A differential equation as a layer: least squares for the weights of a network's functions.

.. math::
    u_t = \frac{D}{R(u)} u_{xx}, \quad u(x, 0) = (1 - x) e^{-a x}, \quad u(0, t) = 1, \quad
    u(1, t) = D \, u_x(1, t), \qquad R(u) = 1 + \frac{1 - \phi}{\phi} \rho k n u^{n - 1}

A network b(x, t, a) gives k functions, and the layer the weights omega of u = b'omega that least
violate equation, initial and boundary values at points drawn anew:
omega(b) = argmin |r(omega; b)|^2 + |ridge omega|^2, by Levenberg and Marquardt's method, with
the derivative of a root of its gradient (`bilevel.custom_root`, a dense solve). Experts are layers
that split [0, 1] and share b: each has the equation's points of its own strip, and initial and
boundary values everywhere, as in the authors' code. At the inner edges of its strip an expert has
no condition; the loss alone joins them. The network then learns, by Adam, to make the violation
small at other points, and, of experts, the jumps of u and u_x at those edges. The soft constraint
is the same loss for a network whose one function is u.

It is the authors' diffusion-sorption with their D, phi, rho, k, n and ridge, made smaller: smooth
initial profiles, a in [1, 5], that agree with the boundary (theirs are constant and jump there),
256 points for 20 000, a coordinate network of two layers of 24 for a Fourier neural operator, exact
derivatives for differences across the grid (which also see the jumps), t in units of 500, the
equation's residual weighted by 0.1 and a second, larger ridge. All these are our own. float64.

*Reference*: Chalapathi, Du, Krishnapriyan, 2024, arXiv 2402.13412;
ASK-Berkeley/physics-NNs-hard-constraints@0330e64.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp

import bilevel
import optim
from experiments.figures.target import Paper, Part, Table, Target

D, HORIZON = 5e-4, 500.0
SORPTION = (1 - 0.29) / 0.29 * 2880.0 * 3.5e-4 * 0.874  # of R, with the exponent 0.874 - 1
RIDGES = (1e-4, 1e-2)
EQUATION = 0.1  # weight of the equation's residual
POINTS, EDGE_POINTS, INSTANCES = 256, 32, 2  # a step
WIDTH, RATE = 24, 3e-3
SHARPNESS = (1.0, 5.0)  # a
HELD_OUT = (1.5, 2.5, 3.5, 4.5)
STEPS, QUICK_STEPS, SOFT_STEPS = 1000, 20, 5  # the last a multiple of the others'
FAR = 5.0
SOFT, ONE, LARGE, EXPERTS = "soft", "one constraint", "one, as many weights", "experts"
TRAINING, PROFILE = "training", "profile"

Network = list[tuple[jax.Array, jax.Array]]


class Method(NamedTuple):
    experts: int
    functions: int
    hard: bool = True


METHODS = {
    SOFT: Method(1, 1, hard=False),
    ONE: Method(1, 16),
    LARGE: Method(1, 64),
    EXPERTS: Method(4, 16),
}


def profile(x: Any, sharpness: Any) -> Any:
    return (1 - x) * jnp.exp(-sharpness * x)


def diffusivity(u: jax.Array) -> jax.Array:
    """D / R(u), in units of t / HORIZON; where u is negative, that of zero, as the authors' is."""
    return D * HORIZON / (1 + SORPTION * (jnp.maximum(u, 0.0) + 1e-6) ** (0.874 - 1))


def network(key: jax.Array, functions: int) -> Network:
    sizes = (3, WIDTH, WIDTH, functions)
    layers = []
    for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        weights, biases = jax.random.split(jax.random.fold_in(key, layer))
        scale = (2.0 if layer == 0 else 1.0) / math.sqrt(rows)  # sharper features of x and t
        bias = jax.random.normal(biases, (columns,)) * (layer == 0)
        layers.append((scale * jax.random.normal(weights, (rows, columns)), bias))
    return layers


def functions(net: Network, x: jax.Array, t: jax.Array, sharpness: jax.Array) -> jax.Array:
    """b(x, t, a) at a point."""
    hidden = jnp.stack([2 * x - 1, 2 * t - 1, (sharpness - 3) / 2])
    for weights, bias in net[:-1]:
        hidden = jnp.tanh(hidden @ weights + bias)
    weights, bias = net[-1]
    return hidden @ weights + bias


class Terms(NamedTuple):
    """What the residuals need of the functions, each (points, functions)."""

    inside: jax.Array
    inside_xx: jax.Array
    inside_t: jax.Array
    start: jax.Array  # t = 0
    left: jax.Array  # x = 0
    right: jax.Array  # x = 1
    right_x: jax.Array


def midpoints() -> jax.Array:
    """Of EDGE_POINTS parts of [0, 1], for x at the start and t at boundaries."""
    return (jnp.arange(EDGE_POINTS) + 0.5) / EDGE_POINTS


def with_slope(net: Network, x: Any, t: jax.Array, sharpness: jax.Array) -> tuple[Any, Any]:
    """b and b_x at a point."""
    unit = jnp.ones_like(t)
    return jax.jvp(lambda x: functions(net, x, t, sharpness), (x * unit,), (unit,))


def terms(net: Network, sharpness: jax.Array, x: jax.Array, t: jax.Array) -> Terms:
    def inside(x: jax.Array, t: jax.Array) -> tuple[jax.Array, ...]:
        unit = jnp.ones_like(x)
        (b, _), (_, b_xx) = jax.jvp(lambda x: with_slope(net, x, t, sharpness), (x,), (unit,))
        b_t = jax.jvp(lambda t: functions(net, x, t, sharpness), (t,), (unit,))[1]
        return b, b_xx, b_t

    along = midpoints()
    value = jax.vmap(lambda x, t: functions(net, x, t, sharpness))
    right, right_x = jax.vmap(lambda t: with_slope(net, 1.0, t, sharpness))(along)
    zero = jnp.zeros_like(along)
    b, b_xx, b_t = jax.vmap(inside)(x, t)
    return Terms(b, b_xx, b_t, value(along, zero), value(zero, along), right, right_x)


def residuals(omega: jax.Array, of: Terms, sharpness: jax.Array) -> tuple[jax.Array, ...]:
    """Of the equation, the start and both boundaries, each over the root of its length."""
    u = of.inside @ omega
    found = (
        EQUATION * (of.inside_t @ omega - diffusivity(u) * (of.inside_xx @ omega)),
        of.start @ omega - profile(midpoints(), sharpness),
        of.left @ omega - 1,
        of.right @ omega - D * (of.right_x @ omega),
    )
    return tuple(r / math.sqrt(r.size) for r in found)


def all_residuals(omega: jax.Array, of: Terms, sharpness: jax.Array, ridge: Any) -> jax.Array:
    return jnp.concatenate([*residuals(omega, of, sharpness), ridge * omega])


def objective(omega: jax.Array, *args: Any) -> jax.Array:
    return jnp.sum(all_residuals(omega, *args) ** 2) / 2


class Search(NamedTuple):
    omega: jax.Array
    value: jax.Array
    damping: jax.Array
    steps: jax.Array
    done: jax.Array


def levenberg_marquardt(init: jax.Array, *args: Any) -> tuple[jax.Array, jax.Array]:
    """Minimises the objective, at most 20 steps; gives omega and the steps."""

    def step(search: Search) -> Search:
        omega, value, damping, steps, _ = search
        r, jacobian = all_residuals(omega, *args), jax.jacfwd(all_residuals)(omega, *args)
        normal = jacobian.T @ jacobian
        d = -jnp.linalg.solve(normal + damping * jnp.diag(jnp.diag(normal)), jacobian.T @ r)
        there = objective(omega + d, *args)
        better = there < value
        small = jnp.abs(d).max() <= 1e-6 * jnp.abs(omega).max()
        done = small | (better & (value - there < 1e-6 * value)) | (damping > 1e8)
        return Search(
            jnp.where(better, omega + d, omega),
            jnp.where(better, there, value),
            jnp.where(better, damping / 10, damping * 5),
            steps + 1,
            done,
        )

    start = Search(
        init, objective(init, *args), jnp.full_like(init[0], 1e-6), jnp.int32(0), jnp.bool_(False)
    )
    end = jax.lax.while_loop(lambda s: ~s.done & (s.steps < 20), step, start)
    return end.omega, end.steps


layer = bilevel.custom_root(
    jax.grad(objective), symmetric=True, solve=optim.dense_solve, has_aux=True
)(levenberg_marquardt)


def points(key: jax.Array, experts: int) -> tuple[jax.Array, jax.Array]:
    """x and t, (experts, points each), x in the expert's strip."""
    for_x, for_t = jax.random.split(key)
    shape = (experts, POINTS // experts)
    x = (jnp.arange(experts)[:, None] + jax.random.uniform(for_x, shape)) / experts
    return x, jax.random.uniform(for_t, shape)


def weights(
    method: Method, net: Network, sharpness: jax.Array, key: jax.Array, ridge: Any
) -> tuple[jax.Array, jax.Array]:
    """omega of each expert, and the most steps that one took."""
    init = jnp.ones((method.experts, method.functions))
    if not method.hard:
        return init, jnp.int32(0)
    x, t = points(key, method.experts)
    seen = jax.vmap(lambda x, t: terms(net, sharpness, x, t))(x, t)
    omega, steps = jax.vmap(lambda init, seen: layer(init, seen, sharpness, ridge))(init, seen)
    return omega, steps.max()


def violation(
    method: Method, net: Network, omega: jax.Array, sharpness: jax.Array, key: jax.Array
) -> jax.Array:
    """Mean squares of equation, start and boundaries, each by whose strip it is; and of jumps."""
    x, t = points(key, method.experts)
    seen = jax.vmap(lambda x, t: terms(net, sharpness, x, t))(x, t)
    inside, start, left, right = jax.vmap(lambda w, s: residuals(w, s, sharpness))(omega, seen)
    own = owner(method, midpoints()) == jnp.arange(method.experts)[:, None]
    total = jnp.mean(jnp.sum(inside**2, axis=1)) + jnp.sum(jnp.where(own, start, 0.0) ** 2)
    total += jnp.sum(left[0] ** 2) + jnp.sum(right[-1] ** 2)
    if method.experts > 1:
        edges = jnp.arange(1, method.experts) / method.experts
        both = jax.vmap(lambda x: jax.vmap(lambda t: with_slope(net, x, t, sharpness))(midpoints()))
        for b in both(edges):
            total += jnp.mean(jnp.einsum("etk,ek->et", b, jnp.diff(omega, axis=0)) ** 2)
    return total


def owner(method: Method, x: Any) -> Any:
    """Which expert's strip x is in."""
    return jnp.minimum(jnp.floor(x * method.experts), method.experts - 1)


def solution(
    method: Method, net: Network, sharpness: jax.Array, x: jax.Array, t: jax.Array, ridge: Any
) -> jax.Array:
    """u on a grid, (times, places)."""
    omega, _ = weights(method, net, sharpness, jax.random.key(2), ridge)
    at = jax.vmap(jax.vmap(functions, (None, 0, None, None)), (None, None, 0, None))
    mine = omega[owner(method, x).astype(int)]
    return jnp.einsum("txk,xk->tx", at(net, x, t, sharpness), mine)


def reference(sharpness: float, places: int = 201, times: int = 26) -> np.ndarray:
    """u by central differences in x and LSODA in t, (times, places)."""
    x = np.linspace(0, 1, places)
    step = x[1]

    def whole(inner: np.ndarray) -> np.ndarray:
        """With boundary values; the right one by a difference of second order."""
        c = D / (2 * step)
        right = c * (inner[..., -2] - 4 * inner[..., -1]) / (1 - 3 * c)
        return np.concatenate([np.ones_like(right)[..., None], inner, right[..., None]], axis=-1)

    def change(_: float, inner: np.ndarray) -> np.ndarray:
        sorption = SORPTION * (np.maximum(inner, 0) + 1e-6) ** (0.874 - 1)
        return D * HORIZON / (1 + sorption) * np.diff(whole(inner), 2) / step**2

    start = np.asarray(profile(x, sharpness))[1:-1]
    at = np.linspace(0, 1, times)
    options = {"method": "LSODA", "lband": 2, "uband": 2, "rtol": 1e-7, "atol": 1e-10}
    return whole(solve_ivp(change, (0, 1), start, t_eval=at, **options).y.T)


class Trainer(NamedTuple):
    """A method's compiled functions; the ridge is an argument."""

    method: Method
    init: Callable[[], Any]
    step: Callable[..., Any]
    solution: Callable[..., jax.Array]


def trainer(method: Method, steps: int) -> Trainer:
    tx = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    def loss(net: Network, key: jax.Array, ridge: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            which, for_layer, for_loss = jax.random.split(key, 3)
            sharpness = jax.random.uniform(which, (), minval=SHARPNESS[0], maxval=SHARPNESS[1])
            omega, taken = weights(method, net, sharpness, for_layer, ridge)
            return violation(method, net, omega, sharpness, for_loss), taken

        losses, taken = jax.vmap(one)(jax.random.split(key, INSTANCES))
        return losses.mean(), taken.max()

    @jax.jit
    def step(carry: Any, key: jax.Array, ridge: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        net, state = carry
        (value, taken), gradient = jax.value_and_grad(loss, has_aux=True)(net, key, ridge)
        updates, state = tx.update(gradient, state)
        return (optax.apply_updates(net, updates), state), value, taken

    def init() -> Any:
        net = network(jax.random.key(0), method.functions)
        return net, tx.init(net)

    return Trainer(method, init, step, jax.jit(functools.partial(solution, method)))


COLUMNS = (
    *("what", "method", "ridge", "step", "error", "loss", "taken", "milliseconds"),
    *("x", "u", "reference"),
)


def train(name: str, one: Trainer, steps: int, ridge: float, truth: np.ndarray) -> list[dict]:
    """Rows of ten stages, and of the profile of the second instance at the end."""
    x, t = jnp.linspace(0, 1, truth.shape[2]), jnp.linspace(0, 1, truth.shape[1])
    carry, found = one.init(), []
    for count in range(1, steps + 1):
        key = jax.random.fold_in(jax.random.key(1), count)
        carry, value, taken = one.step(carry, key, ridge)
        if count % (steps // 10) == 0:
            guesses = [one.solution(carry[0], a, x, t, ridge) for a in HELD_OUT]
            norms = [
                np.linalg.norm((u - v)[1:]) / np.linalg.norm(v[1:])
                for u, v in zip(guesses, truth, strict=True)
            ]
            row = {"step": count, "error": np.mean(norms), "loss": value, "taken": taken}
            found.append({"what": TRAINING} | row)
    middle = len(t) // 2
    for place, u, v in zip(x, guesses[1][middle], truth[1, middle], strict=True):
        found.append({"what": PROFILE, "x": place, "u": u, "reference": v})
    return [{"method": name, "ridge": ridge} | row for row in found]


def milliseconds(trainers: dict[str, Trainer], rounds: int) -> dict[str, float]:
    """Median processor time of a step, the methods in turn, at the larger ridge."""
    carries = {name: one.init() for name, one in trainers.items()}
    taken: dict[str, list[float]] = {name: [] for name in trainers}
    for count in range(rounds):
        for name, one in trainers.items():
            key = jax.random.fold_in(jax.random.key(3), count)
            before = time.process_time()
            carries[name], value, _ = one.step(carries[name], key, RIDGES[-1])
            value.block_until_ready()
            taken[name].append(1e3 * (time.process_time() - before))
    return {name: float(np.median(times)) for name, times in taken.items()}


def measure(quick: bool) -> Table:
    """Rows of two kinds, `what`: stages of training, and profiles at half the time."""
    steps = QUICK_STEPS if quick else STEPS
    with jax.enable_x64(True):
        truth = np.stack([reference(a)[:, ::4] for a in HELD_OUT])
        trainers, found = {}, []
        for name, method in METHODS.items():
            most = steps if method.hard else SOFT_STEPS * steps
            trainers[name] = trainer(method, most)
            for ridge in RIDGES if method.hard else RIDGES[:1]:
                found += train(name, trainers[name], most, ridge, truth)
        times = milliseconds(trainers, 5 if quick else 50)
    for row in found:
        row["milliseconds"] = times[row["method"]]
    kinds = [str, str] + [float] * (len(COLUMNS) - 2)
    return {
        name: np.array([kind(row.get(name, math.nan)) for row in found])
        for name, kind in zip(COLUMNS, kinds, strict=True)
    }


def final(data: Table, method: str) -> tuple[float, float]:
    """The error at the end, and the ridge it is with: the better one."""
    mine = (data["what"] == TRAINING) & (data["method"] == method)
    last = mine & (data["step"] == data["step"][mine].max())
    best = np.argmin(data["error"][last])
    return float(data["error"][last][best]), float(data["ridge"][last][best])


def judge(data: Table) -> list[Part]:
    errors = {name: final(data, name)[0] for name in METHODS}
    times = {name: data["milliseconds"][data["method"] == name][0] for name in METHODS}

    def below(name: str, share: float, other: str, claim: str) -> Part:
        text = f"relative error {errors[name]:.3g}, {other} {errors[other]:.3g}"
        return Part(claim, text, bool(errors[name] <= share * errors[other]))

    def faster(other: str, claim: str) -> Part:
        text = f"{times[EXPERTS]:.3g} ms a step, {other} {times[other]:.3g}"
        return Part(claim, text, bool(times[EXPERTS] < times[other]))

    return [
        below(ONE, 1 / FAR, SOFT, "one hard constraint is far below the soft one"),
        below(EXPERTS, 1 / FAR, SOFT, "experts are far below the soft one"),
        below(EXPERTS, 1.0, ONE, "experts are at least as accurate as one constraint"),
        faster(ONE, "a step of the experts is faster than one of one constraint"),
        faster(LARGE, "it is faster than with as many weights in one constraint"),
    ]


def plot(data: Table) -> Figure:
    figure, (stages, profiles) = plt.subplots(1, 2, figsize=(9, 3.6))
    for number, name in enumerate(METHODS):
        mine = (data["method"] == name) & np.isclose(data["ridge"], final(data, name)[1])
        rows = {key: column[mine & (data["what"] == TRAINING)] for key, column in data.items()}
        seconds = rows["step"] * rows["milliseconds"] / 1e3
        stages.plot(seconds, rows["error"], color=f"C{number}", label=name)
        rows = {key: column[mine & (data["what"] == PROFILE)] for key, column in data.items()}
        profiles.plot(rows["x"], rows["u"] - rows["reference"], color=f"C{number}")
    stages.set(xscale="log", yscale="log", xlabel="processor time, s", title="Relative error")
    profiles.set(xlabel="x", title=f"u - reference, a = {HELD_OUT[1]:g}, t = 1/2")
    profiles.set_yscale("symlog", linthresh=1e-2)
    figure.legend(*stages.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    plt.close(figure)
    return figure


TARGET = Target(
    paper=Paper(
        title="Scaling physics-informed hard constraints with mixture-of-experts",
        authors="Chalapathi, Du, Krishnapriyan",
        year=2024,
        arxiv="2402.13412",
    ),
    figure="the comparison on diffusion-sorption, much smaller and from smooth initial profiles: "
    "errors on instances not trained on, over processor time, and how they are spread. The "
    "network, its size, the points, weights, the second ridge and the explicit jumps are our own.",
    claim="Solving for the weights as a layer, with implicit derivatives, is far more accurate "
    "than a penalty; a mixture of local solves is at least as accurate as one global solve, and "
    "a step of it takes less time.",
    rule=f"mean relative L2 error of {len(HELD_OUT)} instances at the end, of hard constraints at "
    f"the better of two ridges, of the soft one after {SOFT_STEPS} times as many steps; far is "
    f"{FAR:g} times; time is the median processor time of a step, on one machine where experts "
    "do not run side by side, as they do in the paper. Beside the paper: one constraint with as "
    "many weights as all experts.",
    measure=measure,
    judge=judge,
    plot=plot,
)
