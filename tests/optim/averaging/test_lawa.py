"""The mean of the latest checkpoints: which they are, what is served early, dtypes, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def walk(tx, positions):
    """Parameters that step through the positions; what is served after each."""
    params = jnp.zeros(np.shape(positions[0]), positions.dtype)
    state, served = tx.init(params), []
    for position in positions:
        updates, state = tx.update(position - params, state, params)
        params = optim.apply_updates(params, updates)
        served.append(optim.evaluation_params(state, params))
    return np.stack(served)


@pytest.mark.parametrize(("latest", "interval"), [(1, 1), (3, 1), (2, 3)])
def test_the_newest_checkpoints_are_averaged(latest, interval):
    positions = np.random.default_rng(0).normal(size=(14, 3))
    with jax.enable_x64(True):
        served = walk(optim.params_lawa(latest, interval), jnp.asarray(positions))
    for t in range(1, 15):
        checkpoints = positions[interval - 1 : t : interval][-latest:]
        expected = checkpoints.mean(axis=0) if len(checkpoints) else positions[t - 1]
        np.testing.assert_allclose(served[t - 1], expected, rtol=1e-12, atol=1e-15)


def test_it_is_what_merging_the_checkpoints_gives():
    positions = jnp.asarray(np.random.default_rng(1).normal(size=(8, 2)), jnp.float32)
    served = walk(optim.params_lawa(latest=3, interval=2), positions)
    saved = [{"w": p} for p in positions[1::2]]
    merged = optim.combine_checkpoints(saved, optim.latest_weights(4, 3))
    np.testing.assert_allclose(served[-1], merged["w"], rtol=1e-6)


def test_a_checkpoint_that_has_fallen_out_leaves_nothing():
    """Slots are written over, and not subtracted from a sum that would keep an infinity."""
    positions = jnp.array([[jnp.inf], [1.0], [3.0]])
    tx = optim.params_lawa(latest=2, interval=1)
    state = tx.init(jnp.zeros(1))
    for position in positions:
        _, state = tx.update(jnp.zeros(1), state, position)
    assert optim.evaluation_params(state, positions[-1]).tolist() == [2.0]


def test_odd_leaves_and_dtypes():
    params = {
        "none": None,
        "masked": optax.MaskedNode(),
        "integer": jnp.arange(3),
        "half": jnp.ones(2, jnp.bfloat16),
        "scalar": jnp.float32(2.0),
        "empty": jnp.zeros(0),
    }
    updates = {
        **params,
        "integer": np.zeros(3, jax.dtypes.float0),
        "half": jnp.full(2, 2.0**-12),
        "scalar": jnp.float32(1.0),
    }
    tx = optim.params_lawa(latest=2, interval=1)
    state = tx.init(params)
    _, after = tx.update(updates, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert after.slots["half"].dtype == jnp.float32
    assert after.slots["half"][0].tolist() == [1 + 2.0**-12] * 2
    served = optim.evaluation_params(after, params)
    assert served["none"] is None and served["integer"].tolist() == [0, 1, 2]
    assert served["scalar"] == 3.0 and served["half"].dtype == jnp.bfloat16


def test_errors_name_the_argument():
    for arguments, name in (((0, 1), "latest"), ((1, 0), "interval")):
        with pytest.raises(ValueError, match=f"params_lawa: {name} is 0; accepted: {name} >= 1"):
            optim.params_lawa(*arguments)
    tx = optim.params_lawa(1, 1)
    with pytest.raises(ValueError, match="params_lawa: params is None; call update"):
        tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
