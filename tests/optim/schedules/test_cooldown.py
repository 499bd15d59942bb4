"""The cooldown: what it leaves alone, where it starts and ends, wsd, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from optim.schedules.decay_shapes import SHAPES


@pytest.mark.parametrize("shape", SHAPES)
def test_of_a_warm_constant_it_is_wsd(shape):
    options = {"total_steps": 30, "decay_steps": 12, "decay_shape": shape, "end_value": 0.02}
    base = optim.wsd_schedule(0.3, total_steps=30, warmup_steps=5, decay_steps=0)
    steps = jnp.arange(33)
    ours = jax.jit(optim.cooldown_schedule(base, **options))(steps)
    wsd = optim.wsd_schedule(0.3, warmup_steps=5, **options)(steps)
    np.testing.assert_allclose(ours, wsd, rtol=1e-6)
    assert ours[18] == np.float32(0.3) and ours[30] == ours[32] == np.float32(0.02)


def test_follows_the_schedule_and_then_falls_from_its_value_there():
    base = optim.power_schedule(0.5, power=0.5, warmup_steps=4)
    cooled = optim.cooldown_schedule(base, total_steps=40, decay_steps=0.25, end_value=0.05)
    values, before = cooled(jnp.arange(42)), base(jnp.arange(42))
    assert (values[:31] == before[:31]).all()
    s = np.arange(11) / 10
    np.testing.assert_allclose(
        values[30:41], 0.05 + (before[30] - 0.05) * (1 - np.sqrt(s)), rtol=1e-5
    )
    assert values[41] == np.float32(0.05)


def test_of_nothing_and_of_everything():
    base = optax.constant_schedule(2.0)
    assert optim.cooldown_schedule(base, total_steps=4, decay_steps=0)(jnp.arange(6)).tolist() == [
        2, 2, 2, 2, 0, 0
    ]  # fmt: skip
    whole = optim.cooldown_schedule(base, total_steps=4, decay_steps=4, decay_shape="linear")
    assert whole(jnp.arange(5)).tolist() == [2, 1.5, 1, 0.5, 0]


def test_the_latest_steps_are_counted_exactly():
    total = 2**31 - 1
    cooled = optim.cooldown_schedule(
        optax.constant_schedule(1.0), total_steps=total, decay_steps=4, decay_shape="linear"
    )
    steps = jnp.array([total - k for k in range(5, -1, -1)])
    assert cooled(steps).tolist() == [1, 1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"total_steps": 0}, "total_steps is 0; accepted: an int from 1"),
        ({"decay_steps": 11}, "decay_steps is 11; accepted: at most total_steps = 10"),
        ({"decay_steps": -0.1}, "decay_steps is -0.1; accepted"),
        ({"decay_shape": "cubic"}, "decay_shape is 'cubic'; accepted"),
        ({"decay_shape": "exponential"}, "end_value is 0.0; decay_shape 'exponential' accepts"),
    ],
)
def test_errors_name_the_argument(kwargs, message):
    with pytest.raises(ValueError, match=f"cooldown_schedule: {message}"):
        optim.cooldown_schedule(
            optax.constant_schedule(1.0), **{"total_steps": 10, "decay_steps": 2, **kwargs}
        )
