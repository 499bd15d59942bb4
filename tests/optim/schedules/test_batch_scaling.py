"""The rate by the batch size: what each rule keeps equal, the cap, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def test_linear_rule_keeps_the_distance_that_small_steps_go():
    """On a constant gradient: one step of four times the batch goes as far as four steps."""
    gradient = jnp.array([1.0, -2.0])
    small = -4 * 0.1 * gradient
    rate = optim.scale_with_batch_size(0.1, 128, 32)
    large = optax.sgd(rate).update(gradient, optax.sgd(rate).init(gradient))[0]
    np.testing.assert_allclose(large, small, rtol=1e-6)


def test_square_root_rule_keeps_the_noise_of_adam():
    """Steps of signs of noise: n steps at r have the variance of one at r sqrt(n)."""
    signs = jax.random.rademacher(jax.random.key(0), (20_000, 4), jnp.float32)
    rate = optim.scale_with_batch_size(0.1, 128, 32, rule="sqrt")
    assert rate**2 == pytest.approx(jnp.var(0.1 * signs.sum(1)).item(), rel=0.05)


def test_goes_down_as_well_and_is_one_at_the_reference():
    for rule in ("linear", "sqrt"):
        assert optim.scale_with_batch_size(0.3, 64, 64, rule=rule) == 0.3
        there = optim.scale_with_batch_size(0.3, 16, 64, rule=rule)
        assert there < 0.3
        assert optim.scale_with_batch_size(there, 64, 16, rule=rule) == pytest.approx(0.3)


def test_cap():
    assert optim.scale_with_batch_size(0.1, 10**6, 32, most=0.8) == 0.8
    assert optim.scale_with_batch_size(0.1, 64, 32, most=0.8) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("arguments", "kwargs", "message"),
    [
        ((0.0, 1, 1), {}, "learning_rate is 0.0; accepted: learning_rate > 0"),
        ((0.1, 0, 1), {}, "batch_size is 0; accepted: batch_size > 0"),
        ((0.1, 1, -4), {}, "reference_batch_size is -4; accepted: reference_batch_size > 0"),
        ((0.1, 1, 1), {"rule": "cubic"}, "rule is 'cubic'; accepted: 'linear', 'sqrt'"),
        ((0.1, 1, 1), {"most": 0}, "most is 0; accepted: most > 0"),
    ],
)
def test_errors_name_the_argument(arguments, kwargs, message):
    with pytest.raises(ValueError, match=f"scale_with_batch_size: {message}"):
        optim.scale_with_batch_size(*arguments, **kwargs)
