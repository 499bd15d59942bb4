"""Schedules from a table: its points, the lines between them, both ends, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim

VALUES = np.array([0.2, 1.0, 0.7, 0.1, 0.0], np.float32)


def test_one_value_a_step_is_exact_and_stays_at_the_last():
    ours = jax.jit(optim.array_schedule(VALUES))(jnp.arange(8))
    assert (ours[:5] == VALUES).all() and (ours[5:] == 0).all()
    scaled = optim.array_schedule(VALUES, peak_value=0.5)
    assert (scaled(jnp.arange(5)) == 0.5 * VALUES).all()
    assert scaled(3).shape == ()


@pytest.mark.parametrize("total", [1, 2, 3, 4, 6, 9, 13, 101])
def test_lines_between_the_values(total):
    ours = optim.array_schedule(VALUES, total_steps=total)(jnp.arange(total + 2))
    expected = np.interp(np.linspace(0, 4, total), np.arange(5), VALUES)
    np.testing.assert_allclose(ours[:total], expected, atol=1e-6)
    assert (ours[total:] == ours[total - 1]).all()
    assert ours[0] == VALUES[0] and (total == 1 or ours[total - 1] == VALUES[-1])
    if (total - 1) % 4 == 0:
        assert (ours[: total : max((total - 1) // 4, 1)][:5] == VALUES[: min(total, 5)]).all()


def test_points_are_met_exactly_in_long_runs():
    """In float32 the place of step 1,500,001 would be wrong in its second decimal."""
    values = np.linspace(0, 1, 1_000_001) ** 2
    ours = optim.array_schedule(values, total_steps=2_000_001)
    steps = np.array([0, 999_998, 1_500_002, 2_000_000])
    assert (ours(jnp.asarray(steps)) == values[steps // 2].astype(np.float32)).all()
    between = 0.5 * (values[750_000] + values[750_001])
    assert ours(1_500_001) == pytest.approx(between, rel=1e-7)


def test_the_latest_step_and_one_value():
    assert optim.array_schedule([3.0])(jnp.int32(2**31 - 1)) == 3
    assert optim.array_schedule([3.0], total_steps=4)(jnp.arange(6)).tolist() == [3.0] * 6


def test_keeps_float64_and_widens_what_is_narrow():
    with jax.enable_x64(True):
        assert optim.array_schedule(np.array([0.1, 0.3]))(1).dtype == jnp.float64
    assert optim.array_schedule(jnp.array([1, 0]))(0).dtype == jnp.float32
    assert optim.array_schedule(jnp.ones(2, jnp.bfloat16))(0).dtype == jnp.float32


def test_a_refined_schedule_is_made_and_used_in_one_program():
    @jax.jit
    def rates(norms):
        schedule = optim.array_schedule(optim.refine_schedule(norms), total_steps=9)
        return schedule(jnp.arange(10))

    np.testing.assert_allclose(rates(jnp.ones(5)), [*np.linspace(1, 0, 9), 0], atol=1e-6)


def test_a_known_table_is_checked_and_read_in_a_program_as_well():
    for table in (VALUES, jnp.asarray(VALUES), VALUES.tolist()):
        value = jax.jit(lambda t, table=table: optim.array_schedule(table)(t))(2)
        assert value == np.float32(0.7)
    with pytest.raises(ValueError, match=r"values\[1\] is nan; accepted"):
        bad = jnp.array([1.0, jnp.nan])
        jax.jit(lambda t: optim.array_schedule(bad)(t)).lower(0)


@pytest.mark.parametrize(
    ("values", "total", "message"),
    [
        ([], None, r"values has shape \(0,\); accepted: \(n,\) with n from 1"),
        (1.0, None, r"values has shape \(\); accepted"),
        ([1.0, np.nan], None, r"values\[1\] is nan; accepted: finite"),
        ([1.0, -np.inf, np.nan], None, r"values\[1\] is -inf; accepted: finite"),
        ([1.0], 0, "total_steps is 0; accepted: an int from 1"),
        ([1.0], 2.5, "total_steps is 2.5; accepted: an int from 1"),
    ],
)
def test_errors_name_the_argument(values, total, message):
    with pytest.raises(ValueError, match=f"array_schedule: {message}"):
        optim.array_schedule(values, total_steps=total)
