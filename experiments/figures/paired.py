"""Differences of runs that share their seeds, and whether they exceed two standard errors."""

import math

import numpy as np

from experiments.figures.target import Part


def paired(high: np.ndarray, low: np.ndarray) -> tuple[float, float]:
    """The mean over seeds of `high` - `low`, (seeds,) each, and two standard errors of it."""
    difference = high - low
    return float(difference.mean()), float(2 * difference.std(ddof=1) / math.sqrt(len(difference)))


def above(claim: str, high: np.ndarray, low: np.ndarray, digits: int = 4) -> Part:
    """Judges that `high` exceeds `low` by more than two standard errors."""
    difference, margin = paired(high, low)
    measured = (
        f"{high.mean():.{digits}f} over {low.mean():.{digits}f}: "
        f"difference {difference:.{digits}f} ± {margin:.{digits}f}"
    )
    return Part(claim, measured, difference > margin)
