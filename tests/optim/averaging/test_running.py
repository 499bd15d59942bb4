"""Running averages of parameters: weights, digits, start, dtypes, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def walk(decay, positions, dtype=jnp.float32):
    """Parameters that step through the positions; the state of params_ema after each."""
    return walk_with(optim.params_ema(decay), positions, dtype)


def walk_with(tx, positions, dtype=jnp.float32):
    params = jnp.zeros(np.shape(positions[0]), dtype)
    state, states = tx.init(params), []
    for position in positions:
        updates, state = tx.update(position - params, state, params)
        params = optim.apply_updates(params, updates)
        states.append(state)
    return params, states


def test_weights_are_those_of_the_debiased_average():
    positions = np.random.default_rng(0).normal(size=(12, 3))
    with jax.enable_x64(True):
        _, states = walk(0.9, jnp.asarray(positions), jnp.float64)
        for t, state in enumerate(states, start=1):
            weights = 0.9 ** np.arange(t - 1, -1, -1)
            expected = weights @ positions[:t] / weights.sum()
            np.testing.assert_allclose(state.average, expected, rtol=1e-12)
        reference = optax.ema(0.9, debias=True)
        served, _ = jax.lax.scan(
            lambda s, p: reference.update(p, s)[::-1],
            reference.init(jnp.zeros(3)),
            jnp.asarray(positions),
        )
        np.testing.assert_allclose(states[-1].average, served.ema / (1 - 0.9**12), rtol=1e-12)


@pytest.mark.parametrize("start", [0, 1, 5])
def test_a_tail_average_is_the_mean_after_its_start(start):
    positions = np.random.default_rng(1).normal(size=(12, 3))
    with jax.enable_x64(True):
        tx = optim.params_tail_average(start)
        _, states = walk_with(tx, jnp.asarray(positions), jnp.float64)
        for t, state in enumerate(states, start=1):
            expected = positions[min(start, t - 1) : t].mean(axis=0)
            np.testing.assert_allclose(state.average, expected, rtol=1e-12)


def test_the_mean_of_a_quadratic_under_noise_is_closer_than_its_last_iterate():
    """Polyak and Ruppert: from noise of every step the mean of n iterates keeps 1 / n of it."""
    noise = np.random.default_rng(2).normal(size=(2000, 4)).astype(np.float32)
    tx = optax.chain(optax.sgd(0.5), optim.params_tail_average(200))

    def step(carry, xi):
        params, state = carry
        updates, state = tx.update(params + xi, state, params)
        return (optim.apply_updates(params, updates), state), None

    start = jnp.full(4, 3.0)
    (params, state), _ = jax.lax.scan(step, (start, tx.init(start)), jnp.asarray(noise))
    # The mean of 1800 iterates is that of as many -xi, whose deviation is 1800^(-1/2).
    served = optim.evaluation_params(state, params)
    np.testing.assert_allclose(served, -noise[199:1999].mean(axis=0), atol=3e-3)
    assert jnp.linalg.norm(served) < jnp.linalg.norm(params) / 5


@pytest.mark.parametrize("decay", [0.9999, 0.999999])
def test_constant_parameters_are_their_average_to_the_last_digits(decay):
    """Division by 1 - d^t in float32 would lose three to five digits here."""
    _, states = walk(decay, [jnp.full(2, 3.0)] * 4)
    for state in states:
        np.testing.assert_allclose(state.average, 3.0, rtol=4e-7)


def test_long_average_with_a_decay_close_to_one():
    positions = np.linspace(0.0, 1.0, 300, dtype=np.float32)[:, None]
    tx = optim.params_ema(0.9999)

    def step(state, position):
        return tx.update(position, state, jnp.zeros(1))[1], None

    state, _ = jax.lax.scan(step, tx.init(jnp.zeros(1)), jnp.asarray(positions))
    weights = 0.9999 ** np.arange(299, -1, -1.0)
    np.testing.assert_allclose(state.average, weights @ positions / weights.sum(), rtol=2e-6)


def test_before_the_first_step_the_parameters_are_served():
    params = {"w": jnp.arange(3.0)}
    state = optim.params_ema(0.9).init(params)
    assert (optim.evaluation_params(state, params)["w"] == params["w"]).all()


def test_decay_zero_is_the_last_iterate():
    params, states = walk(0.0, [jnp.array([1.0]), jnp.array([5.0])])
    assert (states[-1].average == params).all()


def test_updates_pass_through_a_chain():
    tx = optax.chain(optim.lion(0.5), optim.params_ema(0.5))
    params = jnp.array([1.0, -1.0])
    updates, state = tx.update(jnp.array([1.0, 1.0]), tx.init(params), params)
    plain = optim.lion(0.5)
    expected, _ = plain.update(jnp.array([1.0, 1.0]), plain.init(params), params)
    assert (updates == expected).all()
    assert (optim.evaluation_params(state, params) == params + updates).all()


def test_bfloat16_parameters_are_averaged_in_float32():
    params = jnp.ones(2, jnp.bfloat16)
    tx = optim.params_ema(0.5)
    state = tx.init(params)
    assert state.average.dtype == jnp.float32
    _, state = tx.update(jnp.full(2, 2.0**-12), state, params)
    assert state.average.tolist() == [1 + 2.0**-12] * 2
    assert optim.evaluation_params(state, params).dtype == jnp.bfloat16


def test_state_shares_no_memory_with_the_parameters():
    tx = optim.params_ema(0.5)
    params = jnp.arange(4.0)
    for init in (tx.init, jax.jit(tx.init)):
        state = init(params)
        assert state.average.unsafe_buffer_pointer() != params.unsafe_buffer_pointer()


def test_odd_leaves():
    params = {
        "none": None,
        "masked": optax.MaskedNode(),
        "integer": jnp.arange(3),
        "frozen": jnp.ones(2),
        "scalar": jnp.float32(2.0),
        "empty": jnp.zeros(0),
    }
    updates = {
        **params,
        "integer": np.zeros(3, jax.dtypes.float0),
        "frozen": None,
        "scalar": jnp.float32(1.0),
    }
    tx = optim.params_ema(0.5)
    state = tx.init(params)
    _, after = tx.update(updates, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    served = optim.evaluation_params(after, params)
    assert served["none"] is None and served["integer"].tolist() == [0, 1, 2]
    assert served["frozen"].tolist() == [1.0, 1.0] and served["scalar"] == 3.0
    assert served["integer"].dtype == params["integer"].dtype


def test_errors_name_the_argument():
    for decay in (1.0, -0.5):
        with pytest.raises(ValueError, match=f"params_ema: decay is {decay}; accepted: 0 <= decay"):
            optim.params_ema(decay)
    with pytest.raises(ValueError, match="params_tail_average: start is -1; accepted: start >= 0"):
        optim.params_tail_average(-1)
    named = {"ema": optim.params_ema(0.5), "tail_average": optim.params_tail_average(0)}
    for name, tx in named.items():
        with pytest.raises(ValueError, match=f"params_{name}: params is None; call update"):
            tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
