"""Data that scikit-learn brings, as the tests of derivatives split it, and problems of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets, model_selection, preprocessing

import bilevel

FEATURES = 10


@functools.cache
def diabetes():
    """x, y to train on and x, y to validate on: 296 and 146 rows of norm one."""
    x, y = datasets.load_diabetes(return_X_y=True)
    split = model_selection.train_test_split(
        preprocessing.normalize(x), y, test_size=0.33, random_state=0
    )
    return split[0], split[2], split[1], split[3]


@functools.cache
def digits_in_two(features):
    """Eights or not, as +1 or -1, by the pixels of most variance: 300 rows each."""
    x, y = datasets.load_digits(return_X_y=True)
    x = x[:, np.argsort(-x.var(axis=0))[:features]]
    x, y = (x - x.mean(axis=0)) / x.std(axis=0), np.where(y == 8, 1.0, -1.0)
    return x[:300], y[:300], x[300:600], y[300:600]


def ridge_loss(w, x, y):
    return jnp.mean((x @ w - y) ** 2) / 2


def logistic_loss(w, x, y):
    return jnp.mean(jax.nn.softplus(-y * (x @ w)))


def penalised(loss):
    """Fit with a penalty a feature, whose logarithms are the outer variables; its own batches."""

    def outer(penalties, w, batch):
        return loss(w, *batch) + jnp.sum(penalties**2) / 20

    def inner(penalties, w, batch):
        return loss(w, *batch) + jnp.sum(jnp.exp(penalties) * w**2) / 2

    return bilevel.BilevelProblem(outer, inner)


def case(name):
    """problem, batch, penalties, and the constants that are known for them."""
    x, y, x_validation, y_validation = diabetes() if name == "ridge" else digits_in_two(FEATURES)
    if name == "ridge":
        y, y_validation = y / 100, y_validation / 100
    penalties = np.linspace(-3.0, -1.0, FEATURES)
    squares = np.linalg.norm(x_validation, 2) ** 2 / len(x_validation)
    curvature = np.linalg.norm(x, 2) ** 2 / len(x) * np.linalg.norm(x, axis=1).max()
    constants = bilevel.Smoothness(
        mu=np.exp(penalties.min()),
        cross_norm=np.nan,  # at y
        cross=np.exp(penalties.max()),
        hessian=0.0 if name == "ridge" else curvature / (6 * 3**0.5),
        outer_y=squares if name == "ridge" else squares / 4,
    )
    problem = penalised(ridge_loss if name == "ridge" else logistic_loss)
    batch = bilevel.BilevelBatch(
        outer=(jnp.asarray(x_validation), jnp.asarray(y_validation)),
        inner=(jnp.asarray(x), jnp.asarray(y)),
    )
    return problem, batch, jnp.asarray(penalties), constants


@functools.partial(jax.jit, static_argnums=0)
def exact(problem, penalties, batch):
    """The minimiser by Newton's method, the outer value and, by a dense solve, the gradient."""
    inner = functools.partial(problem.inner, batch=batch.inner)

    def step(_, w):
        hessian = jax.hessian(inner, argnums=1)(penalties, w)
        return w - jnp.linalg.solve(hessian, jax.grad(inner, argnums=1)(penalties, w))

    w = jax.lax.fori_loop(0, 12, step, jnp.zeros(FEATURES))
    value, (f_x, f_y) = jax.value_and_grad(problem.outer, (0, 1))(penalties, w, batch.outer)
    hessian = jax.hessian(inner, argnums=1)(penalties, w)
    cross = jax.jacfwd(jax.grad(inner), argnums=1)(penalties, w)
    return w, value, f_x - cross @ jnp.linalg.solve(hessian, f_y)
