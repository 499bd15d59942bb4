"""D-Adapt Adam: steps by hand, optax where it agrees, growth, standing still, errors."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

from ..running import random_gradients, run

PARAMS = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4)}


def test_first_two_steps_by_hand():
    """The numerator has s and v of the step before; the step is scaled by the d of before."""
    tx = optim.dadapt_adam(b1=0.5, b2=0.25, eps=1.0, d0=0.5)
    # c = 1 / 2: num = 0, m = d g / 2, v = 3 g^2 / 4, s = d g / 2, d stays.
    params, state = run(tx, jnp.array([1.0, -1.0]), [jnp.array([4.0, 0.0])])
    np.testing.assert_allclose(params, [1 - 1 / (12**0.5 + 1), -1.0], rtol=1e-6)
    assert (state.d, state.numerator, state.s.tolist()) == (0.5, 0.0, [1.0, 0.0])
    # num = e <g, s / (sqrt(v) + eps)> / 2, s = s / 2 + d g / 2 = 1.5, d = num / (s / 2).
    updates, state = tx.update(jnp.array([4.0, 0.0]), state, params)
    numerator = 0.5 * 0.5 * 4 / (12**0.5 + 1)
    np.testing.assert_allclose(state.numerator, numerator, rtol=1e-6)
    assert state.s.tolist() == [1.5, 0.0] and numerator / 0.75 < 0.5 == state.d
    # m = 0.5 * 1 + 0.5 * 2, v = 0.25 * 12 + 0.75 * 16.
    np.testing.assert_allclose(updates[0], -1.5 / (15**0.5 + 1), rtol=1e-6)


def test_growing_d_is_replayed_by_numpy():
    """With a finite growth_rate, which the recordings leave out."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(3, 4)), rng.normal(size=(12, 3, 4)) + 2
    b1, b2, eps, decay, growth = 0.8, 0.9, 1e-3, 0.1, 1.3
    p, d, numerator = start.copy(), 0.01, 0.0
    m, v, s = (np.zeros_like(start) for _ in range(3))
    root, limited = b2**0.5, 0
    for g in gradients:
        g, e = g + decay * p, 2 * d
        numerator = root * numerator + (1 - root) * e * (g * s / (v**0.5 + eps)).sum()
        m, v = b1 * m + (1 - b1) * e * g, b2 * v + (1 - b2) * g**2
        s = root * s + (1 - root) * e * g
        estimate = numerator / ((1 - root) * abs(s).sum())
        limited += estimate > growth * d
        d = max(d, min(estimate, growth * d))
        p = p - m / (v**0.5 + eps)
    assert 0 < limited < len(gradients)
    with jax.enable_x64(True):
        tx = optim.dadapt_adam(
            2.0, b1=b1, b2=b2, eps=eps, weight_decay=decay, d0=0.01, growth_rate=growth
        )
        ours, state = run(tx, jnp.asarray(start), jnp.asarray(gradients))
        np.testing.assert_allclose(ours, p, rtol=1e-12)
        np.testing.assert_allclose(state.d, d, rtol=1e-12)


def test_decoupled_and_corrected_it_is_the_one_of_optax():
    tx = optim.dadapt_adam(decouple=True, use_bias_correction=True, weight_decay=0.1)
    with jax.enable_x64(True):
        start, gradients = jax.tree.map(jnp.float64, (PARAMS, random_gradients()))
        ours, state = run(tx, start, gradients)
        theirs, _ = run(optax.contrib.dadapt_adamw(weight_decay=0.1), start, gradients)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, theirs)
        assert state.d > 1e-5


def test_while_d_stands_it_is_adam_at_the_rate_d0():
    """Without the bias correction, which here is in the average of steps and not after it."""
    with jax.enable_x64(True):
        start, gradients = jax.tree.map(jnp.float64, (PARAMS, random_gradients()))
        ours, state = run(optim.dadapt_adam(0.5, d0=0.1, growth_rate=1.0), start, gradients)
        assert state.d == 0.1
        p, m, v = start["w"], 0.0, 0.0
        for g in gradients:
            m, v = 0.9 * m + 0.1 * g["w"], 0.999 * v + 0.001 * g["w"] ** 2
            p = p - 0.05 * m / (jnp.sqrt(v) + 1e-8)
        np.testing.assert_allclose(ours["w"], p, rtol=1e-12)


