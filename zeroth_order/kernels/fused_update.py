"""Experimental: w plus many multiples of noise, rounded stochastically, in one pass and in place.

For a block w with key k_j for direction j, and r for the rounding, at every flat offset o::

    total = w + sum over j of coefficients[j] unit draw(word(k_j, k_j + o))
    out   = total, to float32; or to bfloat16 by the upper 16 bits of word(r, r + o)

The sum is in float32, in the order of the directions; these are the bits of `zeroth_order.apply`,
which on a TPU comes here with more than 32 directions.

*Kernel.* Blocks of w stay on the chip while a loop draws the directions. For TPUs; elsewhere, and
where `regimes` says that it does not win, the reference, in which XLA has every direction unrolled.

*Cost.* Reads and writes w once; 22 vector operations for a weight and direction and about 35 for
the rounding. The reference costs the same up to 32 directions; what it costs beyond is in
`regimes`. Its compile time grows with the directions, the kernel's does not.

*Reference.* `optim.quantized.stochastic_rounding`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from optim.quantized.stochastic_rounding import round_up_by
from zeroth_order.kernels import regimes
from zeroth_order.noise import Noise, counters, exact_scale, word

CHUNK = 32  # rows that are held in registers while the directions are drawn
UNROLL = 4  # directions a turn of the loop


def fused_update(
    w: jax.Array,
    keys: jax.Array,
    coefficients: jax.Array,
    noise: Noise,
    rounding: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """w + sum over j of coefficients[j] z_j, in place where w is donated.

    Args:
      w: (*stack, ...), float32 or bfloat16; blocks of a stack have keys of their own.
      keys: (directions, *stack), uint32, as `noise.block_keys` gives them.
      coefficients: (directions, *stack), or (directions,) for all blocks, of z of variance 1.
      noise: the distribution of z, such as `zeroth_order.rademacher`.
      rounding: (*stack), uint32: keys of the words that round bfloat16; None: to the nearest.
      implementation: "xla", "pallas" (on a TPU alone), or None for what `regimes` chooses.

    Raises:
      ValueError: shapes do not match, or a dtype or the implementation is not accepted.

    >>> import jax.numpy as jnp, zeroth_order
    >>> from zeroth_order.kernels.fused_update import fused_update
    >>> w, keys = jnp.ones((1, 4)), jnp.arange(2, dtype=jnp.uint32)
    >>> print(fused_update(w, keys, jnp.array([0.5, 0.25]), zeroth_order.rademacher))
    [[1.75 1.75 1.25 1.25]]
    """
    _check(w, keys, coefficients, rounding, implementation)
    stack = keys.shape[1:]
    coefficients = coefficients.astype(jnp.float32)
    spread = coefficients.reshape(coefficients.shape + (1,) * (keys.ndim - coefficients.ndim))
    scales = exact_scale(jnp.broadcast_to(noise.unit * spread, keys.shape), noise.bits)
    stochastic = rounding is not None and w.dtype == jnp.bfloat16
    words = jnp.zeros(stack, jnp.uint32) if rounding is None else rounding
    xla = functools.partial(reference, noise=noise, stochastic=stochastic)
    kernel = jax.custom_jvp(functools.partial(pallas_update, noise=noise, stochastic=stochastic))
    # Kernels have no derivatives here; those of the reference are of the same function.
    kernel.defjvp(lambda primals, tangents: jax.jvp(xla, primals, tangents))
    if implementation == "pallas":
        return kernel(w, keys, scales, words)
    if implementation == "xla" or not regimes.update_wins(w, keys, noise):
        return xla(w, keys, scales, words)
    return jax.lax.platform_dependent(w, keys, scales, words, tpu=kernel, default=xla)


def reference(
    w: jax.Array,
    keys: jax.Array,
    scales: jax.Array,
    rounding: jax.Array,
    noise: Noise,
    stochastic: bool,
) -> jax.Array:
    """The update in plain XLA. Unrolled: a loop over directions would keep a copy of the sum."""
    block = w.shape[keys.ndim - 1 :]

    def spread(a: jax.Array) -> jax.Array:
        return a.reshape(a.shape + (1,) * len(block))

    def words(key: jax.Array) -> jax.Array:
        return word(spread(key), spread(key) + counters(block))

    total = w.astype(jnp.float32)
    for j in range(keys.shape[0]):
        total = total + spread(scales[j]) * noise.draw(words(keys[j]))
    if not stochastic:
        return total.astype(w.dtype)
    return round_up_by(words(rounding) >> 16, total)


def pallas_update(
    w: jax.Array,
    keys: jax.Array,
    scales: jax.Array,
    rounding: jax.Array,
    noise: Noise,
    stochastic: bool,
    interpret: bool = False,
) -> jax.Array:
    """The kernel, for TPUs and blocks that are matrices; interpreted on anything."""
    directions, blocks = keys.shape[0], keys[0].size
    stacked = w.reshape(blocks, *w.shape[keys.ndim - 1 :])
    rows, width = regimes.update_blocks(*stacked.shape[1:])
    scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
    tile = pl.BlockSpec((None, rows, width), lambda b, i, j: (b, i, j))
    updated = pl.pallas_call(
        functools.partial(_kernel, noise=noise, stochastic=stochastic, columns=stacked.shape[2]),
        grid=(blocks, pl.cdiv(stacked.shape[1], rows), pl.cdiv(stacked.shape[2], width)),
        in_specs=[scalars, scalars, scalars, tile],
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct(stacked.shape, w.dtype),
        input_output_aliases={3: 0},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3),
        interpret=interpret,
    )(
        keys.reshape(directions, -1).T,
        scales.reshape(directions, -1).T,
        rounding.reshape(-1),
        stacked,
    )
    return updated.reshape(w.shape)


def _kernel(
    keys: Any,
    scales: Any,
    rounding: Any,
    w: Any,
    out: Any,
    *,
    noise: Noise,
    stochastic: bool,
    columns: int,
) -> None:
    """One tile of a block, in chunks of rows."""
    block, i, j = (pl.program_id(axis) for axis in range(3))
    rows, width = w.shape
    shape = (CHUNK, width)
    row, column = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
    inside = row * jnp.uint32(columns) + column + (j * width).astype(jnp.uint32)

    def chunk(c: jax.Array, carry: None) -> None:
        at = pl.ds(pl.multiple_of(c * CHUNK, CHUNK), CHUNK)
        offset = inside + (i * rows + c * CHUNK).astype(jnp.uint32) * jnp.uint32(columns)

        def add(d: jax.Array, total: jax.Array) -> jax.Array:
            key = keys[block, d]
            return total + scales[block, d] * noise.draw(word(key, key + offset))

        start = w[at, :].astype(jnp.float32)
        total = jax.lax.fori_loop(0, keys.shape[1], add, start, unroll=UNROLL)
        if stochastic:
            key = rounding[block]
            out[at, :] = round_up_by(word(key, key + offset) >> 16, total)
        else:
            out[at, :] = total.astype(out.dtype)

    jax.lax.fori_loop(0, rows // CHUNK, chunk, None)


def _check(
    w: jax.Array,
    keys: jax.Array,
    coefficients: jax.Array,
    rounding: jax.Array | None,
    implementation: str | None,
) -> None:
    stack = keys.shape[1:]
    if keys.ndim == 0 or w.shape[: len(stack)] != stack:
        raise ValueError(
            f"fused_update: keys has the shape {keys.shape} and w {w.shape}; "
            f"accepted: (directions, *stack) and (*stack, ...)."
        )
    if coefficients.shape not in (keys.shape, keys.shape[:1]):
        raise ValueError(
            f"fused_update: coefficients has the shape {coefficients.shape}; "
            f"accepted: {keys.shape[:1]} or that of keys, {keys.shape}."
        )
    if rounding is not None and rounding.shape != stack:
        raise ValueError(
            f"fused_update: rounding has the shape {rounding.shape}; "
            f"accepted: that of the stack, {stack}."
        )
    if w.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(
            f"fused_update: w has the dtype {w.dtype}; accepted: float32 and bfloat16."
        )
    if implementation not in (None, "xla", "pallas"):
        raise ValueError(
            f"fused_update: implementation is {implementation!r}; accepted: None, 'xla', 'pallas'."
        )
