import dataclasses
import math
import pathlib

import jax
import numpy as np
import optax
import pytest

from experiments.data.text import bits_per_byte
from experiments.models.decoder import Decoder
from experiments.tasks.language import LanguageModel, window, windows

MODEL = Decoder(width=8, layers=1, heads=1, hidden=8)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_bytes(bytes(97 + i * i % 23 for i in range(4000)))
    return str(file)


def content(path):
    return np.frombuffer(pathlib.Path(path).read_bytes() + b"\0", np.uint8)


def validation_rows(task):
    """What an evaluation places on the devices, without the samples that fill up a batch."""
    batches = []

    def place(batch):
        batches.append(batch["bytes"][batch["weight"] > 0])
        return batch

    task.evaluate(jax.jit(task.init)(jax.random.key(0)), place)
    return np.concatenate(batches)


def test_windows_predict_every_byte_but_the_first_once():
    text = np.arange(50, dtype=np.uint8)
    assert windows(text, 7, "training") == 7
    found = window(text, np.arange(7), 7)
    assert found.shape == (7, 8)
    assert found[:, 1:].ravel().tolist() == list(range(1, 50))
    assert np.array_equal(found[1:, 0], found[:-1, -1])


def test_baselines_are_scored_on_the_bytes_that_evaluation_scores(path):
    config = LanguageModel(path, length=8, validation_sequences=1000, model=MODEL)
    task = config.build()
    rows = validation_rows(task)
    assert len(rows) == task.facts["provenance"]["validation_sequences"] == (200 - 1) // 8
    expected = bits_per_byte(content(path)[:-200], rows[:, :-1], rows[:, 1:])
    assert task.facts["baselines"] == expected


def test_validation_is_spread_over_the_text(path):
    config = LanguageModel(path, length=8, validation_sequences=3, model=MODEL)
    expected = window(content(path)[-200:], np.array([0, 12, 23]), 8)
    assert np.array_equal(validation_rows(config.build()), expected)


def test_loss_and_evaluation_are_the_cross_entropy(path):
    config = LanguageModel(path, length=8, validation_sequences=5, model=MODEL)
    task, apply = config.build(), jax.jit(MODEL.build().apply)
    params = jax.jit(task.init)(jax.random.key(0))
    batch = task.batches(0, 0, 6)
    assert batch["bytes"].dtype == np.uint8 and batch["bytes"].shape == (6, 9)
    loss, metrics = jax.jit(task.loss)(params, batch, jax.random.key(1))
    tokens = batch["bytes"].astype(int)
    log_p = np.asarray(jax.nn.log_softmax(apply(params, tokens[:, :-1])), np.float64)
    expected = -np.take_along_axis(log_p, tokens[:, 1:, None], -1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["bits_per_byte"]) == pytest.approx(expected / math.log(2), rel=1e-5)
    found = task.evaluate(params, lambda b: b)
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2), rel=1e-6)


def test_training_beats_the_bigram(path):
    """The next byte of this text follows from the two before it, not from one."""
    config = LanguageModel(path, length=16, model=Decoder(width=32, layers=1, heads=2, hidden=64))
    task = config.build()
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, state, batch):
        grads = jax.grad(lambda p: task.loss(p, batch, jax.random.key(0))[0])(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.jit(task.init)(jax.random.key(0))
    state = tx.init(params)
    for i in range(100):
        params, state = step(params, state, task.batches(0, 16 * i, 16))
    assert task.evaluate(params, lambda b: b)["bits_per_byte"] < task.facts["baselines"]["bigram"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"length": 0}, ValueError, "length = 0"),
        ({"validation_sequences": 0}, ValueError, "validation_sequences = 0"),
        ({"length": 300}, ValueError, "validation text has 200 bytes; length = 300"),
        ({"length": 5000}, ValueError, "training text has 3801 bytes"),
        ({"model": Decoder(vocabulary=255)}, ValueError, "vocabulary is 255; a byte needs 256"),
        ({"text": "nowhere"}, FileNotFoundError, "'nowhere'"),
    ],
)
def test_errors(path, change, error, message):
    config = dataclasses.replace(LanguageModel(path, length=8, model=MODEL), **change)
    with pytest.raises(error, match=message):
        config.build()
