"""Newton-Schulz: the nearest semi-orthogonal matrix by odd quintic polynomials.

For x of shape (m, n), m <= n, divided by a bound of its largest singular value, a step maps every
singular value s to a s + b s^3 + c s^5 and leaves the singular vectors alone::

    x = x / (safety |x|_F + eps)
    for a, b, c in coefficients:  x = a x + (b x x' + c (x x')^2) x

*Forms.* `plain` does that. `gram` iterates on the m x m matrix x x' and applies the accumulated
factor to x at the end and before each step in `restarts`, where x x' is formed again. In exact
arithmetic the two are equal. In bfloat16 the restart is not optional: without it, or a step
earlier, singular values far above 1 appear.

*Symmetric products.* x x' is computed by blocks, the upper ones mirrored from the lower ones,
`levels` deep: (1 + 2^-levels) / 2 of the multiplications.

*Cost.* Multiplications for five steps: plain 20 m^2 n + 10 m^3, gram 8 m^2 n + 28 m^3 with one
restart. No state.

*Reference.* Bernstein and Newhouse, Old Optimizer, New Norm: An Anthology, 2024 (arXiv:2409.20325);
KellerJordan/Muon@857d1adc159e, muon.py.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from optim import trees

Coefficients = Sequence[tuple[float, float, float]]

STANDARD: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5


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


def normalized(x: jax.Array, safety: float = 1.0, eps: float = 1e-7) -> jax.Array:
    """Each matrix of x divided by safety times its Frobenius norm plus eps."""
    norm = jnp.linalg.norm(x.astype(trees.accumulator_dtype(x)), axis=(-2, -1), keepdims=True)
    return x / (safety * norm + eps).astype(x.dtype)


def newton_schulz(
    x: jax.Array,
    coefficients: Coefficients = STANDARD,
    *,
    safety: float = 1.0,
    eps: float = 1e-7,
    levels: int = 0,
) -> jax.Array:
    """The plain form, for each matrix of x, in the dtype of x.

    Args:
      x: (..., m, n); fastest for m <= n, a tall matrix is transposed and back.
      coefficients: (a, b, c) of each step; their number is the number of steps.
      safety: factor of the Frobenius norm that x is divided by.
      eps: added to that norm.
      levels: depth of the symmetric blocks.
    """
    if x.shape[-2] > x.shape[-1]:
        return newton_schulz(x.mT, coefficients, safety=safety, eps=eps, levels=levels).mT
    x = normalized(x, safety, eps)
    for a, b, c in coefficients:
        s = symmetric_product(x, x, levels)
        x = a * x + (b * s + c * symmetric_product(s, s, levels)) @ x
    return x


def gram_newton_schulz(
    x: jax.Array,
    coefficients: Coefficients = STANDARD,
    *,
    safety: float = 1.0,
    eps: float = 1e-7,
    levels: int = 0,
    restarts: Sequence[int] = (3,),
) -> jax.Array:
    """The Gram form, for each matrix of x, in the dtype of x.

    Args:
      x: (..., m, n); worth it from n = 2 m on. A tall matrix is transposed and back.
      coefficients: (a, b, c) of each step; their number is the number of steps.
      safety: factor of the Frobenius norm that x is divided by.
      eps: added to that norm.
      levels: depth of the symmetric blocks.
      restarts: steps, counted from 0, before which x x' is formed again.
    """
    if x.shape[-2] > x.shape[-1]:
        tall = functools.partial(gram_newton_schulz, coefficients=coefficients, restarts=restarts)
        return tall(x.mT, safety=safety, eps=eps, levels=levels).mT
    x = normalized(x, safety, eps)
    eye = jnp.eye(x.shape[-2], dtype=x.dtype)
    last = len(coefficients) - 1
    r, q = symmetric_product(x, x, levels), None
    for i, (a, b, c) in enumerate(coefficients):
        if q is not None and i in restarts:
            x = q @ x
            r, q = symmetric_product(x, x, levels), None
        p = a * eye + b * r + c * symmetric_product(r, r, levels)
        q = p if q is None else symmetric_product(p, q, levels)
        if i < last and i + 1 not in restarts:
            r = symmetric_product(symmetric_product(p, r, levels), p, levels)
    return x if q is None else q @ x
