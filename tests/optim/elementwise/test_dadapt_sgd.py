"""D-Adapt SGD: steps by hand, growth, the first norm, standing still, errors."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

from ..running import random_gradients, run

PARAMS = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4)}


def test_first_three_steps_by_hand():
    """A constant gradient (3, 4), of norm 5: each step is d long, and d doubles at the third."""
    tx = optim.dadapt_sgd(d0=0.5)
    gradient = jnp.array([3.0, 4.0])
    params, state = run(tx, jnp.array([1.0, 1.0]), [gradient])
    np.testing.assert_allclose(params, [0.7, 0.6], rtol=1e-6)
    assert (state.d, state.first_norm, state.numerator) == (0.5, 5.0, 0.0)
    # num = 0.1 <g, s> = 0.25, |s| = 1: 2 num / |s| = 0.5.
    updates, state = tx.update(gradient, state, params)
    params = params + updates
    np.testing.assert_allclose(params, [0.4, 0.2], rtol=1e-6)
    np.testing.assert_allclose([state.d, state.numerator], [0.5, 0.25], rtol=1e-6)
    # num = 0.25 + 0.1 <g, s> = 0.75, |s| = 1.5.
    updates, state = tx.update(gradient, state, params)
    np.testing.assert_allclose(params + updates, [0.1, -0.2], rtol=1e-5)
    np.testing.assert_allclose([state.d, state.numerator], [1.0, 0.75], rtol=1e-6)


def test_momentum_averages_the_points():
    """Half way from p to p0 - s, by a step that ends at p0 - s without momentum."""
    half, _ = run(optim.dadapt_sgd(d0=0.5, momentum=0.5), jnp.ones(2), [jnp.array([3.0, 4.0])])
    np.testing.assert_allclose(half, [0.85, 0.8], rtol=1e-6)


def test_growing_d_is_replayed_by_numpy():
    """With a finite growth_rate, which the recordings leave out."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(3, 4)), rng.normal(size=(12, 3, 4)) + 2
    momentum, decay, growth = 0.8, 0.1, 1.3
    p, s, d, numerator = start.copy(), np.zeros_like(start), 0.01, 0.0
    norm, limited = np.linalg.norm(gradients[0]), 0
    for g in gradients:
        g, e = g + decay * p, 2 * d / norm
        numerator += e * (g * s).sum()
        s = s + e * g
        estimate = 2 * numerator / np.linalg.norm(s)
        limited += estimate > growth * d
        d = max(d, min(estimate, growth * d))
        p = momentum * p + (1 - momentum) * (start - s)
    assert 0 < limited < len(gradients)
    with jax.enable_x64(True):
        tx = optim.dadapt_sgd(
            2.0, momentum=momentum, weight_decay=decay, d0=0.01, growth_rate=growth
        )
        ours, state = run(tx, jnp.asarray(start), jnp.asarray(gradients))
        np.testing.assert_allclose(ours, p, rtol=1e-12)
        np.testing.assert_allclose(state.d, d, rtol=1e-12)


def test_while_d_stands_it_is_sgd():
    gradients = random_gradients()
    norm = float(optax.tree.norm(gradients[0]))
    ours, state = run(optim.dadapt_sgd(0.5, d0=0.1, growth_rate=1.0), PARAMS, gradients)
    theirs, _ = run(optax.sgd(0.05 / norm), PARAMS, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)
    assert state.d == jnp.float32(0.1)


def test_leaves_without_gradient_do_not_count():
    extended = {**PARAMS, "extra": jnp.ones(5)}
    tx = optim.dadapt_sgd(d0=0.01, weight_decay=0.1)
    moved, state = run(tx, extended, [{**g, "extra": None} for g in random_gradients()])
    alone, expected = run(tx, PARAMS, random_gradients())
    assert state.d == expected.d > 0.01
    assert (moved["extra"] == 1.0).all()
    jax.tree.map(np.testing.assert_array_equal, {k: moved[k] for k in alone}, alone)


def test_steps_without_gradient_or_rate_change_nothing():
    """The first norm is that of the first gradient that is not 0, at the first rate that is not."""
    options = {"d0": 0.01, "momentum": 0.5, "weight_decay": 0.1}
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    late, state = run(optim.dadapt_sgd(**options), PARAMS, [zero, *random_gradients()])
    once, expected = run(optim.dadapt_sgd(**options), PARAMS, random_gradients())
    jax.tree.map(np.testing.assert_array_equal, (late, state[1:]), (once, expected[1:]))

    paused = optim.dadapt_sgd(lambda t: jnp.where((t == 0) | (t == 3), 0.0, 1.0), **options)
    first, *others = random_gradients()
    ours, state = run(paused, PARAMS, [zero, first, others[0], first, *others[1:]])
    jax.tree.map(np.testing.assert_array_equal, (ours, state[1:]), (once, expected[1:]))


def test_nan_is_not_hidden():
    params, state = run(optim.dadapt_sgd(), jnp.ones(2), [jnp.array([1.0, jnp.nan])])
    assert jnp.isnan(state.d) and jnp.isnan(params).all()
    updates, _ = optim.dadapt_sgd().update(jnp.ones(2), state, params)
    assert jnp.isnan(updates).all()


def test_mask_chooses_what_decays():
    start = {"w": PARAMS["w"], "b": jnp.ones(4)}
    undecayed, _ = run(optim.dadapt_sgd(d0=0.1), start, random_gradients(1))
    tx = optim.dadapt_sgd(d0=0.1, weight_decay=0.5, mask={"w": True, "b": False})
    masked, _ = run(tx, start, random_gradients(1))
    assert (masked["b"] == undecayed["b"]).all() and (masked["w"] < undecayed["w"]).all()


def test_hyperparams_can_be_injected():
    rate = optax.linear_schedule(0.5, 1.0, 4)
    direct, _ = run(optim.dadapt_sgd(rate, d0=0.01), PARAMS, random_gradients())
    tx = optim.inject_hyperparams(optim.dadapt_sgd)(rate, d0=0.01)
    injected, _ = run(tx, PARAMS, random_gradients())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), injected, direct)


def test_defaults_are_the_authors():
    parameters = inspect.signature(optim.dadapt_sgd).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "learning_rate": 1.0,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "mask": None,
        "d0": 1e-6,
        "growth_rate": float("inf"),
    }


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"momentum": 1.0}, "dadapt_sgd: momentum is 1.0; accepted: 0 <= momentum < 1."),
        ({"d0": 0.0}, "dadapt_sgd: d0 is 0.0; accepted: d0 > 0."),
    ],
)
def test_values_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError) as error:
        optim.dadapt_sgd(**kwargs)
    assert str(error.value) == message


def test_update_without_params_is_an_error():
    tx = optim.dadapt_sgd()
    with pytest.raises(ValueError, match="dadapt_sgd: params is None; call update"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
