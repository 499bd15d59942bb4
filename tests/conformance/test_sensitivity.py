"""Every official hyper-parameter acts: moved a little, it makes a recording fail.

An adapter that drops a hyper-parameter, or a recording too blunt to notice one, is found here.
"""

import copy
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from .__main__ import killed_by
from .adapters import ADAPTERS
from .recording import Recording, load
from .replay import AdapterError

TRAJECTORIES = pathlib.Path(__file__).parent / "trajectories"
RECORDINGS = [load(path) for path in sorted(TRAJECTORIES.glob("*.npz"))]

# (method, hyper-parameter): why no recording can notice it.
INERT: dict[tuple[str, str], str] = {
    ("muon", "eps"): "two per cent of 1e-10, beside gradients of about 1",
    ("adam_mini", "n_kv_heads"): "The authors' code checks that it divides n_heads.",
    ("psgd_kron", "decay"): "the recordings end before its flat start does",
    ("psgd_kron", "flat_start"): "the recordings end before it does",
    ("psgd_kron", "max_size_triangular"): "no side is as long",
    ("psgd_kron", "min_prob"): "the recordings end before the probability is as low",
    ("zobench", "gradient_sparsity"): "what it zeroes is recorded",
}


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Where the positive numbers of nested dicts and lists are; a zero has no two per cent."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from numbers(item, (*path, index))
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e300:
        yield path, value


def label(path: tuple[Any, ...]) -> str:
    """The hyper-parameter's name: of groups it is the option's, of betas the place among them."""
    *outer, last = path
    name = next((key for key in reversed(outer) if isinstance(key, str)), "")
    return f"{name}[{last}]" if isinstance(last, int) else str(last)


def moved(recording: Recording, path: tuple[Any, ...], value: float) -> Recording:
    """The recording with one hyper-parameter two per cent smaller, a whole number one smaller."""
    hyper = copy.deepcopy(dict(recording.hyper))
    node: Any = hyper
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value - 1 if isinstance(value, int) else 0.98 * value
    return dataclasses.replace(recording, hyper=hyper)


CASES: dict[tuple[str, str], list[Recording]] = {}
for recording in RECORDINGS:
    if recording.name in ADAPTERS:
        for path, value in numbers(recording.hyper):
            case = (recording.name, label(path))
            CASES.setdefault(case, []).append(moved(recording, path, value))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_hyper_parameter_that_moves_is_noticed(case):
    try:
        noticed = killed_by(CASES[case], ADAPTERS[case[0]])
    except AdapterError as error:  # such as a number of heads that does not divide a matrix
        assert "ValueError" in str(error), error
        noticed = str(error)
    if case in INERT:
        assert noticed is None, f"{case} is noticed by {noticed}; strike it from INERT"
    else:
        assert noticed is not None, f"no recording notices {case}"


def test_what_is_inert_is_a_case():
    assert INERT.keys() <= CASES.keys()