def test_the_estimate_keeps_its_digits_in_float32():
    """1 - sqrt(b2), a divisor of d, is small."""
    gradients = [jax.tree.map(lambda g: g + 1, g) for g in random_gradients(12)]
    tx = optim.dadapt_adam(d0=0.01, b2=0.9999)
    _, single = run(tx, PARAMS, gradients)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (PARAMS, gradients))
        _, exact = run(tx, *double)
        assert exact.d > 0.02
        np.testing.assert_allclose(single.d, exact.d, rtol=1e-5)


def test_leaves_without_gradient_do_not_count():
    extended = {**PARAMS, "extra": jnp.ones(5)}
    tx = optim.dadapt_adam(d0=0.01, weight_decay=0.1)
    moved, state = run(tx, extended, [{**g, "extra": None} for g in random_gradients()])
    alone, expected = run(tx, PARAMS, random_gradients())
    assert state.d == expected.d > 0.01
    assert (moved["extra"] == 1.0).all()
    jax.tree.map(np.testing.assert_array_equal, {k: moved[k] for k in alone}, alone)


def test_steps_without_gradient_or_rate_change_nothing():
    options = {"d0": 0.01, "use_bias_correction": True, "decouple": True, "weight_decay": 0.1}
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    late, state = run(optim.dadapt_adam(**options), PARAMS, [zero, *random_gradients()])
    once, expected = run(optim.dadapt_adam(**options), PARAMS, random_gradients())
    jax.tree.map(np.testing.assert_array_equal, (late, state[1:]), (once, expected[1:]))
    assert (state.calls, state.steps) == (7, 6)

    paused = optim.dadapt_adam(lambda t: jnp.where((t == 0) | (t == 3), 0.0, 1.0), **options)
    first, *others = random_gradients()
    ours, state = run(paused, PARAMS, [first, first, others[0], first, *others[1:]])
    jax.tree.map(np.testing.assert_array_equal, (ours, state[1:]), (once, expected[1:]))


def test_nan_is_not_hidden():
    params, state = run(optim.dadapt_adam(), jnp.ones(2), [jnp.array([1.0, jnp.nan])])
    assert jnp.isnan(state.d) and jnp.isnan(params[1])


def test_mask_chooses_what_decays():
    mask, start = {"w": True, "b": False}, {"w": PARAMS["w"], "b": jnp.ones(4)}
    undecayed, _ = run(optim.dadapt_adam(d0=0.1, eps=1.0), start, random_gradients(1))
    for decouple in (True, False):
        tx = optim.dadapt_adam(d0=0.1, eps=1.0, weight_decay=0.5, mask=mask, decouple=decouple)
        masked, _ = run(tx, start, random_gradients(1))
        assert (masked["b"] == undecayed["b"]).all(), decouple
        assert (masked["w"] < undecayed["w"]).any(), decouple


def test_hyperparams_can_be_injected():
    rate = optax.linear_schedule(0.5, 1.0, 4)
    direct, _ = run(optim.dadapt_adam(rate, d0=0.01), PARAMS, random_gradients())
    tx = optim.inject_hyperparams(optim.dadapt_adam)(rate, d0=0.01)
    injected, _ = run(tx, PARAMS, random_gradients())
    # b2 is float32 there before 1 - b2 is taken: 0.999 with an error of 1e-5 of its distance to 1.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), injected, direct)


def test_defaults_are_the_authors():
    parameters = inspect.signature(optim.dadapt_adam).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "learning_rate": 1.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "mask": None,
        "decouple": False,
        "use_bias_correction": False,
        "d0": 1e-6,
        "growth_rate": float("inf"),
    }


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"b1": 1.0}, "dadapt_adam: b1 is 1.0; accepted: 0 <= b1 < 1."),
        ({"b2": -0.5}, "dadapt_adam: b2 is -0.5; accepted: 0 <= b2 < 1."),
        ({"eps": 0.0}, "dadapt_adam: eps is 0.0; accepted: eps > 0."),
        ({"d0": -1.0}, "dadapt_adam: d0 is -1.0; accepted: d0 > 0."),
    ],
)
def test_values_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError) as error:
        optim.dadapt_adam(**kwargs)
    assert str(error.value) == message


def test_update_without_params_is_an_error():
    tx = optim.dadapt_adam()
    with pytest.raises(ValueError, match="dadapt_adam: params is None; call update"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
