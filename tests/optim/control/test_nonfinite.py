"""keep_if_finite: faults in updates and in states, old infinities, counts, composition."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

PARAMS = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
GOOD = jax.tree.map(lambda p: jnp.full(p.shape, 0.5), PARAMS)
BAD = {**GOOD, "b": jnp.array([0.5, jnp.nan])}


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_finite_steps_are_those_of_the_inner_transformation():
    inner = optax.adam(0.1)
    tx = optim.keep_if_finite(inner)
    ours, state = tx.update(GOOD, tx.init(PARAMS), PARAMS)
    expected, inner_state = inner.update(GOOD, inner.init(PARAMS), PARAMS)
    assert_equal(ours, expected)
    assert_equal(state.inner_state, inner_state)
    assert state.consecutive == state.total == 0


@pytest.mark.parametrize("fault", [jnp.nan, jnp.inf, -jnp.inf])
def test_faulty_step_is_as_if_it_had_not_been(fault):
    tx = optim.keep_if_finite(optax.adam(0.1))
    _, state = tx.update(GOOD, tx.init(PARAMS), PARAMS)
    updates, after = tx.update({**GOOD, "b": jnp.array([0.5, fault])}, state, PARAMS)
    assert_equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    assert_equal(after.inner_state, state.inner_state)
    assert (after.consecutive, after.total) == (1, 1)


def test_it_counts_and_never_gives_in():
    tx = optim.keep_if_finite(optim.lion(0.1))
    faults = jnp.array([0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1], bool)

    def step(state, fault):
        grads = jax.tree.map(lambda g: jnp.where(fault, jnp.nan, g), GOOD)
        updates, state = tx.update(grads, state, PARAMS)
        return state, (updates["b"][0], state.consecutive, state.total)

    _, (moved, consecutive, total) = jax.lax.scan(step, tx.init(PARAMS), faults)
    assert ((moved == 0) == faults).all()
    assert consecutive.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert total.tolist() == np.cumsum(faults).tolist()


def test_overflow_of_the_state_alone_is_a_fault():
    """A finite gradient whose square is not; the update would be 0, and the moment inf for ever."""
    tx = optim.keep_if_finite(optax.scale_by_adam())
    grads = jnp.array([1e30, 1.0])
    state = tx.init(grads)
    plain, overflowed = optax.scale_by_adam().update(grads, optax.scale_by_adam().init(grads))
    assert jnp.isfinite(plain).all() and not jnp.isfinite(overflowed.nu).all()
    updates, after = tx.update(grads, state)
    assert updates.tolist() == [0.0, 0.0] and after.total == 1
    assert_equal(after.inner_state, state.inner_state)


class _BestState(NamedTuple):
    best: jax.Array


def _keep_best():
    """A running minimum, which starts at infinity."""

    def init(params):
        return _BestState(jnp.full(2, jnp.inf))

    def update(updates, state, params=None, *, value, **extra_args):
        return updates, _BestState(jnp.minimum(state.best, jnp.array([value, jnp.inf])))

    return optax.GradientTransformationExtraArgs(init, update)


def test_infinity_that_was_in_the_state_is_no_fault():
    tx = optim.keep_if_finite(_keep_best())
    updates, state = tx.update(GOOD, tx.init(PARAMS), PARAMS, value=3.0)
    assert_equal(updates, GOOD)
    assert state.total == 0 and state.inner_state.best.tolist() == [3.0, jnp.inf]
    _, state = tx.update(GOOD, state, PARAMS, value=jnp.nan)
    assert state.total == 1 and state.inner_state.best.tolist() == [3.0, jnp.inf]


def test_counts_stop_at_the_largest_integer():
    tx = optim.keep_if_finite(optax.sgd(1.0))
    most = jnp.int32(jnp.iinfo(jnp.int32).max)
    state = tx.init(PARAMS)._replace(consecutive=most, total=most)
    _, state = tx.update(BAD, state, PARAMS)
    assert state.consecutive == state.total == most


def test_leaves_that_hold_no_floats():
    """Integers, None, masked, empty and float0 leaves are kept or passed as the floats decide."""
    params = {
        "w": jnp.ones(2),
        "none": None,
        "masked": optax.MaskedNode(),
        "integer": jnp.arange(2),
        "empty": jnp.zeros(0),
    }
    tx = optim.keep_if_finite(optax.identity())
    state = tx.init(params)
    float0 = np.zeros(2, jax.dtypes.float0)
    good, _ = tx.update({**params, "integer": float0}, state, params)
    assert good["w"].tolist() == [1.0, 1.0] and good["integer"].dtype == jax.dtypes.float0
    bad = {**params, "w": jnp.array([jnp.nan, 1.0]), "integer": jnp.array([3, 4])}
    zeros, _ = tx.update(bad, state, params)
    assert jax.tree.structure(zeros) == jax.tree.structure(params)
    assert zeros["w"].tolist() == [0.0, 0.0] and zeros["integer"].tolist() == [0, 0]


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_key_that_a_dropped_step_has_spent_is_not_kept(jit):
    tx = optim.keep_if_finite(optax.add_noise(0.1, 0.5, jax.random.key(0)))
    update, state, keys = jit(tx.update), tx.init(PARAMS), set()
    for _ in range(3):
        _, state = update(BAD, state, PARAMS)
        keys.add(tuple(jax.random.key_data(state.inner_state.rng_key).tolist()))
    assert state.total == 3 and len(keys) == 3
    assert state.inner_state.count == 0


def test_vmap_judges_each_run_alone():
    tx = optim.keep_if_finite(optax.sgd(1.0))
    grads = jnp.array([[1.0, 2.0], [jnp.nan, 2.0]])
    states = jax.vmap(tx.init)(grads)
    updates, states = jax.vmap(tx.update)(grads, states)
    assert updates.tolist() == [[-1.0, -2.0], [0.0, 0.0]]
    assert states.total.tolist() == [0, 1]


def test_state_can_be_donated():
    tx = optim.keep_if_finite(optim.lion(0.1))
    step = jax.jit(tx.update, donate_argnums=1)
    state = tx.init(PARAMS)
    expected = 0.01 * np.asarray(GOOD["b"])
    for grads in (GOOD, BAD):
        _, state = step(grads, state, PARAMS)
    np.testing.assert_allclose(state.inner_state[0].mu["b"], expected, rtol=1e-6)
    assert state.total == 1


def test_stateless_inner_and_empty_trees():
    tx = optim.keep_if_finite(optax.identity())
    updates, state = tx.update({}, tx.init({}), {})
    assert updates == {} and state.total == 0
