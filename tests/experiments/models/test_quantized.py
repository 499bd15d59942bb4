"""Codes and scales: their error, their bytes, and a decoder that reads them a layer at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order
from experiments.models.decoder import Decoder
from experiments.models.quantized import Quantized, dequantized, quantized

MATRICES = {"blocks/.*kernel": True}


def decoder():
    model = Decoder(vocabulary=32, width=16, layers=2, heads=2, hidden=24).build()
    return model, model.init(jax.random.key(0))


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (4, 7)])
def test_the_error_is_at_most_half_a_scale(bits, most):
    w = jax.random.normal(jax.random.key(0), (3, 32, 5))
    small = quantized({"w": w}, {"w": True}, bits=bits, group=8)
    back = np.asarray(dequantized(small)["w"])
    largest = np.abs(np.asarray(w)).reshape(3, 4, 8, 5).max(axis=2)
    np.testing.assert_allclose(small["w"].scale, largest / most, rtol=1e-6)
    error = np.abs(back - np.asarray(w)).reshape(3, 4, 8, 5)
    assert (error <= 0.501 * largest[:, :, None] / most).all()
    assert small["w"].code.nbytes == w.size * bits // 8


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_survive(bits):
    most = {4: 7, 8: 127}[bits]
    w = jax.random.randint(jax.random.key(0), (16, 6), -most, most + 1).astype(jnp.float32)
    w = w.at[0].set(most)
    np.testing.assert_array_equal(
        dequantized(quantized({"w": w}, {"w": True}, bits=bits, group=16))["w"], w
    )


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_the_decoder_reads_quantised_layers_streamed_and_not(bits):
    model, params = decoder()
    small = quantized(params, MATRICES, bits=bits, group=8)
    tokens = jnp.array([[3, 1, 31, 7]])
    expected = model.apply(dequantized(small), tokens)
    np.testing.assert_array_equal(model.apply(small, tokens), expected)
    along = zeroth_order.direction(stack={"blocks/.*": 1}, select={".*scale": True})
    streamed = model.apply(zeroth_order.stream(along, small, 5, 1e-2), tokens)
    copy = model.apply(zeroth_order.perturb(along, small, 5, 1e-2), tokens)
    np.testing.assert_array_equal(streamed, copy)
    assert (streamed != expected).any()


def test_what_is_not_selected_stays():
    _, params = decoder()
    small = quantized(params, MATRICES, bits=8, group=8)
    assert isinstance(small["blocks"]["attention"]["query"]["kernel"], Quantized)
    assert small["embed"]["embedding"] is params["embed"]["embedding"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 3, "group": 8}, "bits is 3; accepted: 4, 8"),
        ({"bits": 8, "group": 5}, "'w' has the shape .* multiple of group = 5"),
        ({"bits": 8, "group": 0}, "group is 0; accepted: group >= 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantized({"w": jnp.ones((8, 2))}, {"w": True}, **arguments)
