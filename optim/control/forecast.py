r"""A loss some steps ahead, by an exponential decay fitted to the losses up to now.

.. math::
    L(t) \approx a \, e^{b t} + c, \qquad b < 0

Losses are first replaced by their running medians, over an odd window of about a tenth of them; the
ends, where the window does not fit, are left out. For each b, least squares give a and c; b is
searched on a grid of log(-1/b), from a quarter of a step to three times the number of losses,
which is refined around its best point.

*Differences.* From the authors' code, of AutoLRS: (1) There, losses are replaced by a spline of
degree 2, ten times over, and each time the 3 % that are furthest from it are dropped where they lie
in the first half. Its smoothing is scipy's default, a sum of squares up to the number of losses, so
that for losses of order 1 it has no inner knot and is one parabola, which may turn upwards where an
exponential levels off. A running median drops as many outliers, keeps every monotone curve as it
is, and so loses nothing of an exponential. (2) There, b is not bounded, and
where it is near 0 a line is extended, through the noise of its slope. Here the longest time
constant is three times the losses' length, so that a line bends down once; of 1, 3, 10 and 100
times, 3 gave `optim.autolrs` the lowest losses on two small classifications.

*Cost.* Six grids of 101 values of b over all losses, a millisecond for a hundred of them, on the
host.

*Reference.* Jin et al., AutoLRS: Automatic Learning-Rate Schedule by Bayesian Optimization on the
Fly, 2021 (arXiv:2105.10762); YuchenJin/autolrs@63e6ba9, autolrs_server.py.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_SHORTEST, _LONGEST = 0.25, 3.0  # times a step, and times the number of losses
_GRID, _REFINEMENTS = 101, 6


class ExponentialForecast(NamedTuple):
    """A fitted decay, and its value where it was asked for."""

    value: float  # L(steps)
    amplitude: float  # a
    exponent: float  # b, negative
    limit: float  # c


def exponential_forecast(losses: ArrayLike, steps: float) -> ExponentialForecast:
    """Fit a decay to losses at 0, 1, 2, ... and read it at `steps`.

    Args:
      losses: at least three, all finite.
      steps: where the loss is wanted, counted as the losses are.

    Raises:
      ValueError: there are fewer than three losses, or one is not finite.

    >>> import numpy as np, optim
    >>> losses = 2.0 * np.exp(-0.05 * np.arange(40)) + 0.5
    >>> [round(x, 4) for x in optim.exponential_forecast(losses, 400)]
    [0.5, 2.0, -0.05, 0.5]
    """
    y = np.asarray(losses, np.float64).ravel()
    if len(y) < 3 or not np.isfinite(y).all():
        raise ValueError(
            f"exponential_forecast: losses has {len(y)} values, of which {np.isfinite(y).sum()} "
            f"are finite; accepted: at least 3, all finite."
        )
    width = 2 * (len(y) // 20) + 1
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(y, width), axis=-1)
    first = width // 2  # where the window is that of the first median
    t = np.arange(len(smooth), dtype=np.float64)
    low, high = np.log(_SHORTEST), np.log(_LONGEST * len(y))
    for _ in range(_REFINEMENTS):
        grid = np.linspace(low, high, _GRID)
        best = int(np.argmin(_fit(-np.exp(-grid), t, smooth)[2]))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    b = -np.exp(-grid[best])
    (a,), (start,), _ = _fit(np.array([b]), t, smooth)
    value = start + a * np.expm1(b * (steps - first))
    return ExponentialForecast(
        float(value), float(a * np.exp(-b * first)), float(b), float(start - a)
    )


def _fit(b: np.ndarray, t: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each b: a and a + c of least squares, from the first t on, and their sum of squares.

    In terms of exp(b t) - 1, which keeps its digits where b is small.
    """
    u = np.expm1(b[:, None] * t)
    centred = u - u.mean(axis=1, keepdims=True)
    a = centred @ (y - y.mean()) / np.sum(centred**2, axis=1)
    start = y.mean() - a * u.mean(axis=1)
    return a, start, np.sum((y - start[:, None] - a[:, None] * u) ** 2, axis=1)
