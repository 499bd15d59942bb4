"""A streamed model sees the bits of a perturbed copy, one layer at a time and without the copy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order

LAYERS, WIDTH, ROWS = 3, 8, 16
ALONG = zeroth_order.direction(stack={"blocks/.*": 1})


def params(width=WIDTH, layers=LAYERS, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "blocks": {
            "w": (jax.random.normal(keys[0], (layers, width, width)) / width**0.5).astype(dtype),
            "b": jax.random.normal(keys[1], (layers, width)).astype(dtype),
        },
        "embed": jax.random.normal(keys[2], (ROWS, width)).astype(dtype),
    }


def model(params, tokens):
    """(tokens,) -> (tokens, rows); the weights of a layer are read in the scan's body."""

    def block(h, w):
        w = zeroth_order.read(w)
        return jnp.tanh(h @ w["w"] + w["b"]), None

    h, _ = jax.lax.scan(block, zeroth_order.rows(params["embed"], tokens), params["blocks"])
    return h @ zeroth_order.read(params["embed"]).T


TOKENS = jnp.array([0, 3, 15, 3])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("draws", [zeroth_order.rademacher, zeroth_order.popcount_normal])
def test_streamed_weights_are_the_perturbed_copy(dtype, draws):
    along = zeroth_order.direction(draws, stack={"blocks/.*": 1})
    value = params(dtype=dtype)
    streamed = zeroth_order.stream(along, value, 5, 1e-2)
    _, layers = jax.lax.scan(lambda _, w: (None, zeroth_order.read(w)), None, streamed["blocks"])
    copy = zeroth_order.perturb(along, value, 5, 1e-2)
    for name in ("w", "b"):
        assert layers[name].dtype == dtype
        np.testing.assert_array_equal(layers[name], copy["blocks"][name])
    np.testing.assert_array_equal(zeroth_order.read(streamed["embed"]), copy["embed"])
    np.testing.assert_array_equal(
        zeroth_order.rows(streamed["embed"], TOKENS), copy["embed"][TOKENS]
    )


def test_a_model_has_the_same_outputs_streamed_and_as_a_copy():
    value = params()
    streamed = jax.jit(lambda p: model(zeroth_order.stream(ALONG, p, 5, 1e-2), TOKENS))(value)
    copy = jax.jit(lambda p: model(zeroth_order.perturb(ALONG, p, 5, 1e-2), TOKENS))(value)
    np.testing.assert_array_equal(streamed, copy)
    assert (streamed != jax.jit(model)(value, TOKENS)).any()


def test_ordinary_arrays_pass_through():
    value = params()
    assert zeroth_order.read(value)["blocks"]["w"] is value["blocks"]["w"]
    np.testing.assert_array_equal(zeroth_order.rows(value["embed"], TOKENS), value["embed"][TOKENS])


def temporaries(width, layers, read):
    """Bytes, of a forward pass over the layers alone."""

    def forward(value, h, seed):
        streamed = zeroth_order.stream(
            zeroth_order.direction(stack={".*": 1}), value, seed, jnp.float32(1e-3)
        )
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ read(w["w"])), None), h, streamed)[0]

    value = {"w": jax.ShapeDtypeStruct((layers, width, width), jnp.float32)}
    h = jax.ShapeDtypeStruct((4, width), jnp.float32)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    compiled = jax.jit(forward).lower(value, h, seed).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_temporaries_are_one_layer_and_hold_no_index_array():
    """A counter that does not start at the layer's key is hoisted, a word for every weight."""
    layer = 256 * 256 * 4

    def hoisted(w):
        word = zeroth_order.noise.word(w.block, zeroth_order.noise.counters(w.shape) + w.block)
        return w.value + w.scale * zeroth_order.rademacher.draw(word)

    ours = temporaries(256, 8, zeroth_order.read)
    assert ours < 1.5 * layer
    assert temporaries(256, 8, hoisted) > 1.9 * layer


def test_the_directional_derivative_is_that_of_the_materialized_tangent():
    value = params()

    def loss(p):
        return jnp.sum(jnp.square(model(p, TOKENS)))

    def along_scale(scale):
        return loss(zeroth_order.stream(ALONG, value, 7, scale))

    _, ours = jax.jit(lambda: jax.jvp(along_scale, (0.0,), (1.0,)))()
    estimate = zeroth_order.SeededGradient(jnp.uint32(7), jnp.ones(1))
    z = zeroth_order.materialize(ALONG, estimate, value)
    _, dense = jax.jit(functools.partial(jax.jvp, loss))((value,), (z,))
    np.testing.assert_allclose(ours, dense, rtol=1e-5)


def test_misuse_is_named():
    streamed = zeroth_order.stream(ALONG, params(), 5, 1e-2)
    with pytest.raises(ValueError, match="read: a leaf of shape .* still has 1 stack axes"):
        zeroth_order.read(streamed["blocks"])
    with pytest.raises(ValueError, match="rows: a leaf of shape"):
        zeroth_order.rows(streamed["blocks"]["w"], TOKENS)
    with pytest.raises(TypeError, match=r"streamed parameter .* zeroth_order\.read"):
        jnp.tanh(streamed["embed"])
