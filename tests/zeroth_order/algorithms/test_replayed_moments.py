"""Momentum and Adam without a buffer: those with one, for as long as the window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zeroth_order

ALONG = zeroth_order.direction(stack={"blocks": 1})
PARAMS = {"blocks": jnp.linspace(-1, 1, 24).reshape(2, 3, 4), "head": jnp.linspace(0, 2, 5)}
STEPS = 30


def loss(p, target):
    return jnp.sum(jnp.square(p["blocks"] - target), axis=(1, 2)) + jnp.sum(jnp.sin(p["head"]))


def estimator(samples=2):
    return zeroth_order.spsa(ALONG, epsilon=1e-2, samples=samples)


def run(algorithm, steps=STEPS, params=PARAMS):
    state = algorithm.init(params, jax.random.key(4))
    return jax.jit(lambda s: jax.lax.scan(algorithm.update, s, jnp.linspace(0, 1, steps)))(state)


def with_buffers(tx, info, steps=STEPS):
    """Parameters of a transformation that sees the estimates of a run."""
    params, state = PARAMS, tx.init(PARAMS)
    trajectory = []
    for t in range(steps):
        gradient = zeroth_order.SeededGradient(*(x[t] for x in info.gradient))
        dense = zeroth_order.materialize(ALONG, gradient, params)
        updates, state = tx.update(dense, state, params)
        params = optax.apply_updates(params, updates)
        trajectory.append(params)
    return trajectory


FORMS = {
    "momentum": (
        functools.partial(zeroth_order.mezo_momentum, momentum=0.8),
        lambda rate: optax.sgd(rate, momentum=0.8),
    ),
    "adam": (
        functools.partial(zeroth_order.mezo_adam, b1=0.8, b2=0.95),
        lambda rate: optax.adam(rate, b1=0.8, b2=0.95),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_within_the_window_it_is_the_form_with_buffers(form):
    ours, theirs = FORMS[form]
    algorithm = ours(loss, 0.01, estimator(), ALONG, window=STEPS, samples=2)
    state, info = run(algorithm)
    expected = with_buffers(theirs(0.01), info)[-1]
    for name, value in expected.items():
        moved = np.abs(np.asarray(value - PARAMS[name])).max()
        np.testing.assert_allclose(state.params[name], value, atol=2e-5 * moved)


@pytest.mark.parametrize("form", FORMS)
def test_a_window_of_one_forgets_everything(form):
    ours, _ = FORMS[form]
    state, info = run(ours(loss, 0.01, estimator(1), ALONG, window=1))
    params = PARAMS
    for t in range(STEPS):
        gradient = zeroth_order.SeededGradient(*(x[t] for x in info.gradient))
        if form == "adam":  # c z / |c|
            gradient = gradient._replace(coefficients=jnp.sign(gradient.coefficients))
        params = zeroth_order.apply(ALONG, gradient, params, rate=0.01)
    np.testing.assert_allclose(state.params["head"], params["head"], atol=1e-5)


def test_what_is_lost_is_momentum_to_the_window():
    full, _ = run(FORMS["momentum"][0](loss, 0.001, estimator(), ALONG, window=30, samples=2))
    short, _ = run(FORMS["momentum"][0](loss, 0.001, estimator(), ALONG, window=12, samples=2))
    moved = np.abs(np.asarray(full.params["blocks"] - PARAMS["blocks"])).max()
    apart = np.abs(np.asarray(full.params["blocks"] - short.params["blocks"])).max()
    assert 0 < apart < 0.3 * moved


@pytest.mark.parametrize("form", FORMS)
def test_state_is_scalars_and_bfloat16_stays(form):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    state, _ = run(FORMS[form][0](loss, 0.01, estimator(1), ALONG, window=8), 10, params)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    assert state.seeds.nbytes + state.coefficients.nbytes == 64
    assert (state.params["head"] != params["head"]).any()


@pytest.mark.parametrize("make", [zeroth_order.mezo_momentum, zeroth_order.mezo_adam])
def test_bad_arguments_are_named(make):
    name = make.__name__
    with pytest.raises(ValueError, match=f"{name}: window is 0; accepted: window >= 1"):
        make(loss, 0.1, estimator(), ALONG, window=0)
    with pytest.raises(ValueError, match="samples is 1, and the estimator has 2"):
        run(make(loss, 0.1, estimator(2), ALONG, window=4))
