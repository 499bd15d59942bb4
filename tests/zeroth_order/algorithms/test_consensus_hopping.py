"""Consensus hopping: a step in numpy, its limits, and again from what it told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order
from tests.zeroth_order.test_streaming import ALONG, TOKENS, model, params

NORMAL = zeroth_order.direction(zeroth_order.box_muller_normal)


def square(p, target):
    return jnp.square(p["w"] - target)


def stepped(loss, point, batch=None, **arguments):
    algorithm = zeroth_order.consensus_hopping(loss, NORMAL, **arguments)
    return algorithm.update(algorithm.init(point, jax.random.key(0)), batch)


def samples(point, info, sigma):
    """The points of a step, as numpy."""
    seeds = np.arange(info.gradient.coefficients.size, dtype=np.uint32) + info.gradient.seed
    return np.stack([zeroth_order.perturb(NORMAL, point, s, sigma)["w"] for s in seeds])


def test_a_step_by_hand():
    point, batch = {"w": jnp.array([1.0, -2.0])}, jnp.array([0.5, 0.0])
    state, info = stepped(square, point, batch, sigma=0.3, alpha=2.0, samples=5)
    x = samples(point, info, 0.3).astype(float)
    losses = ((x - np.array([0.5, 0.0])) ** 2).mean(axis=1)
    weights = np.exp(-2 * losses) / np.exp(-2 * losses).sum()
    np.testing.assert_allclose(state.params["w"], weights @ x, rtol=1e-5)
    np.testing.assert_allclose(info.gradient.coefficients, -0.3 * weights, rtol=1e-5)
    np.testing.assert_allclose(info.loss, losses.mean(), rtol=1e-5)
    assert info.evaluations == 5 and info.learning_rate == 1 and state.step == 1


@pytest.mark.slow
def test_limits_of_alpha_and_sigma():
    point, target = {"w": jnp.array([1.0, -2.0])}, jnp.zeros(2)
    state, info = stepped(square, point, target, sigma=0.3, alpha=1e7, samples=9)
    x = samples(point, info, 0.3)
    best = x[(x**2).sum(axis=1).argmin()]
    np.testing.assert_allclose(state.params["w"], best, rtol=1e-5)
    state, info = stepped(square, point, target, sigma=0.3, alpha=0.0, samples=9)
    np.testing.assert_allclose(state.params["w"], samples(point, info, 0.3).mean(axis=0), rtol=1e-5)
    state, _ = stepped(square, point, target, sigma=0.0, alpha=1.0, samples=9)
    np.testing.assert_array_equal(state.params["w"], point["w"])


def test_on_a_slope_the_mean_step_is_gradient_descent():
    """Weighting a normal by exp(-alpha g x) moves its mean by -alpha sigma^2 g."""
    slope, sigma, alpha = jnp.array([1.0, -0.5, 0.25]), 0.5, 1.0
    algorithm = zeroth_order.consensus_hopping(
        lambda x, batch: slope @ x, NORMAL, sigma=sigma, alpha=alpha, samples=64
    )

    def moved(key):
        return algorithm.update(algorithm.init(jnp.zeros(3), key), None)[0].params

    steps = jax.jit(jax.vmap(moved))(jax.random.split(jax.random.key(0), 400))
    # 25,600 samples: an error of sigma / 160 with equal weights, times 1.2 for these; four of them.
    # Dividing by the sum of 64 weights moves the mean by about 1 / 64 of itself.
    np.testing.assert_allclose(steps.mean(axis=0), -alpha * sigma**2 * slope, atol=0.02)


@pytest.mark.slow
def test_parameters_are_a_function_of_the_first_ones_and_of_what_was_told():
    def loss(p, tokens):
        logits = model(p, tokens)
        return jax.nn.logsumexp(logits, axis=1) - logits[:, 0]

    found = {}
    for streamed in (True, False):
        algorithm = zeroth_order.consensus_hopping(
            loss, ALONG, sigma=0.01, alpha=lambda step: 10.0 * (1 + step), samples=3,
            streamed=streamed,
        )  # fmt: skip
        state = algorithm.init(params(), jax.random.key(3))
        run = jax.jit(
            lambda s, update=algorithm.update: jax.lax.scan(
                lambda s, _: update(s, TOKENS), s, length=5
            )
        )
        found[streamed] = run(state)
    state, info = found[True]
    replayed = params()
    for t in range(5):
        gradient = zeroth_order.SeededGradient(*(x[t] for x in info.gradient))
        replayed = zeroth_order.apply(ALONG, gradient, replayed, rate=info.learning_rate[t])
    for other in (replayed, found[False][0].params):
        jax.tree.map(np.testing.assert_array_equal, state.params, other)


def test_it_descends():
    algorithm = zeroth_order.consensus_hopping(
        square, NORMAL, sigma=lambda step: 0.3 * 0.97**step, alpha=100.0, samples=40
    )
    state = algorithm.init({"w": jnp.array([3.0, -2.0, 1.0])}, jax.random.key(0))
    target = jnp.array([1.0, 1.0, 1.0])
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: algorithm.update(s, target), s, length=80))
    state, info = run(state)
    np.testing.assert_allclose(state.params["w"], target, atol=0.05)
    assert info.loss[-1] < 0.01 * info.loss[0]


def test_bad_arguments_are_named():
    make = zeroth_order.consensus_hopping
    with pytest.raises(ValueError, match="consensus_hopping: sigma is -1; accepted: sigma >= 0"):
        make(square, NORMAL, sigma=-1, alpha=1.0)
    with pytest.raises(ValueError, match="consensus_hopping: samples is 0; accepted: samples >= 1"):
        make(square, NORMAL, sigma=1.0, alpha=1.0, samples=0)
    with pytest.raises(ValueError, match="nothing is perturbed"):
        make(square, NORMAL, sigma=1.0, alpha=1.0).init({"n": jnp.int32(0)}, jax.random.key(0))
