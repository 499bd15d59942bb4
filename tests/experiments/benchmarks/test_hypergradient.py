"""What the table of hypergradients calls exact, and its counts, by other means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import hypergradient as entry
from experiments.benchmarks import hypergradient_methods as methods
from experiments.benchmarks import hypergradient_problems as problems


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def ridge():
    return problems.ridge(1e2, 12)


def test_the_exact_hypergradient_is_that_of_the_closed_form():
    task = ridge()
    assert task.condition == pytest.approx(1e2, rel=1e-8)

    def loss(x):
        def gradient(y):
            return jax.grad(task.problem.inner, 1)(x, y, None)

        zero = jnp.zeros(12)
        y = -jnp.linalg.solve(jax.jacfwd(gradient)(zero), gradient(zero))
        return task.problem.outer(x, y, None)

    np.testing.assert_allclose(task.gradient, jax.jit(jax.grad(loss))(task.x), rtol=1e-9)


def test_products_counted_from_outside_are_those_reported():
    task, found = ridge(), {}
    for name in ("ours, explicit", "ours, decorator", methods.JAXOPT_CG, "unrolled, 20 steps"):
        (_, reported), calls = methods.counted(
            lambda optimality, name=name: jax.jit(methods.METHODS[name](task, optimality))(
                task.x, task.y
            ),
            methods.gradient_of(task),
        )
        found[name] = calls if reported is None else int(reported)
    assert found["ours, explicit"] == found["ours, decorator"] + 1 > 10
    assert abs(found["ours, decorator"] - found[methods.JAXOPT_CG]) <= 1
    assert found["unrolled, 20 steps"] == 20


@pytest.mark.slow
def test_a_preconditioner_that_is_kept_saves_products_and_its_own_are_counted():
    task = problems.units(64)
    xs, ys, wanted = problems.path(task, 2)
    found = {}
    for kept in (None, "Jacobi"):
        run = jax.jit(entry.our_steps(task, 1e-8, warm=False, preconditioner=kept))
        gradients, found[kept] = run(xs, ys)
        assert np.all(entry.relative(gradients, wanted) < 1e-4)
    (_, plain), (first, second) = found[None], found["Jacobi"]
    assert 2 * second < plain
    assert first >= 64 + second - 2
