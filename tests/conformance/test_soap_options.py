"""The adapter of SOAP on hyper-parameters that no recording has, against the equations in NumPy."""

import dataclasses

import numpy as np
import pytest

from tests.optim.matrix.test_soap import replay as equations

from .methods.soap import ADAPTERS, merged
from .recording import Recording
from .replay import replay

HYPER = {
    "lr": 0.1,
    "betas": [0.8, 0.9],
    "shampoo_beta": 0.7,
    "eps": 1e-3,
    "weight_decay": 0.2,
    "precondition_frequency": 3,
}


def recorded(shape, seen, back, **hyper):
    """A run of the equations on `seen(leaf)`, as the authors' code shows itself a leaf."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=shape), rng.normal(size=(8, *shape))
    longest = hyper.get("max_precond_dim", 10_000)
    steps = [
        equations(
            seen(start), [seen(g) for g in gradients[:n]], 0.1, 0.8, 0.9, 0.7, 1e-3, 0.2, 3,
            longest, hyper.get("normalize_grads", False), hyper.get("correct_bias", True),
        )
        for n in range(1, 9)
    ]  # fmt: skip
    after = np.stack([back(p) for p in steps])
    arrays = {"p0/w": start, "g/w": gradients, "p64/w": after}
    return Recording("soap__option", "soap", {**HYPER, **hyper}, {}, arrays)


@pytest.mark.parametrize(
    ("shape", "longest", "sizes"),
    [
        ((2, 3, 4), 6, (6, 4)),
        ((2, 3, 4), 12, (6, 4)),
        ((2, 3, 4), 24, (24,)),
        ((5, 2, 2), 4, (5, 4)),
        ((2, 5, 2), 4, (2, 5, 2)),
        ((4, 1, 1), 4, (4,)),
        ((), 4, (1,)),
    ],
)
def test_neighbouring_axes_merge(shape, longest, sizes):
    assert merged(shape, longest) == sizes


@pytest.mark.parametrize(
    ("shape", "sizes", "hyper"),
    [
        ((2, 3, 6), (6, 6), {"merge_dims": True, "max_precond_dim": 6}),
        ((3, 4, 13), (12, 13), {"merge_dims": True, "max_precond_dim": 12}),
        ((6, 6), (6, 6), {"normalize_grads": True, "correct_bias": False}),
    ],
)
def test_the_adapter_takes_the_option(shape, sizes, hyper):
    recording = recorded(shape, lambda x: x.reshape(sizes), lambda x: x.reshape(shape), **hyper)
    outcome = replay(recording, ADAPTERS["soap"], 1e-9)
    assert outcome.passed, outcome


def test_channels_last_merge_after_the_channels_have_moved():
    """(2, 3, 2, 3), channels last, is seen as (2, 3, 3, 2) and, merged, as (6, 6)."""
    recording = recorded(
        (2, 3, 2, 3),
        lambda x: x.transpose(0, 3, 1, 2).reshape(6, 6),
        lambda x: x.reshape(2, 3, 3, 2).transpose(0, 2, 3, 1),
        merge_dims=True,
        max_precond_dim=6,
        data_format="channels_last",
    )
    assert replay(recording, ADAPTERS["soap"], 1e-9).passed
    first = dataclasses.replace(recording, hyper={**recording.hyper, "data_format": "x"})
    assert not replay(first, ADAPTERS["soap"], 1e-9).passed
