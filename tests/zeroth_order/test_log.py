"""Runs made again from their first parameters and their log alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order
from tests.zeroth_order.test_streaming import ALONG, TOKENS, model, params
from zeroth_order.log import MAGIC, Log, replay


def loss(p, tokens):
    logits = model(p, tokens)
    return jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, tokens[:, None], 1)[:, 0]


def run(algorithm, dtype, steps, first=None):
    state = algorithm.init(params(dtype=dtype) if first is None else first, jax.random.key(3))
    return jax.jit(
        lambda s: jax.lax.scan(lambda s, _: algorithm.update(s, TOKENS), s, length=steps)
    )(state)


def falling(step):
    return 1e-2 / (1 + 1e-3 * step)


def mezo(samples=1, rate=falling, **arguments):
    estimator = zeroth_order.spsa(ALONG, epsilon=1e-2, samples=samples, streamed=True)
    return zeroth_order.mezo(loss, rate, estimator, ALONG, **arguments)


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


@pytest.mark.parametrize("rate", [falling, 3e-3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_two_thousand_steps_bit_for_bit_and_eight_bytes_each(dtype, rate):
    state, info = run(mezo(rate=rate), dtype, 2000)
    data = Log.of(info).to_bytes()
    assert len(data) - 16_000 < 200
    again = replay(ALONG, params(dtype=dtype), Log.from_bytes(data))
    assert same(again, state.params) and not same(again, params(dtype=dtype))


def test_weight_decay_is_replayed_with_the_rates():
    state, info = run(mezo(samples=2, weight_decay=0.1), jnp.float32, 40)
    log = Log.from_bytes(Log.of(info, decays=True).to_bytes())
    again = replay(ALONG, params(), log, decay=0.1)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="decay is given; accepted with it: a log of decays=True"):
        replay(ALONG, params(), Log.of(info), decay=0.1)


def test_a_mask_is_replayed_from_the_weights_of_each_step():
    thresholds = zeroth_order.magnitude_thresholds(ALONG, params(), 0.5)
    along = zeroth_order.small_weights(ALONG, thresholds)
    estimator = zeroth_order.spsa(along, epsilon=1e-2, streamed=True)
    state, info = run(zeroth_order.mezo(loss, 1e-1, estimator, along), jnp.float32, 50)
    assert same(replay(along, params(), Log.of(info)), state.params)


def test_a_log_grows_step_by_step_and_any_step_can_be_made():
    algorithm = mezo(samples=2)
    state, log, update = (
        algorithm.init(params(), jax.random.key(3)),
        None,
        jax.jit(algorithm.update),
    )
    kept = []
    for _ in range(4):
        state, info = update(state, TOKENS)
        log = Log.of(info) if log is None else log.followed_by(Log.of(info))
        kept.append(state.params)
    assert log.steps.shape == (4, 2)
    half = Log(log.seeds[:2], log.steps[:2])
    assert same(replay(ALONG, params(), half), kept[1])
    assert same(replay(ALONG, params(), log), kept[3])
    with pytest.raises(ValueError, match="samples is 1; accepted: 2, as before"):
        log.followed_by(Log(log.seeds, log.steps[:, :1]))
    with pytest.raises(ValueError, match="rates is True; accepted: False, as before"):
        log.followed_by(Log(log.seeds, log.steps, log.steps[:, 0]))


def header(**changed):
    known = {"steps": 1, "samples": 1, "dtype": "float32", "rates": False} | changed
    return MAGIC + json.dumps(known).encode() + b"\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the data begin with b''"),
        (b"PK\x03\x04" + bytes(40), "the data begin with"),
        (MAGIC + b"[1]\n", "is no JSON|the header"),
        (MAGIC + b"{\n", "is no JSON"),
        (header() + bytes(7), "7 bytes follow the header; accepted: 8"),
        (header(steps=10**15) + bytes(8), "8 bytes follow the header"),
        (header(steps=-1), "accepted: steps and samples >= 0"),
        (header(dtype="object") + bytes(8), "a dtype of float32, float64"),
        (header(rates=1) + bytes(8), "rates true or false"),
    ],
)
def test_what_is_no_log_is_an_error(data, message):
    with pytest.raises(ValueError, match=message):
        Log.from_bytes(data)
