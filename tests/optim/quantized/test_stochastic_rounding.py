"""Stochastic rounding: unbiased, exact where it can be; writing parameters of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

BF16_MAX = float(jnp.finfo(jnp.bfloat16).max)


def bits(x):
    return np.asarray(x).view(np.uint16)


def test_representable_values_are_exact():
    """Every bfloat16 there is: zeros of both signs, subnormals, infinities, nan."""
    every = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), jnp.bfloat16)
    rounded = optim.stochastic_round(jax.random.key(0), every.astype(jnp.float32), jnp.bfloat16)
    nan = np.isnan(np.asarray(every, np.float32))
    assert rounded.dtype == jnp.bfloat16
    assert (bits(rounded)[~nan] == bits(every)[~nan]).all()
    assert np.isnan(np.asarray(rounded, np.float32)[nan]).all()


@pytest.mark.parametrize("x", [1.0 + 2**-10, -3.7, 1e-30, 2.5e38, 1e-40])
def test_neighbours_are_drawn_without_bias(x):
    """The mean of n draws between a < b is within six of its standard deviations of x."""
    n = 2**16
    x = np.float32(x)
    drawn = optim.stochastic_round(jax.random.key(7), jnp.full(n, x), jnp.bfloat16)
    low = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    high = (
        ((x.view(np.uint32) & np.uint32(0xFFFF0000)) + np.uint32(0x10000))
        .view(np.float32)
        .astype(np.float64)
    )
    drawn = np.asarray(drawn).astype(np.float64)
    assert set(np.unique(drawn)) == {low, high}
    up = (float(x) - low) / (high - low)
    fraction = (drawn == high).mean()
    assert abs(fraction - up) < 6 * np.sqrt(up * (1 - up) / n)


def test_float64_is_rounded_without_bias_too():
    with jax.enable_x64(True):
        x = jnp.full(2**14, 1 + 3 * 2.0**-9)  # three quarters of the way
        drawn = optim.stochastic_round(jax.random.key(1), x, jnp.bfloat16)
        assert drawn.dtype == jnp.bfloat16
        fraction = float((drawn > 1).mean(dtype=jnp.float64))
        assert abs(fraction - 0.75) < 6 * np.sqrt(0.75 * 0.25 / 2**14)


def test_noise_makes_no_infinity_where_the_nearest_is_finite():
    just_past = np.nextafter(np.float32(BF16_MAX), np.float32(np.inf))
    x = jnp.full(4096, just_past)
    rounded = optim.stochastic_round(jax.random.key(2), jnp.stack([x, -x]), jnp.bfloat16)
    assert np.array_equal(np.unique(np.asarray(rounded, np.float32)), [-BF16_MAX, BF16_MAX])
    nearest_is_infinite = jnp.full(4096, jnp.finfo(jnp.float32).max)
    rounded = optim.stochastic_round(jax.random.key(2), nearest_is_infinite, jnp.bfloat16)
    assert jnp.isin(rounded, jnp.array([BF16_MAX, jnp.inf], jnp.bfloat16)).all()


def test_other_dtypes_are_rounded_to_the_nearest():
    x = jnp.linspace(-1.0, 1.0, 100)
    rounded = optim.stochastic_round(jax.random.key(0), x, jnp.float16)
    assert (rounded == x.astype(jnp.float16)).all()


def test_jit_draws_the_same():
    x = jax.random.normal(jax.random.key(3), (50,))
    key = jax.random.key(4)
    traced = jax.jit(lambda k, x: optim.stochastic_round(k, x, jnp.bfloat16))(key, x)
    assert (bits(traced) == bits(optim.stochastic_round(key, x, jnp.bfloat16))).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sum_is_in_float32(dtype):
    """1 + 2^-9 is 1 in bfloat16; the sum with -1 shows where it was rounded."""
    params = jnp.array([-1.0], dtype)
    written = optim.apply_updates(params, jnp.array([1 + 2.0**-12], jnp.float32))
    assert written.dtype == dtype and written.astype(float).tolist() == [2.0**-12]


def test_small_steps_move_bfloat16_on_average():
    params = {"w": jnp.ones(2**12, jnp.bfloat16)}
    step = 2.0**-12
    updates = {"w": jnp.full(2**12, step)}

    def walk(params, key):
        return optim.apply_updates(params, updates, key=key), None

    moved, _ = jax.lax.scan(walk, params, jax.random.split(jax.random.key(5), 64))
    # At most 64 draws of variance step * 2^-7 each, and 2^12 walks to average.
    bound = 6 * np.sqrt(64 * step * 2.0**-7 / 2**12)
    assert abs(float(moved["w"].astype(jnp.float32).mean()) - (1 + 64 * step)) < bound
    nearest = optim.apply_updates(params, updates)
    assert (nearest["w"] == 1).all()


def test_leaves_draw_different_numbers():
    params = {"a": jnp.ones(256, jnp.bfloat16), "b": jnp.ones(256, jnp.bfloat16)}
    updates = jax.tree.map(lambda p: jnp.full(p.shape, 2.0**-8), params)
    written = optim.apply_updates(params, updates, key=jax.random.key(6))
    assert (written["a"] != written["b"]).any()
    alone = optim.apply_updates({"b": params["b"]}, {"b": updates["b"]}, key=jax.random.key(6))
    assert (alone["b"] == written["b"]).all()


def test_key_leaves_float32_alone():
    params = jax.random.normal(jax.random.key(0), (64,))
    updates = 1e-3 * params
    with_key = optim.apply_updates(params, updates, key=jax.random.key(1))
    assert (with_key == optim.apply_updates(params, updates)).all()


def test_equals_optax_on_float32():
    params = {"w": jnp.arange(3.0), "none": None}
    updates = {"w": jnp.full(3, 0.1), "none": None}
    ours, theirs = optim.apply_updates(params, updates), optax.apply_updates(params, updates)
    assert ours["none"] is None and (ours["w"] == theirs["w"]).all()


def test_what_has_no_update_stays():
    params = {
        "integer": jnp.array([1, -7]),
        "float0": jnp.array([3]),
        "key": jax.random.key(0),
        "none": None,
        "frozen": jnp.ones(2),
        "masked": jnp.ones(2),
        "absent": optax.MaskedNode(),
    }
    updates = {
        "integer": jnp.array([-0.1, -0.1]),
        "float0": np.zeros(1, jax.dtypes.float0),
        "key": np.zeros((), jax.dtypes.float0),
        "none": jnp.ones(2),
        "frozen": None,
        "masked": optax.MaskedNode(),
        "absent": optax.MaskedNode(),
    }
    written = optim.apply_updates(params, updates, key=jax.random.key(1))
    assert jax.tree.structure(written) == jax.tree.structure(params)
    for name in ("integer", "float0", "frozen", "masked"):
        assert written[name].dtype == params[name].dtype
        assert (written[name] == params[name]).all(), name
    assert written["none"] is None and written["key"] is params["key"]


def test_strict_promotion_and_float64():
    with jax.numpy_dtype_promotion("strict"):
        written = optim.apply_updates(jnp.ones(2, jnp.bfloat16), jnp.ones(2))
        assert written.dtype == jnp.bfloat16 and (written == 2).all()
    with jax.enable_x64(True):
        params = jnp.ones(2, jnp.float64)
        written = optim.apply_updates(params, jnp.full(2, 1e-12, jnp.float64))
        assert written.dtype == jnp.float64 and (written == 1 + 1e-12).all()
        wide = jnp.full(2, 0.5, jnp.float64)
        assert optim.apply_updates(jnp.ones(2, jnp.float32), wide).dtype == jnp.float32


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"apply_updates: updates has shape \(3,\) at 'a/w'"):
        optim.apply_updates({"a": {"w": jnp.ones((2, 3))}}, {"a": {"w": jnp.ones(3)}})
