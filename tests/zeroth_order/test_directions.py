"""Gradients that are seeds: one pass is the sum of the samples, sharded or rounded."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order
from tests import pretended_devices
from zeroth_order import SeededGradient

ROOT = pathlib.Path(__file__).parents[2]
PARAMS = {
    "blocks": {"w": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)},
    "embed": np.linspace(0, 1, 10, dtype=np.float32).reshape(5, 2),
    "count": np.int32(3),
}
STACK = {"blocks/.*": 1}


def params():
    return jax.tree.map(jnp.asarray, PARAMS)


def gradient(*coefficients, seed=11):
    return SeededGradient(jnp.uint32(seed), jnp.array(coefficients, jnp.float32))


def test_an_estimate_is_the_sum_of_its_samples():
    along = zeroth_order.direction(stack=STACK)
    estimate = zeroth_order.materialize(along, gradient(0.5, -2.0), params())
    one, two = (zeroth_order.perturb(along, params(), seed, 1.0) for seed in (11, 12))
    for name in ("embed", "blocks"):
        w, found, a, b = (jax.tree.leaves(t[name])[0] for t in (params(), estimate, one, two))
        np.testing.assert_allclose(found, 0.5 * (a - w) - 2 * (b - w), atol=1e-6)
        assert set(np.unique(np.abs(found))) == {1.5, 2.5}
    assert estimate["count"] == 0


def test_apply_is_the_step_of_the_materialized_estimate():
    along = zeroth_order.direction(stack=STACK)
    dense = zeroth_order.materialize(along, gradient(0.5, -2.0), params())
    decay = {"blocks": 0.1, "embed": 0.0, "count": 0.0}
    step = jax.jit(
        lambda p: zeroth_order.apply(along, gradient(0.5, -2.0), p, rate=0.01, decay=decay)
    )
    after = step(params())
    w, d = PARAMS["blocks"]["w"], dense["blocks"]["w"]
    np.testing.assert_allclose(after["blocks"]["w"], w - 0.01 * (d + 0.1 * w), atol=1e-7)
    np.testing.assert_allclose(after["embed"], PARAMS["embed"] - 0.01 * dense["embed"], atol=1e-7)
    assert after["count"] == 3 and after["count"].dtype == jnp.int32


def test_noise_is_of_the_path_and_not_of_the_tree():
    along = zeroth_order.direction()
    alone = zeroth_order.perturb(along, {"embed": params()["embed"]}, 4, 1.0)
    together = zeroth_order.perturb(along, params(), 4, 1.0)
    np.testing.assert_array_equal(alone["embed"], together["embed"])
    renamed = zeroth_order.perturb(along, {"other": params()["embed"]}, 4, 1.0)
    assert (renamed["other"] != together["embed"]).any()


def test_layers_of_a_stack_have_noise_of_their_own():
    z = zeroth_order.perturb(
        zeroth_order.direction(stack=STACK), {"blocks": {"w": jnp.zeros((2, 64))}}, 4, 1.0
    )["blocks"]["w"]
    assert 10 < (z[0] != z[1]).sum() < 54


@pytest.mark.slow
def test_sharded_steps_have_the_same_bits_and_an_update_no_collective():
    """On four devices that the host pretends to have."""
    command = [sys.executable, "-m", "tests.zeroth_order.sharded"]
    done = subprocess.run(
        command, cwd=ROOT, env=pretended_devices.environment(4), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome == {name: [True, [], True] for name in ("rows", "columns", "layers")}


def test_stochastic_rounding_keeps_the_mean_of_steps_below_the_spacing():
    value = {"w": jnp.ones(2**15, jnp.bfloat16)}
    along = zeroth_order.direction()
    z = zeroth_order.materialize(along, gradient(1.0), value)["w"]
    step = 2.0**-12  # a 32nd of the spacing above one, a 16th of that below

    def moved(stochastic):
        estimate = gradient(1.0)
        after = zeroth_order.apply(along, estimate, value, rate=step, stochastic=stochastic)["w"]
        assert after.dtype == jnp.bfloat16
        return float(jnp.mean((1 - after.astype(jnp.float32)) * z)) / step

    assert moved(False) == 0.0
    # A step is 2^-7 or 2^-8 with a chance of 1/32 or 1/16: standard error 0.027 of the step.
    assert moved(True) == pytest.approx(1.0, abs=0.13)


def test_float64_parameters_have_steps_in_float64():
    with jax.enable_x64(True):
        value = {"w": jnp.ones(4, jnp.float64)}
        estimate = SeededGradient(jnp.uint32(1), jnp.array([1 / 3], jnp.float64))
        after = zeroth_order.apply(zeroth_order.direction(), estimate, value, rate=0.1)["w"]
        np.testing.assert_allclose(np.abs(np.asarray(after) - 1), 0.1 / 3, rtol=1e-14)


def test_scales_multiply_z_by_leaf_and_by_layer():
    value = {"blocks": {"w": jnp.zeros((2, 3))}, "embed": jnp.zeros(3)}
    along = zeroth_order.scaled(
        zeroth_order.direction(stack=STACK),
        {"blocks": {"w": jnp.array([2.0, 3.0])}, "embed": 0.5},
    )
    z = zeroth_order.perturb(along, value, 0, 1.0)
    np.testing.assert_array_equal(abs(z["blocks"]["w"]), [[2.0] * 3, [3.0] * 3])
    np.testing.assert_array_equal(abs(z["embed"]), [0.5] * 3)


@pytest.mark.parametrize(
    ("arguments", "value", "message"),
    [
        ({"stack": {"nothing": 1}}, {"w": np.ones(2)}, "direction: stack: the pattern 'nothing' "),
        ({"stack": {"w": 2}}, {"w": np.ones(2)}, "stack is 2 for 'w' of shape .*: 0 to 1 axes"),
        ({"select": {"w": False}}, {"w": np.ones(2)}, "nothing is perturbed"),
        ({}, {"w": np.arange(2)}, "nothing is perturbed"),
        (
            {},
            {"w": jax.ShapeDtypeStruct((2**17, 2**16), jnp.bfloat16)},
            "a block of 8589934592 elements; accepted: at most 2\\^32",
        ),
        # The two have the checksum 0x4DDB0C25.
        ({}, {"plumless": np.ones(2), "buckeroo": np.ones(2)}, "'buckeroo' and 'plumless' have"),
    ],
)
def test_what_cannot_be_addressed_is_named(arguments, value, message):
    value = jax.tree.map(
        lambda x: x.astype(np.float32) if getattr(x, "dtype", None) == np.float64 else x, value
    )
    with pytest.raises(ValueError, match=message):
        zeroth_order.direction(**arguments)(value)


def test_select_leaves_the_others_as_they_are():
    along = zeroth_order.direction(select={"embed": True})
    after = zeroth_order.apply(along, gradient(1.0), params(), rate=0.1, decay=0.5)
    np.testing.assert_array_equal(after["blocks"]["w"], PARAMS["blocks"]["w"])
    assert (after["embed"] != PARAMS["embed"]).all()


def test_a_stack_beyond_the_range_of_a_word_has_distinct_layers():
    """OPT-175B's feed-forward: 5.8e10 elements, 6.0e8 in a layer; nothing is allocated."""
    shape = (96, 12288, 49152)
    value = {"w": jax.ShapeDtypeStruct(shape, jnp.bfloat16)}
    along = zeroth_order.direction(stack={"w": 1})
    step = jax.jit(lambda p: zeroth_order.apply(along, gradient(1.0), p, stochastic=True))
    assert step.lower(value).out_info["w"].shape == shape
    keys = np.asarray(zeroth_order.noise.block_keys(3, 7, (96,)))
    assert len(set(keys.tolist())) == 96


def test_many_samples_are_summed_in_a_loop_with_the_bits_of_a_sequence():
    along = zeroth_order.direction(stack=STACK)
    many = gradient(*np.random.default_rng(0).normal(size=40))
    at_once = jax.jit(lambda p: zeroth_order.apply(along, many, p, rate=0.01))(params())
    one_by_one = params()
    for j, coefficient in enumerate(many.coefficients):
        one = SeededGradient(many.seed + jnp.uint32(j), coefficient[None])
        one_by_one = zeroth_order.apply(along, one, one_by_one, rate=0.01)
    np.testing.assert_array_equal(at_once["embed"], one_by_one["embed"])


def test_steps_of_a_run_are_one_gradient_with_a_seed_for_each():
    along = zeroth_order.direction(stack=STACK)
    steps = [gradient(0.5, -2.0), gradient(1.0, 0.25, seed=99)]
    joined = SeededGradient(*(jnp.stack(x) for x in zip(*steps, strict=True)))
    found = zeroth_order.materialize(along, joined, params())
    parts = [zeroth_order.materialize(along, one, params()) for one in steps]
    np.testing.assert_allclose(found["embed"], parts[0]["embed"] + parts[1]["embed"], atol=1e-6)
