"""Refined schedules, which are recorded as functions of norms instead of trajectories."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optim
from optim.schedules import refined

from ..recording import Recording
from ..replay import Adapter, AdapterError, Pair

NORMS = {"G**-2": "l2", "G**-1": "l1"}
Refine = Callable[[jax.Array, str, float | None], jax.Array]


def ours(norms: jax.Array, norm: str, tau: float | None) -> jax.Array:
    return optim.refine_schedule(norms, norm=norm, filter_width=tau)


def schedules(refine: Refine = ours) -> Adapter:
    """An adapter of a function (norms, "l2" or "l1", tau) -> schedule.

    The authors' function divides by the last weight; both are compared at a largest value of 1.
    """

    def adapter(recording: Recording, dtype: Any) -> Mapping[str, Pair]:
        hyper = dict(recording.hyper)
        weights, tau = hyper.pop("weights", "G**-2"), hyper.pop("median_filter_tau", None)
        if hyper or weights not in NORMS:
            raise AdapterError(
                f"the adapter of refined_schedule has weights {weights!r} and {sorted(hyper)}; "
                f"accepted: weights {', '.join(NORMS)}, and median_filter_tau."
            )
        norms = jnp.asarray(recording.tree("in")["gnorms"], dtype)
        recorded = recording.tree("out")
        nothing = np.zeros(())
        largest = recorded["schedule"].max()
        schedule = np.asarray(refine(norms, NORMS[weights], tau))
        pairs = {"schedule": Pair(schedule, recorded["schedule"] / largest, nothing)}
        if "smoothed" in recorded:
            width = 2 * (int(tau * len(norms)) // 2) + 1
            smoothed = np.asarray(refined.median_filter(norms, width))
            pairs["smoothed"] = Pair(smoothed, recorded["smoothed"], nothing)
        return pairs

    return adapter


def by_formula(
    norms: jax.Array,
    norm: str,
    tau: float | None,
    *,
    powers: Mapping[str, int] = {"l2": -2, "l1": -1},
    itself: bool = False,
    smooth: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> jax.Array:
    """The method written out, each argument a mistake."""
    series = np.asarray(norms)
    if tau is not None and smooth is not None:
        series = smooth(series, 2 * (int(tau * len(series)) // 2) + 1)
    weights = series ** powers[norm]
    later = np.cumsum(weights[::-1])[::-1]
    schedule = weights * (later if itself else later - weights)
    return jnp.asarray(schedule / schedule.max())


def padded(left: str, right: str) -> Callable[[np.ndarray, int], np.ndarray]:
    """A running median with other numbers before and after the series."""

    def smooth(series: np.ndarray, width: int) -> np.ndarray:
        half = width // 2
        wide = np.pad(np.pad(series, (half, 0), left), (0, half), right)
        return np.median(np.lib.stride_tricks.sliding_window_view(wide, width), axis=-1)

    return smooth


def narrower(series: np.ndarray, width: int) -> np.ndarray:
    return padded("edge", "reflect")(series, width - 2)


def mean(series: np.ndarray, width: int) -> np.ndarray:
    half = width // 2
    wide = np.pad(np.pad(series, (half, 0), "edge"), (0, half), "reflect")
    return np.convolve(wide, np.full(width, 1 / width), "valid")


def mistaken(**mistakes: Any) -> Adapter:
    """The formula, right but for the mistakes."""
    return schedules(
        functools.partial(by_formula, **{"smooth": padded("edge", "reflect")} | mistakes)
    )


ADAPTERS: dict[str, Adapter] = {"refined_schedule": schedules()}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "refined_schedule": {
        "a step counts itself as later": mistaken(itself=True),
        "weights of the other norm": mistaken(powers={"l2": -1, "l1": -2}),
        "weights of norms to the power -2 always": mistaken(powers={"l2": -2, "l1": -2}),
        "no filter": mistaken(smooth=None),
        "a mean instead of a median": mistaken(smooth=mean),
        "a window narrower by two": mistaken(smooth=narrower),
        "mirrored on the left": mistaken(smooth=padded("reflect", "reflect")),
        "nearest on the right": mistaken(smooth=padded("edge", "edge")),
        "mirrored with the edge twice": mistaken(smooth=padded("edge", "symmetric")),
    },
}
