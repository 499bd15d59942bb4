"""Spectra of batches against dense Hessians, the second-order law where it is exact, the judge."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.figures import batch_hessian as figure

pytestmark = pytest.mark.slow


def logits(params, samples):
    return jnp.tanh(samples["x"] @ params["a"]) @ params["b"]


LOSS = functools.partial(figure.mean_loss, logits)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    data = {
        "x": jnp.asarray(rng.normal(size=(20, 6)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 3, 20)),
    }
    params = {
        "a": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32),
    }
    return params, data


def dense(params, batch):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return np.asarray(jax.hessian(lambda p: LOSS(unravel(p), batch))(flat), np.float64)


def test_only_the_first_samples_count(problem):
    params, data = problem
    whole = figure.Batch(jax.tree.map(lambda x: x[:7], data), 7)
    part = figure.Batch(data, 7)
    np.testing.assert_allclose(LOSS(params, part), LOSS(params, whole), rtol=1e-6)


def test_distances_are_those_of_dense_matrices(problem):
    params, data = problem
    start = jax.tree.map(lambda p: jax.random.normal(jax.random.key(0), p.shape), params)
    full, batch = figure.Batch(data, 20), figure.Batch(data, 8)
    values, vectors = jax.jit(functools.partial(figure.ends, LOSS))(params, start, full)
    found = jax.jit(functools.partial(figure.distances, LOSS))(params, start, vectors, batch)
    spectrum, basis = np.linalg.eigh(dense(params, full))
    np.testing.assert_allclose(values, spectrum[[-1, 0]], rtol=1e-4)
    other = dense(params, batch)
    along = np.array([v @ other @ v for v in basis.T[[-1, 0]]])
    expected = np.abs(np.linalg.eigvalsh(other)[[-1, 0]] - along)
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert (expected > 0.01).all()


def test_the_coefficients_are_those_of_dense_matrices(problem):
    params, data = problem
    spectrum, basis = np.linalg.eigh(dense(params, figure.Batch(data, 20)))
    values, vectors = spectrum[::-1], basis[:, ::-1]
    one_by_one = [
        figure.Batch(jax.tree.map(lambda x, i=i: x[i : i + 1], data), 1) for i in range(20)
    ]
    squares = np.mean([(vectors.T @ dense(params, b) @ vectors[:, 0]) ** 2 for b in one_by_one], 0)
    _, unravel = jax.flatten_util.ravel_pytree(params)
    few, rest = jnp.asarray(vectors.T[:4], jnp.float32), squares[4:].sum() / values[0]
    found = jax.jit(functools.partial(figure.coefficients, LOSS))(
        params, data, jnp.asarray(values[:4], jnp.float32), jax.vmap(unravel)(few)
    )
    expected = (squares[1:4] / (values[0] - values[1:4])).sum() + rest
    np.testing.assert_allclose(found[0], squares[1:].sum() / values[0], rtol=1e-3)
    np.testing.assert_allclose(found[1], expected, rtol=1e-3)


def test_a_rate_is_stable_below_twice_the_inverse_curvature():
    """p <- (1 - 2 r) p on p^2, of curvature 2: up to r = 1."""
    data, rates = {"label": jnp.arange(64)}, np.array([0.1, 0.99, 1.01, 10.0])
    test = functools.partial(figure.stable, lambda p, batch: p**2, data, optax.sgd, rates)
    found = jax.jit(test)(jnp.float32(1.0), jax.random.key(0))
    assert found.tolist() == [[True, True, False, False]] * len(figure.STABLE_SIZES)


def table(power, rate_power):
    """Distances that are a power of 1/B - 1/N, and rates that are one of B."""
    rows = []
    for network in range(2):
        for quantity in figure.COEFFICIENTS:
            rows.append((quantity, network, 1437, 2.0))
        for size in figure.SIZES:
            x = 1 / size - 1 / 1437
            for wobble in (0.99, 1.01):
                rows.append(("largest", network, size, 2.0 * x**power * wobble))
                rows.append(("smallest", network, size, x**0.5 * wobble))
        for name, scale in (("SGD", rate_power), ("Adam", rate_power / 2)):
            for size in figure.STABLE_SIZES:
                rows.append((f"stable rate, {name}", network, size, size**scale))
    names = ("quantity", "network", "size", "value")
    return {name: np.array(column) for name, column in zip(names, zip(*rows), strict=True)}


def test_the_judge_can_say_yes_and_no():
    assert [p.holds for p in figure.judge(table(1.0, 1.0))] == [1, 0, 1, 1, 1, 1, 1]
    assert [p.holds for p in figure.judge(table(0.5, 2.0))] == [0, 1, 1, 0, 0, 0, 0]
