"""ADOPT: steps by hand, optax where it agrees, clips, both decays, bad arguments."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

from ..running import run


def test_first_three_steps_by_hand():
    """The clip is 1 at the second gradient and 2^(1/4) at the third."""
    tx = optim.adopt(0.5, b1=0.5, b2=0.75)
    params, state = run(tx, jnp.array([8.0, 8.0]), [jnp.array([2.0, -4.0])])
    assert params.tolist() == [8.0, 8.0]
    assert state[1].nu.tolist() == [4.0, 16.0] and state[1].mu.tolist() == [0.0, 0.0]
    # u = 1 / 2 and clip(-8 / 4); m = u / 2; p = 8 - m / 2; v = 0.75 v + g^2 / 4.
    updates, state = tx.update(jnp.array([1.0, -8.0]), state, params)
    assert updates.tolist() == [-0.125, 0.25]
    assert state[1].nu.tolist() == [3.25, 28.0]
    # u = 0 and -28 / sqrt(28), which is clipped to -2^(1/4); m = m / 2 + u / 2.
    updates, state = tx.update(jnp.array([0.0, -28.0]), state, params)
    np.testing.assert_allclose(updates, [-0.0625, 0.125 + 0.25 * 2**0.25], rtol=1e-6)


@pytest.mark.parametrize("clip", [None, lambda step: step**0.5])
def test_equals_optax_without_decay(clip: Any) -> None:
    gradients = np.random.default_rng(0).normal(size=(8, 7))
    with jax.enable_x64(True):
        arguments: dict[str, Any] = {"b1": 0.8, "b2": 0.9, "eps": 1e-3}
        ours, _ = run(optim.adopt(0.1, clip_value_fn=clip, **arguments), jnp.ones(7), gradients)
        if clip is None:
            arguments["use_clipping"] = False
        else:
            arguments["clip_value_fn"] = clip
        theirs, _ = run(optax.contrib.adopt(0.1, **arguments), jnp.ones(7), gradients)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_coupled_decay_is_part_of_the_gradient():
    params, gradients = jnp.array([1.0, -2.0]), jnp.array([[0.5, 0.25], [-1.0, 2.0]])
    decayed, _ = run(optim.adopt(0.0, weight_decay=0.5), params, gradients)
    assert (decayed == params).all()
    _, state = run(optim.adopt(0.0, weight_decay=0.5), params, gradients[:1])
    assert state[1].nu.tolist() == [1.0, 0.75**2]


@pytest.mark.parametrize("weight_decay", [0.25, lambda count: 0.25 * count])
def test_decoupled_decay_begins_at_the_second_call(weight_decay):
    tx = optim.adopt(0.5, weight_decay=weight_decay, decouple=True)
    zeros = jnp.zeros(2)
    first, _ = run(tx, jnp.array([8.0, -8.0]), [zeros])
    assert first.tolist() == [8.0, -8.0]
    second, _ = run(tx, jnp.array([8.0, -8.0]), [zeros, zeros])
    assert second.tolist() == [7.0, -7.0]


def test_mask_chooses_what_decays():
    params = {"w": jnp.full((2, 2), 8.0), "b": jnp.full(2, 8.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    mask = {"w": True, "b": False}
    tx = optim.adopt(0.5, weight_decay=0.25, decouple=True, mask=mask)
    moved, _ = run(tx, params, [zeros, zeros])
    assert (moved["w"] == 7.0).all() and (moved["b"] == 8.0).all()


def test_first_gradient_of_zeros_leaves_eps_as_the_denominator():
    """The clip alone bounds what g / eps would do."""
    moved, _ = run(optim.adopt(1.0, b1=0.0), jnp.zeros(2), [jnp.zeros(2), jnp.array([1.0, -1e-7])])
    np.testing.assert_allclose(moved, [-1.0, 0.1], rtol=1e-6)


def test_mu_dtype_narrows_the_momentum_alone():
    state = optim.scale_by_adopt(mu_dtype="bfloat16").init(jnp.ones(3))
    assert (state.mu.dtype, state.nu.dtype) == (jnp.bfloat16, jnp.float32)


def test_defaults_are_the_authors():
    parameters = inspect.signature(optim.adopt).parameters
    defaults = {name: parameters[name].default for name in ("b1", "b2", "eps", "weight_decay")}
    assert defaults == {"b1": 0.9, "b2": 0.9999, "eps": 1e-6, "weight_decay": 0.0}
    assert parameters["decouple"].default is False
    assert float(parameters["clip_value_fn"].default(jnp.float32(16.0))) == 2.0


@pytest.mark.parametrize("kwargs", [{"b1": 1.0}, {"b2": -0.1}, {"b2": float("nan")}])
def test_betas_out_of_range_are_named(kwargs):
    [(name, value)] = kwargs.items()
    with pytest.raises(ValueError, match=rf"adopt: {name} is {value}; accepted: 0 <= {name} < 1"):
        optim.adopt(0.1, **kwargs)


def test_negative_eps_is_named():
    with pytest.raises(ValueError, match=r"adopt: eps is -1.0; accepted: eps >= 0"):
        optim.scale_by_adopt(eps=-1.0)
