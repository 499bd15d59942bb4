"""Refined schedules: from the gradient norms of one run, the schedule of the next.

With the norms G_0, ..., G_{T-1} of a run of T steps, made smooth by a running median, the weights
and the schedule are::

    w_t = G_t^-2    G the Euclidean norm, for SGD
    w_t = G_t^-1    G the sum of absolute values, for Adam
    eta_t = w_t (w_{t+1} + ... + w_{T-1}) / (w_0 + ... + w_{T-1})

divided by the largest eta_t: a multiplier of a base rate, which is tuned again. eta_{T-1} is 0.
Constant norms give the linear decay. For convex losses, SGD with eta_t has
E f(x_T) - f* <= (D^2 + sum w_t^2 E|g_t|^2) / (2 sum w_t), D the distance to the optimum, for
weights that do not depend on the gradients; those in proportion to |g_t|^-2 minimize the bound.
That they are taken from gradients is the paper's own departure from its theory.

The median of a window of odd width takes what is before the series as its first norm, and what is
after it as the series' mirror image.

*Differences.* 1. The norms are those of all T steps. The authors' plots leave out the first and the
last two of a log, and infinities. 2. Their plots first interpolate a log shorter than 10,000 points
to as many and take a window of a tenth of 10,000 for longer ones, too: a log of 35,348 norms has a
window of 2.8 per cent. Here the window is a fraction of the series. 3. Their function divides by
the last weight, not by the sum, which the division by the largest value undoes.

*Cost.* A few passes over the series. The median makes log2 of its length more, whatever the width,
by a wavelet matrix: bit by bit of the ranks, the numbers are parted into those with 0 and those
with 1, and a window keeps track of where its own have gone. Memory is a few series.

*Reference.* Defazio, Cutkosky, Mehta and Mishchenko, When, Why and How Much? Adaptive Learning Rate
Scheduling by Refinement, 2023 (arXiv:2310.07831); facebookresearch/adaptive_scheduling@37a8a9ba,
find_schedule.py and README.md.
"""

import functools
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from optim import trees

_POWERS = {"l2": -2, "l1": -1}


def refine_schedule(
    norms: ArrayLike, *, norm: str = "l2", filter_width: int | float | None = 0.1
) -> jax.Array:
    """The multipliers of the learning rate for a next run of as many steps.

    `optim.record_gradient_norms` collects the norms, and `optim.array_schedule` makes a schedule of
    the result.

    Args:
      norms: (T,) positive, gradient norms of one run, before any clipping.
      norm: which they are: "l2" (for SGD) or "l1" (for Adam).
      filter_width: of the running median; an int counts steps and is odd, a float is a fraction of
        T, whose width is 2 (int(fraction T) // 2) + 1; None for no filter.

    Returns:
      (T,) multipliers; the largest is 1, the last 0.

    Raises:
      ValueError: fewer than two norms, one that is not positive and finite (traced norms are not
        checked), an unknown norm, or a width that is even or reaches past the mirrored series.

    >>> import optim
    >>> optim.refine_schedule([2.0, 2.0, 2.0, 2.0, 2.0]).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    >>> optim.refine_schedule([4.0, 2.0, 1.0, 1.0], norm="l1", filter_width=None).tolist()
    [0.625, 1.0, 1.0, 0.0]
    """
    if norm not in _POWERS:
        raise ValueError(f"refine_schedule: norm is {norm!r}; accepted: 'l2', 'l1'.")
    series = _checked(norms)
    return _refined(series, norm, window(filter_width, len(series)))


@functools.partial(jax.jit, static_argnames=("norm", "width"))
def _refined(series: jax.Array, norm: str, width: int) -> jax.Array:
    if width > 1:
        series = median_filter(series, width)
    # As multiples of the least, the weights are within (0, 1] at any scale of the norms.
    weights = (series / jnp.min(series)) ** _POWERS[norm]
    later = jnp.flip(jnp.cumsum(jnp.flip(weights[1:])))
    schedule = weights * jnp.concatenate([later, jnp.zeros_like(later[:1])])
    largest = jnp.max(schedule)
    # A compiler may multiply by the reciprocal, which can leave x / x below 1.
    return jnp.where(schedule == largest, 1, schedule / largest)


def median_filter(series: jax.Array, width: int) -> jax.Array:
    """The median of each window of `width` numbers, centred.

    Args:
      series: (T,); before it the first number is taken, after it the mirror image about the last.
      width: odd, at most 2 T - 1.
    """
    half, size = width // 2, len(series) + width - 1
    before = jnp.broadcast_to(series[0], (half,))
    padded = jnp.concatenate([before, series, jnp.flip(series[len(series) - 1 - half : -1])])
    order = jnp.argsort(padded)
    places = jnp.arange(size)
    bits = (size - 1).bit_length()

    def part(step: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """One more bit of the medians' ranks; numbers with a 0 there go first, in their order."""
        ranks, low, high, wanted, median = carry
        bit = bits - 1 - step
        one = (ranks >> bit) & 1
        zeros = jnp.concatenate([jnp.zeros_like(one[:1]), jnp.cumsum(1 - one)])
        inside = zeros[high] - zeros[low]
        upper = wanted >= inside
        low, high = (
            jnp.where(upper, zeros[-1] + edge - zeros[edge], zeros[edge]) for edge in (low, high)
        )
        to = jnp.where(one == 1, zeros[-1] + places - zeros[:-1], zeros[:-1])
        wanted = jnp.where(upper, wanted - inside, wanted)
        return ranks.at[to].set(ranks), low, high, wanted, median | (upper.astype(int) << bit)

    ranks = jnp.zeros_like(places).at[order].set(places)
    starts = jnp.arange(len(series))
    # Ranks, the windows [low, high) among them, the numbers wanted below a median, its own rank.
    carry = (ranks, starts, starts + width, jnp.full_like(starts, half), jnp.zeros_like(starts))
    return padded[order[jax.lax.fori_loop(0, bits, part, carry)[-1]]]


def _checked(norms: ArrayLike) -> jax.Array:
    series = jnp.asarray(norms)
    if series.ndim != 1 or len(series) < 2:
        raise ValueError(
            f"refine_schedule: norms has shape {series.shape}; accepted: (T,) with T from 2."
        )
    if not any(isinstance(value, jax.core.Tracer) for value in jax.tree.leaves(norms)):
        values = np.asarray(norms, float)
        bad = np.flatnonzero(~((values > 0) & np.isfinite(values)))
        if bad.size:
            raise ValueError(
                f"refine_schedule: norms[{bad[0]}] is {values[bad[0]]}; accepted: positive, finite "
                f"numbers."
            )
    return series.astype(trees.accumulator_dtype(series))


def window(filter_width: int | float | None, length: int) -> int:
    """The width that a `filter_width` of `refine_schedule` stands for, in so many norms."""
    if filter_width is None:
        return 1
    if isinstance(filter_width, numbers.Integral):
        if filter_width % 2 and 0 < filter_width < 2 * length:
            return int(filter_width)
    elif 0 <= filter_width <= 1:
        return 2 * (int(filter_width * length) // 2) + 1
    raise ValueError(
        f"refine_schedule: filter_width is {filter_width}; accepted: an odd int from 1 to "
        f"{2 * length - 1}, a float between 0 and 1, which is a fraction of the norms, or None."
    )
