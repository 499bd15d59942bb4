"""Prodigy: steps by hand, optax where it agrees, the shared d, slices, standing still, errors."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

from ..running import random_gradients, run

PARAMS = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4)}


def test_first_two_steps_by_hand():
    """The second d is d_coef num / |s|; eps has the new d, the step the old one."""
    tx = optim.prodigy(b1=0.5, b2=0.75, beta3=0.5, eps=2.0, d0=0.25, d_coef=4.0)
    # m = d g / 2, v = (d g)^2 / 4, s = d g; num = 0, so d stays: u = -d 0.5 / (0.5 + 2 d).
    params, state = run(tx, jnp.array([1.0, -1.0]), [jnp.array([4.0, 0.0])])
    assert params.tolist() == [0.875, -1.0]
    assert (state.d, state.numerator, state.s.tolist()) == (0.25, 0.0, [1.0, 0.0])
    # num = d <g, p0 - p> = 0.25 * 4 / 8, s = 0.5 s + d g: d = 4 (1 / 8) / 1.5 = 1 / 3.
    updates, state = tx.update(jnp.array([4.0, 0.0]), state, params)
    assert state.numerator == 0.125 and state.s.tolist() == [1.5, 0.0]
    np.testing.assert_allclose([state.d, state.d_max], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(updates[0], -0.25 * 0.75 / (0.4375**0.5 + 2 / 3), rtol=1e-6)


def test_with_bias_correction_it_is_the_prodigy_of_optax():
    options = {"weight_decay": 0.1, "safeguard_warmup": True}
    with jax.enable_x64(True):
        start, gradients = jax.tree.map(jnp.float64, (PARAMS, random_gradients(12)))
        tx = optim.prodigy(1.0, d0=0.01, d_coef=2.0, use_bias_correction=True, **options)
        ours, state = run(tx, start, gradients)
        tx = optax.contrib.prodigy(1.0, estim_lr0=0.01, estim_lr_coef=2.0, **options)
        theirs, _ = run(tx, start, gradients)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, theirs)
        assert state.d > 0.01


def test_while_d_stands_it_is_adam_at_the_rate_d0():
    """A small d_coef keeps d, on which m / sqrt(v) does not depend."""
    with jax.enable_x64(True):
        start, gradients = jax.tree.map(jnp.float64, (PARAMS, random_gradients()))
        tx = optim.prodigy(0.5, d0=0.1, d_coef=1e-3, use_bias_correction=True)
        ours, state = run(tx, start, gradients)
        theirs, _ = run(optax.adam(0.05), start, gradients)
        # optax takes the powers of its bias correction in float32.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)
        assert state.d == state.d_max == 0.1 and state.numerator > 0


def test_d_grows_by_its_rate_at_most():
    tx = optim.prodigy(d0=0.01, growth_rate=1.25)
    state, params, ds = tx.init(PARAMS), PARAMS, []
    for _ in range(5):
        updates, state = tx.update({"w": jnp.ones((3, 4)), "b": jnp.ones(4)}, state, params)
        params = optim.apply_updates(params, updates)
        ds.append(float(state.d))
    # While d is d0, it first jumps to the estimate.
    grown = [b / a for a, b in itertools.pairwise(ds) if a > np.float32(0.01)]
    np.testing.assert_allclose(grown, 1.25, rtol=1e-6)
    assert len(grown) == 3


def test_it_finds_the_scale_of_a_problem():
    """On |p - 100|, the distance 100 from d0 = 1e-6 on; the estimate never exceeds it by much."""
    tx = optim.prodigy()

    def step(carry, _):
        p, state = carry
        updates, state = tx.update(jnp.sign(p - 100.0), state, p)
        return (optim.apply_updates(p, updates), state), p

    start = jnp.zeros(1)
    (_, state), path = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), None, 1000))()
    assert 10.0 < state.d <= 100.0
    assert abs(path[-200:].mean() - 100.0) < 20.0


def test_slices_estimate_from_every_pth_entry():
    """Entries outside the slices change when others do not: d is as if they had no gradient."""
    gradients = random_gradients()
    seen = {"w": jnp.zeros(12).at[::3].set(1).reshape(3, 4), "b": jnp.array([1.0, 0, 0, 1])}
    only = [jax.tree.map(jnp.multiply, g, seen) for g in gradients]
    options = {"d0": 0.01, "weight_decay": 0.0}
    sliced, state = run(optim.prodigy(slice_p=3, **options), PARAMS, gradients)
    whole, expected = run(optim.prodigy(**options), PARAMS, only)
    assert state.s["w"].shape == state.start["w"].shape == (4,) and state.s["b"].shape == (2,)
    np.testing.assert_allclose(state.d, expected.d, rtol=1e-5)
    for name in PARAMS:
        at = seen[name] == 1
        np.testing.assert_allclose(sliced[name][at], whole[name][at], rtol=1e-5)
        assert (sliced[name][~at] != PARAMS[name][~at]).all()


def test_one_d_for_all_tensors_and_none_for_those_without_gradient():
    gradients = [{**g, "extra": None} for g in random_gradients()]
    extended = {**PARAMS, "extra": jnp.ones(5), "nothing": None}
    for g in gradients:
        g["nothing"] = None
    tx = optim.prodigy(d0=0.01, weight_decay=0.1)
    moved, state = run(tx, extended, gradients)
    alone, expected = run(tx, PARAMS, random_gradients())
    assert state.d == expected.d > 0.01
    assert (moved["extra"] == 1.0).all()
    jax.tree.map(np.testing.assert_array_equal, {k: moved[k] for k in alone}, alone)


def test_steps_without_gradient_or_rate_change_nothing():
    """They do not count for the bias correction either; a schedule goes on."""
    tx = optim.prodigy(d0=0.01, use_bias_correction=True, weight_decay=0.1)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    late, state = run(tx, PARAMS, [zero, zero, *random_gradients()])
    once, expected = run(tx, PARAMS, random_gradients())
    jax.tree.map(np.testing.assert_array_equal, (late, state[1:]), (once, expected[1:]))
    assert (state.calls, state.steps) == (8, 6)

    paused = optim.prodigy(
        lambda t: jnp.where((t == 0) | (t == 3), 0.0, 1.0),
        d0=0.01,
        use_bias_correction=True,
        weight_decay=0.1,
    )
    first, *others = random_gradients()
    ours, state = run(paused, PARAMS, [first, first, others[0], first, *others[1:]])
    jax.tree.map(np.testing.assert_array_equal, (ours, state[1:]), (once, expected[1:]))


def test_nan_is_not_hidden():
    params, state = run(optim.prodigy(), jnp.ones(2), [jnp.array([1.0, jnp.nan])])
    assert jnp.isnan(state.d) and jnp.isnan(params).all()


def test_mask_chooses_what_decays():
    mask = {"w": True, "b": False}
    gradients = random_gradients(2)
    for decouple in (True, False):
        tx = optim.prodigy(d0=0.1, weight_decay=0.5, mask=mask, decouple=decouple)
        start = {"w": PARAMS["w"], "b": jnp.ones(4)}
        undecayed, _ = run(optim.prodigy(d0=0.1), start, gradients[:1])
        masked, _ = run(tx, start, gradients[:1])
        assert (masked["b"] == undecayed["b"]).all(), decouple
        assert (masked["w"] < undecayed["w"]).any(), decouple


def test_hyperparams_can_be_injected():
    rate = optax.linear_schedule(0.5, 1.0, 4)
    direct, _ = run(optim.prodigy(rate, d0=0.01), PARAMS, random_gradients())
    tx = optim.inject_hyperparams(optim.prodigy)(rate, d0=0.01)
    injected, state = run(tx, PARAMS, random_gradients())
    # b2 is float32 there before 1 - b2 is taken: 0.999 with an error of 1e-5 of its distance to 1.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), injected, direct)
    assert {"learning_rate", "d0", "d_coef", "eps", "growth_rate"} <= state.hyperparams.keys()


@pytest.mark.slow
def test_a_first_step_of_bfloat16_parameters_is_lost_to_rounding():
    """And d with it, unless they are rounded stochastically or d0 is larger."""
    params, tx = jnp.ones(4096, jnp.bfloat16), optim.prodigy()

    def walk(params, tx, key=None):
        state = tx.init(params)
        for t in range(20):
            updates, state = tx.update(params, state, params)
            key_t = None if key is None else jax.random.fold_in(key, t)
            params = optim.apply_updates(params, updates, key=key_t)
        return state.d

    assert walk(params, tx) == jnp.float32(1e-6)
    assert walk(params, tx, jax.random.key(0)) > 1e-5
    assert walk(params, optim.prodigy(d0=0.01)) > 0.02


def test_defaults_are_the_authors():
    parameters = inspect.signature(optim.prodigy).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "learning_rate": 1.0,
        "b1": 0.9,
        "b2": 0.999,
        "beta3": None,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "mask": None,
        "decouple": True,
        "use_bias_correction": False,
        "safeguard_warmup": False,
        "d0": 1e-6,
        "d_coef": 1.0,
        "growth_rate": float("inf"),
        "slice_p": 1,
    }
    assert optim.prodigy(b2=0.25).init(jnp.ones(1)).d == jnp.float32(1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"b1": 1.0}, "prodigy: b1 is 1.0; accepted: 0 <= b1 < 1."),
        ({"b2": -0.5}, "prodigy: b2 is -0.5; accepted: 0 <= b2 < 1."),
        ({"eps": 0.0}, "prodigy: eps is 0.0; accepted: eps > 0."),
        ({"d0": 0}, "prodigy: d0 is 0; accepted: d0 > 0."),
        ({"slice_p": 0}, "prodigy: slice_p is 0; accepted: an integer, at least 1."),
        ({"slice_p": 1.5}, "prodigy: slice_p is 1.5; accepted: an integer, at least 1."),
    ],
)
def test_values_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError) as error:
        optim.prodigy(**kwargs)
    assert str(error.value) == message


def test_update_without_params_is_an_error():
    tx = optim.prodigy()
    with pytest.raises(ValueError, match="prodigy: params is None; call update"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
