"""The bilevel problems on which hypergradients are measured, with exact minimisers and gradients.

y is one vector, and x holds logarithms of penalties or of the odds that an example counts:

- ridge: the inner Hessian has eigenvalues evenly spread in their logarithm from 1 down to
  1 / condition, 256 unknowns, one penalty a feature; validation rows have the same covariance.
- softmax: multinomial logistic regression on scikit-learn's digits, 600 images, one penalty a
  pixel, 650 unknowns.
- cleaning: a 64-24-10 tanh network, 1,810 unknowns, on 500 digits of which every second has a
  random label, one weight an example; validation on 500 clean ones.
- kernel: least squares on 400 random features of a Gaussian kernel over the digits, whose
  eigenvalues fall fast, one penalty a feature.
- units: a ridge in which the units of the features range over a factor of 30.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from sklearn import datasets

from bilevel import BilevelProblem

HIDDEN = 24


class Task(NamedTuple):
    """A problem at one x."""

    problem: BilevelProblem
    x: jax.Array
    y: jax.Array  # the minimiser of inner, to rounding
    gradient: jax.Array  # of outer(x, y*(x)), by a dense solve
    largest: float  # eigenvalue of inner's Hessian
    condition: float


def hessian(problem: BilevelProblem, x: jax.Array, y: jax.Array) -> jax.Array:
    """Of inner in y, a batch of columns at a time."""
    product = jax.linearize(lambda y: jax.grad(problem.inner, 1)(x, y, None), y)[1]
    return jax.lax.map(product, jnp.eye(y.size, dtype=y.dtype), batch_size=128)


def exact(problem: BilevelProblem, x: jax.Array, y: jax.Array, newton: int) -> Any:
    """After so many Newton steps: y, the hypergradient and the inner Hessian's eigenvalues."""

    def step(_: Any, y: jax.Array) -> jax.Array:
        return y - jnp.linalg.solve(hessian(problem, x, y), jax.grad(problem.inner, 1)(x, y, None))

    y = jax.lax.fori_loop(0, newton, step, y)
    curved = hessian(problem, x, y)
    f_x, f_y = jax.grad(problem.outer, (0, 1))(x, y, None)
    v = jnp.linalg.solve(curved, f_y)
    _, cross = jax.jvp(lambda y: jax.grad(problem.inner)(x, y, None), (y,), (v,))
    return y, f_x - cross, jnp.linalg.eigvalsh(curved)


def task(problem: BilevelProblem, x: Any, start: Any, newton: int = 2) -> Task:
    """Minimises inner by Newton's steps; an error where they end at no strict minimum."""
    x, start = jnp.asarray(x, jnp.float64), jnp.asarray(start, jnp.float64)
    y, gradient, eigenvalues = jax.jit(functools.partial(exact, problem, newton=newton))(x, start)
    residual = jnp.linalg.norm(jax.grad(problem.inner, 1)(x, y, None))
    if not (residual < 1e-9 and eigenvalues[0] > 0):
        raise ArithmeticError(
            f"no minimum: gradient {residual:.1e}, curvature {eigenvalues[0]:.1e}"
        )
    largest, condition = float(eigenvalues[-1]), float(eigenvalues[-1] / eigenvalues[0])
    return Task(problem, x, y, gradient, largest, condition)


def descend(problem: BilevelProblem, x: Any, start: Any) -> np.ndarray:
    """Near a local minimum of inner, by L-BFGS."""
    x = jnp.asarray(x)
    value_and_grad = jax.jit(lambda y: jax.value_and_grad(problem.inner, 1)(x, y, None))
    options = {"maxiter": 10_000, "maxfun": 10_000, "ftol": 0, "gtol": 1e-6, "maxcor": 30}
    return scipy.optimize.minimize(
        value_and_grad, start, jac=True, method="L-BFGS-B", options=options
    ).x


