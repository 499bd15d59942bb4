"""The hook in plain functions, Flax Linen and Flax NNX: after twenty steps the same bits."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zeroth_order
from experiments.models.decoder import Decoder

LAYERS, WIDTH, CLASSES = 3, 8, 5
ALONG = zeroth_order.direction(stack={"blocks/.*": 1})
BATCH = (jax.random.normal(jax.random.key(1), (6, WIDTH)), jnp.array([0, 1, 2, 3, 4, 0]))


def parameters():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "blocks": {
            "dense": {
                "bias": jnp.zeros((LAYERS, WIDTH)),
                "kernel": jax.random.normal(keys[0], (LAYERS, WIDTH, WIDTH)) / WIDTH**0.5,
            }
        },
        "head": jax.random.normal(keys[1], (WIDTH, CLASSES)) / WIDTH**0.5,
    }


def plain(p, h):
    def block(h, w):
        w = zeroth_order.read(w)["dense"]
        return jnp.tanh(h @ w["kernel"] + w["bias"]), None

    h, _ = jax.lax.scan(block, h, p["blocks"])
    return h @ zeroth_order.read(p["head"])


class LinenBlock(nn.Module):
    """Knows nothing of perturbations."""

    @nn.compact
    def __call__(self, h, _):
        return jnp.tanh(nn.Dense(WIDTH, name="dense")(h)), None


def linen(p, h):
    streamed = nn.map_variables(LinenBlock, "params", trans_in_fn=zeroth_order.read)
    scanned = nn.scan(
        streamed, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS
    )
    h, _ = scanned().apply({"params": p["blocks"]}, h, None)
    return h @ zeroth_order.read(p["head"])


class NnxBlock(nnx.Module):
    """Knows nothing of perturbations either."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, h):
        return jnp.tanh(self.dense(h))


def with_nnx(p, h):
    graph, state = nnx.split(nnx.eval_shape(lambda: NnxBlock(nnx.Rngs(0))))

    def block(h, w):
        nnx.replace_by_pure_dict(state, zeroth_order.read(w))
        return nnx.merge(graph, state)(h), None

    h, _ = jax.lax.scan(block, h, p["blocks"])
    return h @ zeroth_order.read(p["head"])


STYLES = {"plain": plain, "linen": linen, "nnx": with_nnx}


def losses(model, p, batch):
    logits = model(p, batch[0])
    chosen = jnp.take_along_axis(logits, batch[1][:, None], 1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - chosen


def run(style, streamed):
    estimator = zeroth_order.spsa(ALONG, epsilon=1e-2, streamed=streamed)
    loss = functools.partial(losses, STYLES[style])
    algorithm = zeroth_order.mezo(loss, 1e-2, estimator, ALONG)
    state = algorithm.init(parameters(), jax.random.key(3))
    steps = jax.jit(lambda s: jax.lax.scan(lambda s, _: algorithm.update(s, BATCH), s, length=20))
    state, info = steps(state)
    return state.params, info


@functools.cache
def expected():
    return run("plain", streamed=False)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("streamed", [False, True])
def test_twenty_steps_have_the_same_bits_in_every_style(style, streamed):
    params, info = run(style, streamed)
    jax.tree.map(np.testing.assert_array_equal, params, expected()[0])
    np.testing.assert_array_equal(info.loss, expected()[1].loss)


def test_updates_that_are_not_compiled_have_the_same_bits():
    """From what was told; the losses themselves are rounded in another order without jit."""
    params, info = parameters(), expected()[1]
    for t in range(20):
        gradient = zeroth_order.SeededGradient(*(x[t] for x in info.gradient))
        params = zeroth_order.apply(ALONG, gradient, params, rate=1e-2)
    jax.tree.map(np.testing.assert_array_equal, params, expected()[0])


@pytest.mark.parametrize("tied", [True, False])
def test_the_decoder_reads_all_of_its_parameters_by_the_hook(tied):
    model = Decoder(vocabulary=32, width=16, layers=2, heads=2, hidden=24, tied=tied).build()
    params = model.init(jax.random.key(0))
    tokens = jnp.array([[3, 1, 31, 7]])
    streamed = jax.jit(lambda p: model.apply(zeroth_order.stream(ALONG, p, 5, 1e-2), tokens))
    copy = jax.jit(lambda p: model.apply(zeroth_order.perturb(ALONG, p, 5, 1e-2), tokens))
    np.testing.assert_array_equal(streamed(params), copy(params))
    assert (streamed(params) != model.apply(params, tokens)).all()
