"""Experimental: products with w + s z for two signs of s, where w is read and z drawn once.

::

    z        = unit draw(word(key, key + offset)),  offset: flat row-major index into w
    products = x[i] @ (w + scales[i] z),  i = 0, 1

A perturbed weight is computed in float32 and rounded once to the dtype of w, as
`zeroth_order.perturb` does; the products are accumulated in float32 and rounded to the dtype of x
and w. `perturbed_product` is one such product; vmapped over two signs it is the pair.

*Kernel.* One block of columns of w at a time: chunks of it are drawn, perturbed by both scales and
multiplied while the next block is on its way. All tokens are in one block, since each block of
them would draw z anew. For TPUs; elsewhere, and where `regimes` says that it does not win, the
reference, which XLA compiles to two products that draw the noise as they read w on a TPU, and on a
CPU write both perturbed copies of w first.

*Differences.* Where the draw is exact (`noise`) the perturbed weights have the reference's bits;
the products may differ by the order of their sums.

*Derivatives.* Forward mode, by the reference's; `perturbed_product` has no reverse mode, which
`jax.custom_batching` does not offer.

*Cost.* Reads w once; no temporaries but x and the products. A w that is sliced from a stack, by a
scan over layers or by an index, is copied for the kernel first, which costs what it gains: give
`implementation="xla"` there.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import ArrayLike

from zeroth_order.kernels import regimes
from zeroth_order.noise import Noise, counters, exact_scale, word

CHUNK = 128  # rows that are drawn and multiplied at a time: what the registers and units are fed by


def perturbed_product(
    x: jax.Array,
    w: jax.Array,
    key: ArrayLike,
    scale: ArrayLike,
    noise: Noise,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """x @ (w + scale z); under vmap over two scales, with one w and key, `paired_product`.

    Args:
      x: (..., m). An axis that only x is batched along is one more of its leading axes.
      w: (m, n), float32 or bfloat16.
      key: of the block that w is: a uint32 scalar, as `noise.block_keys` gives them.
      scale: a scalar, of z of variance 1.
      noise: the distribution of z, such as `zeroth_order.rademacher`.
      implementation: of the pair: "xla", "pallas" (on a TPU alone), or None for what `regimes`
        chooses.

    Raises:
      ValueError: shapes do not match, or a dtype or the implementation is not accepted.

    >>> import jax, jax.numpy as jnp, zeroth_order
    >>> from zeroth_order.kernels.paired_product import perturbed_product
    >>> x, w = jnp.eye(2), jnp.ones((2, 2))
    >>> one = lambda s: perturbed_product(x, w, 3, s, zeroth_order.rademacher)
    >>> print(jax.vmap(one)(jnp.array([0.5, -0.5])).sum(axis=0))
    [[2. 2.]
     [2. 2.]]
    """
    _check("perturbed_product", x, w, implementation, x.ndim >= 1)
    key, scale = jnp.asarray(key, jnp.uint32), jnp.asarray(scale, jnp.float32)

    @jax.custom_batching.custom_vmap
    def product(x: jax.Array, w: jax.Array, key: jax.Array, scale: jax.Array) -> jax.Array:
        return reference(x, w, key, scale, noise)

    @product.def_vmap
    def _(
        size: int,
        batched: tuple[bool, ...],
        x: jax.Array,
        w: jax.Array,
        key: jax.Array,
        scale: jax.Array,
    ) -> tuple[jax.Array, bool]:
        shared = not (batched[1] or batched[2])
        if shared and not batched[3]:
            return perturbed_product(x, w, key, scale, noise, implementation=implementation), True
        if shared and size == 2:
            pair = x if batched[0] else jnp.stack([x, x])
            flat = pair.reshape(2, -1, w.shape[0])
            found = paired_product(flat, w, key, scale, noise, implementation=implementation)
            return found.reshape(*pair.shape[:-1], w.shape[1]), True
        axes = tuple(0 if b else None for b in batched)
        one = functools.partial(reference, noise=noise)
        return jax.vmap(one, axes)(x, w, key, scale), True

    return product(x, w, key, scale)


def paired_product(
    x: jax.Array,
    w: jax.Array,
    key: ArrayLike,
    scales: jax.Array,
    noise: Noise,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """(x[0] @ (w + scales[0] z), x[1] @ (w + scales[1] z)), stacked.

    Args:
      x: (2, tokens, m).
      w: (m, n), float32 or bfloat16.
      key: of the block that w is: a uint32 scalar, as `noise.block_keys` gives them.
      scales: (2,), of z of variance 1.
      noise: the distribution of z.
      implementation: "xla", "pallas" (on a TPU alone), or None for what `regimes` chooses.

    Raises:
      ValueError: shapes do not match, or a dtype or the implementation is not accepted.

    >>> import jax.numpy as jnp, zeroth_order
    >>> from zeroth_order.kernels.paired_product import paired_product
    >>> x, scales = jnp.ones((2, 1, 1)), jnp.array([0.5, -0.5])
    >>> pair = paired_product(x, jnp.ones((1, 2)), 3, scales, zeroth_order.rademacher)
    >>> print(pair.sum(axis=0))
    [[2. 2.]]
    """
    _check("paired_product", x, w, implementation, x.ndim == 3 and x.shape[0] == 2)
    key, scales = jnp.asarray(key, jnp.uint32), jnp.asarray(scales, jnp.float32)
    xla = functools.partial(reference_pair, noise=noise)
    kernel = jax.custom_jvp(functools.partial(pallas_pair, noise=noise))
    # Kernels have no derivatives here; those of the reference are of the same function.
    kernel.defjvp(lambda primals, tangents: jax.jvp(xla, primals, tangents))
    if implementation == "pallas":
        return kernel(x, w, key, scales)
    if implementation == "xla" or not regimes.pair_wins(x, w, noise):
        return xla(x, w, key, scales)
    return jax.lax.platform_dependent(x, w, key, scales, tpu=kernel, default=xla)


def reference(
    x: jax.Array, w: jax.Array, key: jax.Array, scale: jax.Array, noise: Noise
) -> jax.Array:
    """x @ (w + scale z) in plain XLA, which draws z where the product reads w."""
    z = noise.draw(word(key, counters(w.shape, key)))
    moved = w.astype(jnp.float32) + exact_scale(noise.unit * scale, noise.bits) * z
    product = jnp.dot(x, moved.astype(w.dtype), preferred_element_type=jnp.float32)
    return product.astype(jnp.result_type(x, w))


def reference_pair(
    x: jax.Array, w: jax.Array, key: jax.Array, scales: jax.Array, noise: Noise
) -> jax.Array:
    """Two products: vmapped, both perturbed copies of w would be written on a TPU too."""
    return jnp.stack([reference(x[i], w, key, scales[i], noise) for i in range(2)])


def pallas_pair(
    x: jax.Array,
    w: jax.Array,
    key: jax.Array,
    scales: jax.Array,
    noise: Noise,
    interpret: bool = False,
) -> jax.Array:
    """The kernel, for TPUs; interpreted on anything."""
    _, tokens, m = x.shape
    n = w.shape[1]
    rows, width = regimes.pair_blocks(tokens, m, n, w.dtype.itemsize)
    scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
    return pl.pallas_call(
        functools.partial(_kernel, noise=noise, columns=n),
        grid=(pl.cdiv(n, width), m // rows),
        in_specs=[
            scalars,
            scalars,
            pl.BlockSpec((2, tokens, rows), lambda j, k: (0, 0, k)),
            pl.BlockSpec((rows, width), lambda j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((2, tokens, width), lambda j, k: (0, 0, j)),
        out_shape=jax.ShapeDtypeStruct((2, tokens, n), jnp.result_type(x, w)),
        scratch_shapes=[pltpu.VMEM((2, tokens, width), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=regimes.VMEM_LIMIT,
        ),
        interpret=interpret,
    )(key[None], exact_scale(noise.unit * scales, noise.bits), x, w)


def _kernel(
    key: Any,
    scales: Any,
    x: Any,
    w: Any,
    out: Any,
    total: Any,
    *,
    noise: Noise,
    columns: int,
) -> None:
    """One block of w: its part of the products for both scales."""
    step = pl.program_id(1)
    rows, width = w.shape

    @pl.when(step == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    block = (step * rows).astype(jnp.uint32) * jnp.uint32(columns % 2**32)
    first = key[0] + block + (pl.program_id(0) * width).astype(jnp.uint32)
    for start in range(0, rows, CHUNK):
        stop = min(start + CHUNK, rows)
        shape = (stop - start, width)
        row, column = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
        offset = row * jnp.uint32(columns) + column + jnp.uint32(start * columns % 2**32)
        z = noise.draw(word(key[0], first + offset))
        value = w[start:stop, :].astype(jnp.float32)
        for i in range(2):
            moved = (value + scales[i] * z).astype(w.dtype)
            total[i] += jnp.dot(x[i, :, start:stop], moved, preferred_element_type=jnp.float32)

    @pl.when(step == pl.num_programs(1) - 1)
    def _() -> None:
        out[...] = total[...].astype(out.dtype)


def _check(
    caller: str, x: jax.Array, w: jax.Array, implementation: str | None, shaped: bool
) -> None:
    if not shaped or w.ndim != 2 or x.shape[-1] != w.shape[0]:
        accepted = "(2, tokens, m)" if caller == "paired_product" else "(..., m)"
        raise ValueError(
            f"{caller}: x has the shape {x.shape} and w {w.shape}; accepted: {accepted} and (m, n)."
        )
    if w.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"{caller}: w has the dtype {w.dtype}; accepted: float32 and bfloat16.")
    if implementation not in (None, "xla", "pallas"):
        raise ValueError(
            f"{caller}: implementation is {implementation!r}; accepted: None, 'xla', 'pallas'."
        )
