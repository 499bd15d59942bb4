"""Weights by loss: the authors' formulas, limits, derivatives, temperatures, bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim

LOSSES = np.random.default_rng(0).gamma(2.0, size=16)
SCHEMES = ("linupper", "quadratic", "extremes")


def score(losses, scheme):
    """In the steps and the order of the authors' code, with delta = 1."""
    spread = max(losses.max() - losses.min(), 1e-6)
    h = 2.0 * losses / spread - (losses.max() + losses.min()) / spread
    return {"linupper": np.minimum(h + 1, 1), "quadratic": 1 - h**2, "extremes": np.abs(h)}[scheme]


def by_the_authors_formulas(losses, temperature, scheme):
    f = score(losses, scheme)
    weights = np.exp((f - f.max()) / temperature)
    return weights / weights.sum()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("temperature", [0.05, 0.4, 1.0])
def test_weights_are_the_authors(scheme, temperature):
    with jax.enable_x64(True):
        found = optim.loss_weights(jnp.asarray(LOSSES), temperature, scheme)
    expected = by_the_authors_formulas(LOSSES, temperature, scheme)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_first_weights_by_hand(scheme):
    """Losses 0, 1, 2, 4 have h = -1, -1/2, 0, 1."""
    f = {"linupper": [0, 0.5, 1, 1], "quadratic": [0, 0.75, 1, 0], "extremes": [1, 0.5, 0, 1]}
    expected = np.exp(np.array(f[scheme]) / 0.5)
    found = optim.loss_weights(jnp.array([0.0, 1.0, 2.0, 4.0]), 0.5, scheme)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_infinite_temperatures_and_equal_losses_are_uniform(scheme):
    weights = jax.jit(optim.loss_weights, static_argnums=2)
    assert weights(jnp.asarray(LOSSES, jnp.float32), jnp.inf, scheme).tolist() == [1 / 16] * 16
    assert weights(jnp.full(4, 2.7), 0.01, scheme).tolist() == [0.25] * 4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_maximise_what_the_module_says(scheme):
    """sum w f - r KL(w, uniform): any other weights have less."""
    with jax.enable_x64(True):
        w = np.asarray(optim.loss_weights(jnp.asarray(LOSSES), 0.3, scheme))
    f = score(LOSSES, scheme)

    def objective(w):
        return w @ f - 0.3 * np.sum(w * np.log(16 * w))

    others = np.random.default_rng(1).dirichlet(np.full(16, 5.0), size=50)
    assert all(objective(w) > objective(0.9 * w + 0.1 * other) for other in others)


def test_no_gradient_goes_through_the_weights():
    def loss(params):
        losses = params * jnp.asarray(LOSSES, jnp.float32)
        return optim.loss_weights(losses, 0.5) @ losses

    weights = optim.loss_weights(jnp.asarray(LOSSES, jnp.float32), 0.5)
    np.testing.assert_allclose(jax.grad(loss)(1.0), weights @ LOSSES, rtol=1e-5)


def test_half_precision_is_weighed_in_float32():
    weights = optim.loss_weights(jnp.asarray(LOSSES, jnp.bfloat16))
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)


def test_the_schedule_of_temperatures():
    schedule = jax.jit(jax.vmap(optim.loss_temperature_schedule(1.0, 0.4, total_steps=40)))
    values = schedule(jnp.arange(40))
    assert np.isinf(values[:2]).all()  # a twentieth
    np.testing.assert_allclose(values[2:], 1 - 0.6 * np.arange(38) / 38, rtol=1e-6)
    constant = optim.loss_temperature_schedule(0.7, total_steps=9, warmup_steps=0)
    assert [float(constant(t)) for t in (0, 8)] == pytest.approx([0.7, 0.7])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optim.loss_weights(jnp.ones(1)), r"losses is of shape \(1,\); accepted: \(n,\)"),
        (lambda: optim.loss_weights(jnp.ones((2, 2))), r"losses is of shape \(2, 2\)"),
        (
            lambda: optim.loss_weights(jnp.ones(2), 0.0),
            "loss_weights: temperature is 0.0; accepted: temperature > 0",
        ),
        (
            lambda: optim.loss_weights(jnp.ones(2), 1.0, "mid"),
            "loss_weights: scheme is 'mid'; accepted: linupper, quadratic, extremes",
        ),
        (
            lambda: optim.loss_temperature_schedule(1.0, -1.0, total_steps=3),
            "loss_temperature_schedule: end_value is -1.0; accepted: end_value > 0",
        ),
        (
            lambda: optim.loss_temperature_schedule(1.0, total_steps=3, warmup_steps=3),
            "loss_temperature_schedule: warmup_steps is 3; accepted: fewer than total_steps = 3",
        ),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
