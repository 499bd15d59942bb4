"""Stochastic rounding, and the one place where parameters are written.

A float32 x between the neighbours a < b of bfloat16 becomes b with probability (x - a) / (b - a),
and a otherwise, so that the mean of round(x) is x: steps far below the spacing of bfloat16 still
move the mean. bfloat16 is the upper half of a float32: adding 16 random bits to the lower half and
dropping it rounds so, exactly.

*Differences.* A finite x beyond the largest bfloat16 is rounded to the nearest, since noise would
turn part of what still fits into infinity. Infinities and nan stay. Dtypes other than bfloat16 are
rounded to the nearest: float16 has another exponent, and float32 is what is added in.

*Cost.* No state; 2 random bytes a parameter and step where a key is given.

*Reference.* Gupta et al., Deep Learning with Limited Numerical Precision, 2015 (arXiv:1502.02551);
Zamirai et al., Revisiting BFloat16 Training, 2020 (arXiv:2010.06192).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim.trees import accumulator_dtype, as_dtype, named_key, path_string


def stochastic_round(
    key: jax.Array, x: jax.Array, dtype: jax.typing.DTypeLike = jnp.bfloat16
) -> jax.Array:
    """Round to bfloat16, up or down at random so that the mean is x.

    Args:
      key: a typed key.
      x: float32, or float64, which is rounded to float32 first; any shape.
      dtype: bfloat16. Any other dtype is rounded to the nearest, and the key is not used.

    >>> import jax, jax.numpy as jnp, optim
    >>> x = jnp.full(10_000, 1 + 2**-10)  # an eighth of the way from 1 to 1 + 2**-7
    >>> rounded = optim.stochastic_round(jax.random.key(0), x)
    >>> sorted({float(v) for v in rounded}), 0.11 < float((rounded > 1).mean()) < 0.14
    ([1.0, 1.0078125], True)
    """
    if jnp.dtype(dtype) != jnp.bfloat16:
        return x.astype(dtype)
    noise = jax.random.bits(named_key(key, "stochastic_round"), x.shape, jnp.uint16)
    return round_up_by(noise.astype(jnp.uint32), x)


def round_up_by(noise: jax.Array, x: jax.Array) -> jax.Array:
    """x in bfloat16, rounded away from zero where noise and the dropped bits exceed 16 bits.

    Args:
      noise: uint32 below 2^16, shaped as x.
      x: float32, or float64, which is rounded to float32 first.
    """
    x = x.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    kept = (bits + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(kept, jnp.float32)
    fits = jnp.isfinite(x) & jnp.isfinite(rounded)
    return jnp.where(fits, rounded, x).astype(jnp.bfloat16)


def apply_updates(
    params: optax.Params, updates: optax.Updates, *, key: jax.Array | None = None
) -> optax.Params:
    """Parameters plus updates: added in float32 at the least, written in the parameters' dtype.

    What is no float or complex number (integers, keys) stays as it is, and so do None and masked
    leaves and leaves whose update is one of these.

    Args:
      params: parameters of any dtype.
      updates: what a transformation returned, in any float dtype; like params.
      key: rounds bfloat16 parameters stochastically; without it they are rounded to the nearest.

    Raises:
      ValueError: the shapes of a parameter and its update differ.

    >>> import jax, jax.numpy as jnp, optim
    >>> params = {"w": jnp.ones(4096, jnp.bfloat16)}
    >>> updates = {"w": jnp.full(4096, 2**-9)}  # a quarter of the spacing
    >>> print(optim.apply_updates(params, updates)["w"].max())
    1
    >>> rounded = optim.apply_updates(params, updates, key=jax.random.key(1))["w"]
    >>> rounded.dtype, 0.2 < float((rounded > 1).mean()) < 0.3
    (dtype(bfloat16), True)
    """
    key = None if key is None else named_key(key, "apply_updates")

    def write(path: tuple[Any, ...], p: ArrayLike, u: ArrayLike | None) -> ArrayLike:
        if p is None or u is None or isinstance(u, optax.MaskedNode):
            return p
        if jnp.shape(p) != jnp.shape(u):
            raise ValueError(
                f"apply_updates: updates has shape {jnp.shape(u)} at {path_string(path)!r}; "
                f"accepted: that of the parameter, {jnp.shape(p)}."
            )
        p = jnp.asarray(p)
        if not jnp.issubdtype(p.dtype, jnp.inexact):
            return p
        dtype = accumulator_dtype(p)
        total = p.astype(dtype) + as_dtype(u, dtype)
        if key is None or p.dtype != jnp.bfloat16:
            return total.astype(p.dtype)
        return stochastic_round(named_key(key, path_string(path)), total, p.dtype)

    return jax.tree.map_with_path(write, params, updates, is_leaf=lambda x: x is None)
