"""The chunked loss is the whole one, streamed as of a perturbed copy, causal, and small."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zeroth_order
from experiments.models.chunked_decoder import STACK, ChunkedDecoder

SMALL = ChunkedDecoder(layers=3, width=16, hidden=24, heads=4, vocabulary=32, chunk=8)
ALONG = zeroth_order.direction(stack=STACK)


def params(dtype=jnp.float32):
    return SMALL.init(jax.random.key(0), dtype)


def tokens(shape=(2, 9)):
    return jax.random.randint(jax.random.key(1), shape, 0, SMALL.vocabulary)


def hidden(params, tokens):
    """(batch, length, width), in a loop over layers."""

    def norm(x, scale):
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * scale

    h = params["embed"][tokens]
    for i in range(SMALL.layers):
        w = jax.tree.map(lambda x, i=i: x[i], params["blocks"])
        q, k, v = jnp.split(norm(h, w["norm1"]) @ w["qkv"], 3, -1)
        heads = [jnp.split(x, SMALL.heads, -1) for x in (q, k, v)]
        mixed = []
        for q, k, v in zip(*heads, strict=True):
            scores = jnp.einsum("btd,bsd->bts", q, k) / np.sqrt(q.shape[-1])
            causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
            mixed.append(jax.nn.softmax(jnp.where(causal, scores, -jnp.inf)) @ v)
        h = h + jnp.concatenate(mixed, -1) @ w["out"]
        h = h + jax.nn.relu(norm(h, w["norm2"]) @ w["up"]) @ w["down"]
    return norm(h, params["norm"])


@pytest.mark.parametrize("chunk", [1, 8, 32])
def test_losses_are_those_of_all_logits(chunk):
    value, given = params(), tokens()
    logits = hidden(value, given[:, :-1]) @ value["embed"].T
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, given[:, 1:])
    found = SMALL._replace(chunk=chunk).losses(value, given)
    np.testing.assert_allclose(found, expected.reshape(-1), rtol=1e-5, atol=1e-5)


def test_large_logits_do_not_overflow():
    value = params()
    value["embed"] = 1e3 * value["embed"]
    assert jnp.isfinite(SMALL.losses(value, tokens())).all()


def test_gradients_are_those_without_rematerialization():
    value, given = params(), tokens()

    def gradient(model):
        return jax.jit(jax.grad(lambda p: jnp.mean(model.losses(p, given))))(value)

    ours, kept = gradient(SMALL._replace(remat=True)), gradient(SMALL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, kept)


def test_streamed_losses_are_those_of_the_perturbed_copy():
    value, given = params(), tokens()
    of = {
        name: jax.jit(lambda p, f=f: SMALL.losses(f(ALONG, p, 5, 1e-2), given))(value)
        for name, f in (("streamed", zeroth_order.stream), ("copy", zeroth_order.perturb))
    }
    np.testing.assert_array_equal(of["streamed"], of["copy"])
    assert (of["streamed"] != jax.jit(SMALL.losses)(value, given)).any()


def test_dtypes():
    value = params(jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(value)} == {jnp.dtype("bfloat16")}
    assert SMALL.losses(value, tokens()).dtype == jnp.float32