def path(given: Task, steps: int, size: float = 0.1) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, y, hypergradient at each of so many steps down the hypergradient, `size` in sup norm."""
    solve = jax.jit(functools.partial(exact, given.problem, newton=3))
    x, y, gradient = given.x, given.y, given.gradient
    found = []
    for _ in range(steps):
        found.append((x, y, gradient))
        x = x - size * gradient / jnp.abs(gradient).max()
        y, gradient, _ = solve(x, y)
    return tuple(map(jnp.stack, zip(*found)))  # type: ignore[return-value]


def least_squares(a: Any, targets: Any, b: Any, validation: Any) -> BilevelProblem:
    """Rows a to fit with penalties exp(x) / 2 on the squares of y, rows b to validate on."""

    def inner(x: Any, y: Any, batch: None) -> jax.Array:
        return (jnp.sum((a @ y - targets) ** 2) + jnp.sum(jnp.exp(x) * y**2)) / 2

    def outer(x: Any, y: Any, batch: None) -> jax.Array:
        return jnp.mean((b @ y - validation) ** 2) / 2

    return BilevelProblem(outer, inner)


def ridge(condition: float, n: int = 256) -> Task:
    random = np.random.default_rng(0)
    q, _ = np.linalg.qr(random.normal(size=(n, n)))
    spread = np.sqrt(np.geomspace(1 / condition, 1, n) - 1 / condition)
    truth = random.normal(size=n)
    a, b = spread[:, None] * q.T, random.normal(size=(n, n)) * spread @ q.T
    noise = 0.1 * random.normal(size=(2, n))
    problem = least_squares(a, a @ truth + noise[0], b, b @ truth + noise[1])
    return task(problem, np.full(n, -np.log(condition)), np.zeros(n))


def units(n: int = 256) -> Task:
    """Features of condition 10, each multiplied by its unit."""
    random = np.random.default_rng(0)
    unit = np.geomspace(1 / 30, 1, n)[random.permutation(n)]
    mixing = np.linalg.qr(random.normal(size=(n, n)))[0] * np.geomspace(0.4, 1, n)
    a, b = (random.normal(size=(rows, n)) @ mixing / np.sqrt(4 * n) * unit for rows in (4 * n, n))
    truth = random.normal(size=n) / unit
    noise = 0.1 * random.normal(size=5 * n)
    problem = least_squares(a, a @ truth + noise[: 4 * n], b, b @ truth + noise[4 * n :])
    return task(problem, np.log(0.01 * unit**2), np.zeros(n))


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """So many images with entries of variance one or less, and their labels."""
    pixels, labels = datasets.load_digits(return_X_y=True)
    pixels = (pixels - pixels.mean(axis=0)) / np.maximum(pixels.std(axis=0), 1)
    return pixels[:count], labels[:count]


def kernel(features: int = 400, count: int = 1200) -> Task:
    random = np.random.default_rng(0)
    pixels, labels = digits(count)
    targets = np.where(labels % 2 == 0, 1.0, -1.0)
    phases = random.uniform(0, 2 * np.pi, features)
    mapped = np.cos(pixels @ random.normal(size=(64, features)) / 20 + phases)
    mapped *= np.sqrt(2 / (features * count))
    half = count // 2
    problem = least_squares(mapped[:half], targets[:half], mapped[half:], targets[half:])
    return task(problem, np.full(features, np.log(1e-7)), np.zeros(features))


def entropy(logits: Any, labels: Any) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def softmax(count: int = 600) -> Task:
    pixels, labels = digits(2 * count)

    def loss(y: jax.Array, part: slice) -> jax.Array:
        weights, bias = y[:640].reshape(64, 10), y[640:]
        return entropy(pixels[part] @ weights + bias, labels[part]).mean()

    def inner(x: Any, y: Any, batch: None) -> jax.Array:
        penalty = jnp.sum(jnp.exp(x)[:, None] * y[:640].reshape(64, 10) ** 2) / 2
        return loss(y, slice(count)) + penalty + 1e-2 * jnp.sum(y[640:] ** 2) / 2

    problem = BilevelProblem(lambda x, y, batch: loss(y, slice(count, None)), inner)
    return task(problem, np.full(64, np.log(1e-3)), np.zeros(650), newton=8)


def cleaning(count: int = 500, hidden: int = HIDDEN) -> Task:
    random = np.random.default_rng(0)
    pixels, labels = digits(2 * count)
    noisy = np.where(np.arange(count) % 2, random.integers(0, 10, count), labels[:count])
    sizes = (64 * hidden, hidden, hidden * 10, 10)

    def logits(y: jax.Array, rows: np.ndarray) -> jax.Array:
        first, shift, second, bias = jnp.split(y, np.cumsum(sizes)[:-1].tolist())
        hidden_layer = jnp.tanh(rows @ first.reshape(64, hidden) + shift)
        return hidden_layer @ second.reshape(hidden, 10) + bias

    def inner(x: Any, y: Any, batch: None) -> jax.Array:
        losses = entropy(logits(y, pixels[:count]), noisy)
        return jnp.mean(jax.nn.sigmoid(x) * losses) + 1e-3 * jnp.sum(y**2) / 2

    def outer(x: Any, y: Any, batch: None) -> jax.Array:
        return entropy(logits(y, pixels[count:]), labels[count:]).mean()

    problem, x = BilevelProblem(outer, inner), random.normal(size=count)
    return task(problem, x, descend(problem, x, random.normal(size=sum(sizes)) / 8))


TASKS: dict[str, Callable[[], Task]] = {
    **{
        f"ridge {condition:.0e}": functools.partial(ridge, condition)
        for condition in (1e3, 1e4, 1e5, 1e6)
    },
    "softmax": softmax,
    "cleaning": cleaning,
    "kernel": kernel,
    "units": units,
}
