"""FZooS: a round in numpy, what the server keeps, what is counted, and that it descends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zeroth_order
from optim import trees
from tests.zeroth_order.test_surrogates import kernel
from zeroth_order import surrogates
from zeroth_order.algorithms import fzoos as module

SIZES = {"active": 2, "exchanged": 4, "neighbours": 40, "memory": 60, "features": 1000}
CENTRES = np.array([[0.5, -1.0, 0.3, 0.0], [1.5, 1.0, -0.3, 0.2], [1.0, 0.3, 0.0, 0.1]])
CURVATURES = np.arange(1.0, 5.0)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def clients(scale=1.0):
    return {"centre": jnp.asarray(CENTRES), "scale": jnp.full(3, scale)}


def loss(x, client):
    return (
        client["scale"] * jnp.sum(jnp.square(x - client["centre"]) * CURVATURES.astype(x.dtype)) + 1
    )


@functools.cache
def made(iterations):
    optimizer = optax.sgd(0.01) if iterations == 1 else optax.adam(0.03)
    algorithm = zeroth_order.fzoos(loss, optimizer, iterations=iterations, **SIZES)
    return algorithm.init, jax.jit(algorithm.update)


def begun(iterations=3, scale=1.0, start=(0.2, -0.1, 0.4, 0.3)):
    init, update = made(iterations)
    return update, init(jnp.asarray(start), jax.random.key(0), clients(scale))


def slope_by_hand(points, values, x):
    """The gradient of the posterior's mean at the likeliest lengthscale of the grid."""
    low, spread = values.min(), np.ptp(values)
    unit, best = (values - low) / spread, (-np.inf, None)
    for lengthscale in module.LENGTHSCALES:
        gram = kernel(points, points, lengthscale) + 1e-6 * np.eye(len(points))
        solved = np.linalg.solve(gram, unit)
        likelihood = -unit @ solved / 2 - np.linalg.slogdet(gram)[1] / 2
        best = max(best, (likelihood, (lengthscale, solved)), key=lambda found: found[0])
    lengthscale, solved = best[1]
    a, apart = np.sqrt(5) / lengthscale, x - points
    r = np.linalg.norm(apart, axis=1)
    return (spread * solved * -(a**2) / 3 * (1 + a * r) * np.exp(-a * r)) @ apart


def test_the_first_round_by_hand():
    """One iteration, before which there is no surrogate of the others."""
    update, state = begun(iterations=1)
    start = np.asarray(state.x)
    points, values = np.asarray(state.queries.points), np.asarray(state.queries.losses)
    assert (state.queries.total == 11).all()
    np.testing.assert_array_equal(points[:, 0], np.tile(start, (3, 1)))
    assert np.abs(points[:, :11] - start).max() <= 0.01
    slopes = [slope_by_hand(p[:11], v[:11], start) for p, v in zip(points, values)]
    ends = [start - 0.01 * slope for slope in slopes]
    state, info = update(state, clients())
    np.testing.assert_allclose(state.x, np.mean(ends, axis=0), rtol=1e-6)
    np.testing.assert_allclose(state.queries.points[:, 11], ends, rtol=1e-6)
    np.testing.assert_allclose(state.queries.points[:, 12], np.tile(state.x, (3, 1)), rtol=1e-6)
    np.testing.assert_allclose(state.losses, jax.vmap(loss, (None, 0))(state.x, clients()))
    np.testing.assert_allclose(info.loss, state.losses.mean())
    assert info.accepted and info.evaluations == 3 * (1 + 1 + 4)


@pytest.mark.slow
def test_the_second_round_is_corrected_by_the_surrogates():
    update, state = begun(iterations=1)
    state, _ = update(state, clients())
    np.testing.assert_allclose(state.shared, state.own.mean(axis=0), atol=1e-12)
    named = trees.named_key(state.key, "fzoos: features")
    waves = surrogates.random_features(named, 4, 1000, state.x.dtype)
    after, _ = update(state, clients())
    for i in range(3):
        known = slice(0, int(state.queries.total[i]))
        points, values = state.queries.points[i, known], state.queries.losses[i, known]
        slope = slope_by_hand(np.asarray(points), np.asarray(values), np.asarray(state.x))
        shared, own = (
            jax.grad(lambda x, w=w: surrogates.encoded(waves, x[None])[0] @ w)(state.x)
            for w in (state.shared, state.own[i])
        )
        end = state.x - 0.01 * (slope + shared - own)
        found = after.queries.points[i, int(state.queries.total[i])]
        np.testing.assert_allclose(found, end, rtol=1e-5, atol=1e-8)
        assert float(jnp.abs(shared - own).max()) > 0.1


