"""Injected hyper-parameters: what is injected, its dtype, setting it, schedules, masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
GRADS = jax.tree.map(lambda p: jnp.full(p.shape, 0.5), PARAMS)


def injected(factory, *args, static_args=(), **kwargs):
    tx = optim.inject_hyperparams(factory, static_args)(*args, **kwargs)
    return set(tx.init(PARAMS).hyperparams)


def test_bfloat16_parameters_give_numbers():
    """In bfloat16, Adam's b2 would be 1 and its first update nan."""
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    grads = jax.tree.map(lambda p: p.astype(jnp.bfloat16), GRADS)
    tx = optim.inject_hyperparams(optax.adamw)(1e-3)
    state = tx.init(params)
    assert {v.dtype for v in state.hyperparams.values()} == {jnp.dtype("float32")}
    assert state.hyperparams["b2"] == np.float32(0.999)
    updates, _ = tx.update(grads, state, params)
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    ("factory", "kwargs"),
    [
        (optax.adafactor, {"learning_rate": 0.1, "min_dim_size_to_factor": 2}),
        (optax.contrib.galore, {"learning_rate": 0.1, "rank": 1}),
        (optax.lbfgs, {"learning_rate": 0.1, "memory_size": 2, "linesearch": None}),
        (optim.lion, {"learning_rate": 0.1, "weight_decay": 0.1}),
    ],
)
def test_step_under_jit_equals_the_plain_one(factory, kwargs):
    tx = optim.inject_hyperparams(factory)(**kwargs)
    plain = factory(**kwargs)
    ours, _ = jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
    expected, _ = jax.jit(plain.update)(GRADS, plain.init(PARAMS), PARAMS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, expected
    )


def test_only_numbers_are_injected():
    def factory(
        bare,
        real=0.5,
        integer=3,
        flag=True,
        name="x",
        option=None,
        function=jnp.tanh,
        pair=(0.9, 0.99),
    ):
        assert isinstance(integer, int) and isinstance(flag, bool) and isinstance(pair, tuple)
        return optax.scale(bare * real)

    mask = jnp.array([True, False])
    assert injected(factory, 2) == {"bare", "real"}
    assert injected(factory, 2, real=1) == {"bare", "real"}
    assert injected(factory, 2, option=0.5) == {"bare", "real", "option"}
    assert injected(factory, 2, option=3) == {"bare", "real"}
    assert injected(factory, 2, option=jnp.sin, function=jnp.sin) == {"bare", "real"}
    assert injected(factory, 2, option=mask) == {"bare", "real"}
    assert injected(factory, 2, option=np.float32(3)) == {"bare", "real", "option"}
    assert injected(factory, 2, static_args="real") == {"bare"}
    assert injected(factory, jnp.sin, static_args=["real"]) == {"bare"}


def test_integers_become_float32():
    tx = optim.inject_hyperparams(optim.lion)(1, weight_decay=0)
    state = tx.init(PARAMS)
    assert {v.dtype for v in state.hyperparams.values()} == {jnp.dtype("float32")}
    assert state.hyperparams["learning_rate"] == 1


def test_setting_a_value_changes_the_next_step_without_a_trace():
    tx = optim.inject_hyperparams(optim.lion)(0.5)
    traces: list[None] = []

    @jax.jit
    def step(state):
        traces.append(None)
        return tx.update(GRADS, state, PARAMS)

    updates, state = step(tx.init(PARAMS))
    assert (updates["b"] == -0.5).all()
    state.hyperparams["learning_rate"] = jnp.float32(0.25)
    updates, _ = step(state)
    assert (updates["b"] == -0.25).all()
    assert len(traces) == 1


@pytest.mark.parametrize("x64", [False, True])
def test_schedule_is_followed_in_float32(x64):
    with jax.enable_x64(x64):
        schedule = optim.wsd_schedule(1.0, total_steps=4, decay_steps=4)
        tx = optim.inject_hyperparams(optim.lion)(
            schedule, weight_decay=lambda t: jnp.asarray(2.0 * t, float)
        )
        params = jnp.zeros(2, jnp.float32)
        state, seen = tx.init(params), []
        for _ in range(3):
            updates, state = tx.update(jnp.ones(2, jnp.float32), state, params)
            seen.append(float(updates[0]))
        assert seen == [-1.0, -0.75, -0.5]
        assert (
            {v.dtype for v in state.hyperparams.values()}
            == {updates.dtype}
            == {jnp.dtype("float32")}
        )
        assert state.hyperparams["weight_decay"] == 4.0


def test_mask_function_stays_a_mask():
    tx = optim.inject_hyperparams(optim.lion)(
        1.0, weight_decay=0.5, mask=functools.partial(jax.tree.map, lambda p: p.ndim > 1)
    )
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    assert (updates["w"] == -0.5).all() and (updates["b"] == 0).all()


def test_stateful_schedule_is_one_whatever_the_default():
    class Doubling:
        def init(self):
            return jnp.float32(1.0)

        def update(self, state, **extra_args):
            return 2 * state

        def __call__(self, state, **extra_args):
            return state

    tx = optim.inject_hyperparams(optim.lion)(Doubling())
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    updates, _ = tx.update(GRADS, state, PARAMS)
    assert (updates["b"] == -2.0).all()


def test_vmap_over_learning_rates():
    def moved(rate):
        tx = optim.inject_hyperparams(optim.lion)(rate)
        updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
        return updates["b"]

    rates = jnp.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(jax.vmap(moved)(rates), -rates[:, None] * jnp.ones(3), rtol=1e-6)


def test_unknown_static_argument_is_named():
    with pytest.raises(
        ValueError, match=r"static_args is \['mass'\]; accepted: names among \['b1'"
    ):
        optim.inject_hyperparams(optim.lion, "mass")


def test_it_looks_like_the_factory():
    assert optim.inject_hyperparams(optim.lion).__name__ == "lion"
