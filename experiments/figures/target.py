"""What a target of `python -m experiments reproduce` is: a claim, and functions that test it.

`measure` returns a table, columns of one length by name. Figure and verdict are functions of that
table alone, so the CSV that is written beside them is enough to check them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

Table = Mapping[str, np.ndarray]  # column name -> values, all of one length


class Paper(NamedTuple):
    title: str
    authors: str
    year: int
    arxiv: str


class Part(NamedTuple):
    """One part of a claim beside what was measured for it."""

    claim: str
    measured: str
    holds: bool


class Target(NamedTuple):
    """A figure or table of a paper."""

    paper: Paper
    figure: str  # which figure or table, and in what it departs from the paper's
    claim: str  # one sentence
    rule: str  # how a part is judged, in words
    measure: Callable[[bool], Table]  # quick -> measurements
    judge: Callable[[Table], Sequence[Part]]
    plot: Callable[[Table], Figure]


def verdict(parts: Sequence[Part]) -> str:
    """*holds* when every part does, *does not hold* when none does, else *holds in part*."""
    if not parts:
        raise ValueError("verdict: parts is empty; a claim needs at least one part to judge.")
    held = sum(part.holds for part in parts)
    if held == len(parts):
        return "holds"
    return "holds in part" if held else "does not hold"
