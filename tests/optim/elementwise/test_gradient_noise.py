"""Gradient noise: its variance from step to step, keys, optax's rule with the same draws."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def test_variance_falls_as_the_paper_has_it():
    """Of 40000 draws the variance is within five of its standard errors, sqrt(2 / 40000)."""
    tx = optim.gradient_noise(eta=0.3)
    zeros = jnp.zeros(40000)
    state = tx.init(zeros)
    for step in range(4):
        key = jax.random.fold_in(jax.random.key(0), step)
        noise, state = tx.update(zeros, state, key=key)
        expected = 0.3 / (1 + step) ** 0.55
        assert abs(float(noise.var()) / expected - 1) < 5 * (2 / 40000) ** 0.5
        assert abs(float(noise.mean())) < 5 * (expected / 40000) ** 0.5
        standard = np.sort(noise / expected**0.5)
        assert abs(np.mean(standard < 1.0) - 0.8413) < 5 * (0.8413 * 0.1587 / 40000) ** 0.5


def test_equals_optax_with_the_same_draws():
    """optax splits a key of its own and draws for one leaf with what it split off."""
    gradient = jnp.array([1.0, -2.0, 3.0])
    theirs = optax.add_noise(0.3, 0.55, jax.random.key(5))
    state = theirs.init(gradient)
    ours = optim.gradient_noise(0.3, noise=lambda key, shape, dtype: next(draws))
    own = ours.init(gradient)
    for _ in range(3):
        sample = jax.random.split(jax.random.clone(state.rng_key))[1]
        target = jax.random.split(sample, 1)[0]
        draws = iter([jax.random.normal(target, gradient.shape)])
        expected, state = theirs.update(gradient, state)
        updates, own = ours.update(gradient, own, key=jax.random.key(0))
        np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_a_step_draws_what_its_key_says():
    tx = optim.gradient_noise()
    params = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    state = tx.init(params)
    first = tx.update(params, state, key=jax.random.key(0))[0]
    again = tx.update(params, state, key=jax.random.key(0))[0]
    other = tx.update(params, state, key=jax.random.key(1))[0]
    assert (first["a"] == again["a"]).all() and (first["a"] != other["a"]).all()
    assert (first["a"] != first["b"]).all()
    # A leaf draws by its name, so that others may come and go.
    alone = tx.update({"b": params["b"]}, state, key=jax.random.key(0))[0]
    assert (alone["b"] == first["b"]).all()


def test_no_power_keeps_the_variance():
    tx = optim.gradient_noise(4.0, 0.0, noise=lambda key, shape, dtype: jnp.ones(shape, dtype))
    state = tx.init(jnp.zeros(1))
    for _ in range(3):
        noise, state = tx.update(jnp.zeros(1), state, key=jax.random.key(0))
        assert noise.tolist() == [2.0]


def test_defaults_are_the_papers():
    defaults = {n: p.default for n, p in inspect.signature(optim.gradient_noise).parameters.items()}
    assert (defaults["eta"], defaults["gamma"]) == (0.01, 0.55)


def test_errors_are_named():
    with pytest.raises(ValueError, match="gradient_noise: eta is -1.0; accepted: eta >= 0"):
        optim.gradient_noise(-1.0)
    tx = optim.gradient_noise()
    with pytest.raises(ValueError, match=r"gradient_noise: key is None; .* key=jax.random.fold_in"):
        tx.update(jnp.zeros(1), tx.init(jnp.zeros(1)))
