"""Linear decay: the paper's formula, and the special case of wsd that it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim


def test_without_a_warmup_it_is_the_paper_s():
    ours = jax.jit(optim.linear_decay_schedule(0.5, total_steps=8))(jnp.arange(10))
    np.testing.assert_allclose(ours, 0.5 * (1 - np.minimum(np.arange(10), 8) / 8), rtol=1e-6)
    assert ours[0] == 0.5 and ours[8] == ours[9] == 0


@pytest.mark.parametrize("warmup", [0, 7, 0.25])
def test_equals_wsd_without_a_stable_phase(warmup):
    count = round(0.25 * 20) if warmup == 0.25 else warmup
    steps = jnp.arange(25)
    ours = optim.linear_decay_schedule(0.4, total_steps=20, warmup_steps=warmup, end_value=0.1)(
        steps
    )
    wsd = optim.wsd_schedule(
        0.4, total_steps=20, warmup_steps=count, decay_steps=20 - count, end_value=0.1
    )(steps)
    np.testing.assert_allclose(ours, wsd, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 2**31 - 5])
def test_the_latest_steps_are_counted(warmup):
    total = 2**31 - 1
    schedule = optim.linear_decay_schedule(1.0, total_steps=total, warmup_steps=warmup)
    ours = schedule(jnp.array([total - 4, total - 2, total], jnp.int32))
    assert ours.tolist() == ([1.0, 0.5, 0.0] if warmup else pytest.approx([0, 0, 0], abs=1e-7))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"total_steps": -3}, "total_steps is -3; accepted: an int from 1"),
        ({"warmup_steps": 10}, "warmup_steps is 10; accepted: fewer than total_steps = 10"),
        ({"warmup_steps": 2.5}, "warmup_steps is 2.5; accepted: an int from 0"),
    ],
)
def test_errors_name_the_argument(kwargs, message):
    with pytest.raises(ValueError, match=f"linear_decay_schedule: {message}"):
        optim.linear_decay_schedule(1.0, **{"total_steps": 10, **kwargs})
