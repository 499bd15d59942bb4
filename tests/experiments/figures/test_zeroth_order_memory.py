"""Bytes are counted once, of the dtypes that are named, and the judge can say no."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.figures import zeroth_order_memory as target
from experiments.models.chunked_decoder import ChunkedDecoder

MODEL = ChunkedDecoder(layers=2, width=16, hidden=32, heads=2, vocabulary=64, chunk=16)


def parameters():
    width, hidden = MODEL.width, MODEL.hidden
    block = 4 * width * width + 2 * width * hidden + 2 * width
    return MODEL.layers * block + MODEL.vocabulary * width + width


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float32, 4), (jnp.bfloat16, 2)])
def test_adam_holds_its_parameters_once_and_moments_in_float32(dtype, size):
    found, total = target.used(target.ADAM, MODEL, dtype)
    assert found == size * parameters()
    tokens = 4 * target.BATCH * (target.LENGTH + 1)
    assert total > (size + 8) * parameters() + tokens


def test_what_is_donated_counts_once(monkeypatch):
    monkeypatch.setitem(target.ALL, "add", lambda model: (lambda p: p, add))
    size, total = target.used("add", MODEL, jnp.float32)
    tokens = 4 * target.BATCH * (target.LENGTH + 1)
    # The tables of the results' addresses are a few bytes an array.
    assert size + tokens <= total < size + tokens + 1024


def add(params, tokens):
    return {**params, "norm": params["norm"] + tokens[0, 0]}


def table(streamed=1.05, last=1.0, port=3.0, adam=13.0):
    """Two depths of 100 and 200 bytes of parameters; a forward pass needs 10 more."""
    rows = []
    for layers, size in ((2, 100), (4, 200)):
        for method in target.ALL:
            beyond = {
                target.FORWARD: 10,
                target.STREAMED: (size + 10) * streamed - size + (0 if layers == 2 else last - 1),
                target.PORT: port * size,
                target.ADAM: (adam - 1) * size + 13 * 20,
            }.get(method, 50)
            rows.append((target.CPU, method, layers, size, round(size + beyond)))
    columns = zip(*rows, strict=True)
    return {name: np.array(c) for name, c in zip(target.COLUMNS, columns, strict=True)}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"streamed": 1.0}, [True, True, True, True]),
        ({"streamed": 1.2, "adam": 20.0}, [False, False, True, True]),
        ({"streamed": 1.0, "last": 3.0}, [True, False, True, True]),
        ({"streamed": 1.0, "port": 1.9}, [True, True, False, True]),
        ({"streamed": 1.0, "adam": 5.0}, [True, True, True, False]),
    ],
)
def test_each_part_can_fail(changes, expected):
    assert [part.holds for part in target.judge(table(**changes))] == expected


def test_both_panels_of_a_platform_are_drawn():
    assert len(target.plot(table()).axes) == 2
