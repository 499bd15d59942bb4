"""Newton-Schulz: the nearest semi-orthogonal matrix by odd quintic polynomials.

For x of shape (m, n), m <= n, divided by a bound of its largest singular value, a step maps every
singular value s to a s + b s^3 + c s^5 and leaves the singular vectors alone::

    x = x / (safety |x|_F + eps)
    for a, b, c in rows:  x = a x + (b x x' + c (x x')^2) x

*Polynomials.* `standard` is Keller Jordan's, one row five times; `dion` five rows of Microsoft's
Dion; `polar_express` the greedy composition of best approximations of 1, computed here; `aol` four
rows for x whose rows are first divided by the square roots of the sums of |x x'| over each, which
bounds the norm by 1 far more tightly than Frobenius' and turns the singular vectors a little.

Where the rows take singular values that are in [lo, 1] when the first step begins::

    lo      standard       dion           polar_express  aol
    1e-3    0.471, 1.202   0.475, 1.145   0.859, 1.141   0.147, 1.050
    3e-3    0.682, 1.202   0.978, 1.145   0.859, 1.141   0.426, 1.050

*Forms.* `newton_schulz` does that. `gram_newton_schulz` iterates on the m x m matrix x x' and
applies the accumulated factor to x at the end and before each step in `restarts`, where x x' is
formed again. In exact arithmetic the two are equal. In bfloat16 the restart is not optional:
without it, or a step earlier, singular values far above 1 appear.

*Symmetric products.* x x' is computed by blocks, the upper ones mirrored from the lower ones,
`levels` deep: (1 + 2^-levels) / 2 of the multiplications.

*Cost.* Multiplications for five steps: plain 20 m^2 n + 10 m^3, gram 8 m^2 n + 28 m^3 with one
restart. No state.

*Reference.* Bernstein and Newhouse, Old Optimizer, New Norm: An Anthology, 2024 (arXiv:2409.20325);
Amsel et al., The Polar Express, 2025 (arXiv:2505.16932); Prach and Lampert, Almost-Orthogonal
Layers, 2022 (arXiv:2208.03160); KellerJordan/Muon@857d1adc159e, muon.py; microsoft/dion@0a059a4,
newton_schulz_triton.py; NoahAmsel/PolarExpress@545491092, polar_express.py.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from optim import trees

Coefficients = Sequence[tuple[float, float, float]]

STANDARD: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5
DION: Coefficients = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
AOL: Coefficients = (
    (4.6051, -9.6552, 5.6769),
    (4.7505, -6.0861, 2.1790),
    (2.7763, -2.3190, 0.5523),
    (2.4231, -2.2861, 0.8193),
)


class Polynomials(NamedTuple):
    """What a set of coefficients needs besides its rows."""

    rows: Coefficients  # (a, b, c) of each step
    safety: float = 1.0  # factor of the Frobenius norm that x is divided by
    scale_rows: bool = False  # whether each row is then scaled by its sum of |x x'|


def polynomials(method: str, coefficients: str | Coefficients) -> Polynomials:
    """The set of that name, or the rows themselves.

    Args:
      method: named in errors.
      coefficients: "standard", "dion", "polar_express", "aol", or (a, b, c) of each step.

    Raises:
      ValueError: another name, no row, or a row that is not three numbers.
    """
    if isinstance(coefficients, str):
        if coefficients not in _SETS:
            raise ValueError(
                f"{method}: coefficients is {coefficients!r}; accepted: "
                f"{', '.join(map(repr, _SETS))}, or rows (a, b, c), one a step."
            )
        return _SETS[coefficients]()
    rows = tuple(coefficients)
    if not rows or any(np.shape(row) != (3,) for row in rows):
        raise ValueError(
            f"{method}: coefficients is {coefficients!r}; accepted: at least one row (a, b, c)."
        )
    return Polynomials(rows)


@functools.cache
def polar_express(
    steps: int = 5, *, smallest: float = 1e-3, safety: float = 1.02, cushion: float = 0.02
) -> Coefficients:
    """Each row the best approximation of 1 on the interval that the rows before it leave.

    Args:
      steps: number of rows.
      smallest: lower end of the first interval, whose upper end is 1.
      safety: every row but the last takes x / safety, room for rounding errors to grow.
      cushion: no interval begins below this part of its upper end, which keeps slopes moderate.
    """
    rows: list[tuple[float, float, float]] = []
    low, high = smallest, 1.0
    for step in range(steps):
        row = _best_quintic(max(low, cushion * high), high)
        if cushion * high > low:  # centred around 1 on the cushioned interval: centre it on all
            row = row * 2 / (_value(row, low) + _value(row, high))
        if step < steps - 1:
            row = row / safety ** np.array([1, 3, 5])
        low = float(_value(row, low))
        high = 2 - low
        a, b, c = row.tolist()
        rows.append((a, b, c))
    return tuple(rows)


def _value(row: np.ndarray, s: float) -> np.ndarray:
    return row @ s ** np.array([1, 3, 5])


def _best_quintic(low: float, high: float) -> np.ndarray:
    """(a, b, c) whose largest distance from 1 on [low, high] is least, by Remez exchange."""
    if low >= high * (1 - 5e-6):  # the exchange is singular; this is its limit
        return np.array([15 / 8, -10 / 8, 3 / 8]) / high ** np.array([1, 3, 5])
    points = low + (high - low) * np.array([0, 0.25, 0.75, 1])
    last, error = math.inf, 0.0
    while abs(last - error) > 1e-15:
        # Errors of one size and alternating sign at four points, then the extrema of that quintic.
        system = np.column_stack([points, points**3, points**5, [1, -1, 1, -1]])
        *row, new = np.linalg.solve(system, np.ones(4))
        last, error = error, float(new)
        a, b, c = row
        root = math.sqrt(9 * b * b - 20 * a * c)
        points[1:3] = np.sqrt((-3 * b + np.array([-root, root])) / (10 * c))
    return np.array([a, b, c])


_SETS = {
    "standard": lambda: Polynomials(STANDARD),
    "dion": lambda: Polynomials(DION),
    "polar_express": lambda: Polynomials(polar_express(), safety=1.02),
    "aol": lambda: Polynomials(AOL, scale_rows=True),
}


def symmetric_product(x: jax.Array, y: jax.Array, levels: int = 0) -> jax.Array:
    """x y' where that is known to be symmetric; x, y are (..., m, n)."""
    m = x.shape[-2]
    if levels == 0 or m % 2:
        return x @ y.mT
    top, bottom = slice(None, m // 2), slice(m // 2, None)
    a = symmetric_product(x[..., top, :], y[..., top, :], levels - 1)
    c = symmetric_product(x[..., bottom, :], y[..., bottom, :], levels - 1)
    b = x[..., bottom, :] @ y[..., top, :].mT
    upper, lower = jnp.concatenate([a, b.mT], -1), jnp.concatenate([b, c], -1)
    return jnp.concatenate([upper, lower], -2)


def normalized(x: jax.Array, safety: float = 1.0, eps: ArrayLike = 1e-7) -> jax.Array:
    """Each matrix of x divided by safety times its Frobenius norm plus eps."""
    wide = x.astype(trees.accumulator_dtype(x))
    norm = jnp.linalg.norm(wide, axis=(-2, -1), keepdims=True)
    return x / (safety * norm + trees.as_dtype(eps, norm.dtype)).astype(x.dtype)


def _with_gram(x: jax.Array, levels: int, scale_rows: bool = False) -> tuple[jax.Array, jax.Array]:
    """x and x x', the rows of both scaled by the sums of |x x'| if asked."""
    gram = symmetric_product(x, x, levels)
    if not scale_rows:
        return x, gram
    sums = jnp.sum(jnp.abs(gram), axis=-1, keepdims=True, dtype=trees.accumulator_dtype(gram))
    scale = jax.lax.rsqrt(jnp.maximum(sums, jnp.finfo(sums.dtype).tiny)).astype(x.dtype)
    return scale * x, scale * gram * scale.mT


def newton_schulz(
    x: jax.Array,
    coefficients: Coefficients = STANDARD,
    *,
    safety: float = 1.0,
    scale_rows: bool = False,
    eps: ArrayLike = 1e-7,
    levels: int = 0,
) -> jax.Array:
    """The plain form, for each matrix of x, in the dtype of x.

    Args:
      x: (..., m, n); fastest for m <= n, a tall matrix is transposed and back.
      coefficients: (a, b, c) of each step; their number is the number of steps.
      safety: factor of the Frobenius norm that x is divided by.
      scale_rows: whether each row is then divided by the square root of its sum of |x x'|.
      eps: added to that norm.
      levels: depth of the symmetric blocks.
    """
    if x.shape[-2] > x.shape[-1]:
        tall = functools.partial(newton_schulz, safety=safety, scale_rows=scale_rows, eps=eps)
        return tall(x.mT, coefficients, levels=levels).mT
    x = normalized(x, safety, eps)
    for i, (a, b, c) in enumerate(coefficients):
        x, s = _with_gram(x, levels, scale_rows and i == 0)
        x = a * x + (b * s + c * symmetric_product(s, s, levels)) @ x
    return x


def gram_newton_schulz(
    x: jax.Array,
    coefficients: Coefficients = STANDARD,
    *,
    safety: float = 1.0,
    scale_rows: bool = False,
    eps: ArrayLike = 1e-7,
    levels: int = 0,
    restarts: Sequence[int] | None = None,
) -> jax.Array:
    """The Gram form, for each matrix of x, in the dtype of x.

    Args:
      x: (..., m, n); worth it from n = 2 m on. A tall matrix is transposed and back.
      coefficients: (a, b, c) of each step; their number is the number of steps.
      safety: factor of the Frobenius norm that x is divided by.
      scale_rows: whether each row is then divided by the square root of its sum of |x x'|.
      eps: added to that norm.
      levels: depth of the symmetric blocks.
      restarts: steps, counted from 0, before which x x' is formed again; by default as
        few as leave at most three steps, and about equally many, between them.
    """
    if x.shape[-2] > x.shape[-1]:
        tall = functools.partial(gram_newton_schulz, scale_rows=scale_rows, restarts=restarts)
        return tall(x.mT, coefficients, safety=safety, eps=eps, levels=levels).mT
    if restarts is None:
        pieces = -(-len(coefficients) // 3)
        restarts = [-(-i * len(coefficients) // pieces) for i in range(1, pieces)]
    eye = jnp.eye(x.shape[-2], dtype=x.dtype)
    last = len(coefficients) - 1
    x, r = _with_gram(normalized(x, safety, eps), levels, scale_rows)
    q = None
    for i, (a, b, c) in enumerate(coefficients):
        if q is not None and i in restarts:
            x, r = _with_gram(q @ x, levels)
            q = None
        p = a * eye + b * r + c * symmetric_product(r, r, levels)
        q = p if q is None else symmetric_product(p, q, levels)
        if i < last and i + 1 not in restarts:
            r = symmetric_product(symmetric_product(p, r, levels), p, levels)
    return x if q is None else q @ x