@pytest.mark.parametrize("scale", [0.0, 1e30])
def test_a_round_that_does_not_lower_the_mean_is_undone(scale):
    """Of constants; and of functions on which the clients run away."""
    update, before = begun(iterations=1, scale=scale)
    state, info = update(before, clients(scale))
    assert not info.accepted and state.step == 1
    np.testing.assert_array_equal(state.x, before.x)
    np.testing.assert_array_equal(state.losses, before.losses)
    assert jnp.isfinite(state.shared).all()


@pytest.mark.slow
def test_what_is_counted_is_what_was_asked_for_and_the_last_is_kept():
    update, state = begun()
    for _ in range(6):
        before, (state, info) = state, update(state, clients())
        grown = (state.queries.total - before.queries.total).sum()
        assert info.evaluations == grown == 3 * (3 + 2 * 2 + 1 + 4)
        assert (info.loss < before.losses.mean()) == bool(info.accepted)
    assert (state.queries.total == 6 * 12 + 11).all() and state.queries.points.shape == (3, 60, 4)
    expected = jax.vmap(jax.vmap(loss, (0, None)))(state.queries.points, clients())
    np.testing.assert_allclose(state.queries.losses, expected)


@pytest.mark.slow
def test_active_queries_are_those_of_largest_variance():
    points = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (20, 2)))
    found = surrogates.matern_process(
        points, jnp.sum(points**2, axis=1), jnp.ones(20, bool), jnp.asarray(0.3), 1e-6
    )
    near, far = points[:5] + 0.01, jnp.array([[3.0, 3.0], [-4.0, 2.0]])
    chosen = module._uncertain(found, jnp.concatenate([near[:3], far, near[3:]]), 2)
    assert {tuple(x) for x in chosen.tolist()} == {tuple(x) for x in far.tolist()}


def test_it_finds_the_minimum_of_the_mean_of_clients_that_differ():
    update, state = begun()
    for _ in range(20):
        state, info = update(state, clients())
    least = jnp.mean(jax.vmap(loss, (None, 0))(CENTRES.mean(axis=0), clients()))
    assert info.loss - least < 0.02 * (begun()[1].losses.mean() - least)


@pytest.mark.slow
def test_single_precision_descends_too():
    init = made(3)[0]
    single = jax.tree.map(lambda x: x.astype(jnp.float32), clients())
    state = init(jnp.asarray([0.2, -0.1, 0.4, 0.3], jnp.float32), jax.random.key(0), single)
    first = state.losses.mean()
    for _ in range(8):
        state, info = made(3)[1](state, single)
    least = jnp.mean(jax.vmap(loss, (None, 0))(CENTRES.mean(axis=0), clients()))
    assert state.x.dtype == state.own.dtype == info.loss.dtype == jnp.float32
    assert info.loss - least < 0.5 * (first - least)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"radius": 0.0}, "fzoos: radius is 0.0; accepted: radius > 0"),
        ({"iterations": 0}, "fzoos: iterations is 0; accepted: iterations >= 1"),
        ({"active": 101}, "fzoos: active is 101; accepted: at most 100"),
        ({"exchanged": 201}, "fzoos: exchanged is 201; accepted: at most 200"),
        ({"memory": 39}, "fzoos: memory is 39; accepted: memory >= 40"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        zeroth_order.fzoos(loss, optax.sgd(0.1), **{**SIZES, **arguments})


def test_a_point_that_is_no_vector_is_named():
    with pytest.raises(ValueError, match=r"x has the shape \(2, 2\) and the dtype float64"):
        begun(start=jnp.zeros((2, 2)))
