"""Drifts and updates are those of roundings in NumPy, and the judge can say no."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import zeroth_order
from experiments.figures import zeroth_order_precision as target

pytestmark = pytest.mark.slow

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
COUNT = 2**12


@pytest.fixture(scope="module")
def data():
    return target.measure(quick=True)


def key():
    return jax.random.key(7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_undone_perturbations_are_off_by_their_three_roundings(dtype):
    rows = target.drifts(key(), dtype, COUNT, 2)
    start = np.asarray(target.weights(key(), COUNT, dtype)["w"])
    along, w = zeroth_order.direction(zeroth_order.box_muller_normal), start
    estimate = zeroth_order.SeededGradient(jnp.uint32(0), jnp.ones(1))
    z = np.asarray(zeroth_order.materialize(along, estimate, {"w": jnp.zeros(COUNT)})["w"])
    for scale in (1e-3, -2e-3, 1e-3):
        w = (w.astype(np.float32) + np.float32(scale) * z).astype(DTYPES[dtype])
    expected = np.sqrt(np.mean((w.astype(np.float64) - start.astype(np.float64)) ** 2))
    found = {(row[2], row[5]): row[-1] for row in rows}
    # A fused multiply-add rounds once where NumPy rounds twice, which float32 alone can see.
    tolerance = 0.5 if dtype == "float32" else 0.01
    assert found[target.RESTORED, 1] == pytest.approx(expected, rel=tolerance)
    assert found[target.NEVER, 1] == found[target.NEVER, 2] == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_part_of_an_update_that_is_made_is_that_of_rounding_in_numpy(dtype):
    rows = target.updates(key(), dtype, target.NEAREST, COUNT, 1)
    start = target.weights(jax.random.fold_in(key(), 0), COUNT, dtype)
    along = zeroth_order.direction(zeroth_order.box_muller_normal)
    estimate = zeroth_order.SeededGradient(jnp.uint32(0), jnp.ones(1))
    z = np.asarray(zeroth_order.materialize(along, estimate, start)["w"])
    wide = np.asarray(start["w"]).astype(np.float32)
    for row in rows:
        size = np.float32(row[3])
        after = (wide - size * z).astype(DTYPES[dtype]).astype(np.float32)
        expected = -((after - wide) @ z) / (size * (z @ z))
        assert row[-1] == pytest.approx(expected, rel=1e-2, abs=1e-4)


def test_runs_start_alike_and_a_rate_of_zero_goes_nowhere():
    draws = target.drawn(key(), 8, 200)
    inputs, labels = jax.random.normal(jax.random.key(1), (8, 64)), jnp.arange(8)
    at_rest = functools.partial(target.trained, rate=0.0, inputs=inputs, labels=labels)
    still = at_rest(draws, dtype="bfloat16", rounding=target.STOCHASTIC)
    draws = target.drawn(key(), 8, 100)
    wide = at_rest(draws, dtype="float32", rounding=target.NEAREST)
    assert still.shape == (3,) and (still == still[0]).all()
    np.testing.assert_allclose(still[0], wide[0], rtol=1e-2)


def test_the_loss_is_a_perceptrons_cross_entropy():
    params = {"first": jnp.array([[1.0, -1.0]]), "last": jnp.array([[1.0, 0.0], [0.0, 1.0]])}
    found = target.losses(params, jnp.array([[2.0], [-3.0]]), jnp.array([0, 0]))
    np.testing.assert_allclose(found, [np.log(1 + np.exp(-2)), np.log(1 + np.exp(3))], rtol=1e-6)


def test_the_judge_follows_the_values(data):
    perfect = dict(data)
    values = data["value"].copy()
    values[target.where(data, what=target.DRIFT)] = 0
    values[target.where(data, what=target.UPDATES)] = 1
    training = target.where(data, what=target.TRAINING)
    values[training] = 2.0 - data["step"][training] / 1000
    perfect["value"] = values
    assert all(part.holds for part in target.judge(perfect))
    drifting = values.copy()
    drifting[target.where(data, what=target.DRIFT)] = 1e-6
    slow = values.copy()
    slow[target.where(data, what=target.UPDATES)] = 0.97
    behind = values.copy()
    mine = training & (data["dtype"] == "bfloat16")
    behind[mine] = 2.0 - 0.94 * data["step"][mine] / 1000
    assert [part.holds for part in target.judge(perfect | {"value": drifting})] == (
        [False] * 4 + [True] * 8
    )
    assert [part.holds for part in target.judge(perfect | {"value": slow})] == (
        [True] * 4 + [False] * 4 + [True] * 4
    )
    assert [part.holds for part in target.judge(perfect | {"value": behind})] == (
        [True] * 8 + [False] * 4
    )
    assert len(target.plot(data).axes) == 4
