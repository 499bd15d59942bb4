"""Counter-based noise: z is a function of an element's address, so that it is never stored.

An element is at (leaf, block, offset): leaf = crc32 of its path, block = index over the stack axes
of the leaf (the layer), offset = flat index inside one layer's array. With `mix` a bijection of
32-bit words that scatters every input bit::

    key  = mix(mix(mix(seed) + leaf) + 0x9E3779B9 block)
    word = mix(mix(key + offset) ^ 0x9E3779B9 key)
    z    = draw(word)

Keys and words are arithmetic of 32-bit integers, of which no backend has its own; they are the same
whole or sharded, and whichever other parameters there are. Neither a block nor the number of blocks
may exceed 2^32; a stack of blocks may.

*Draws.* Of mean 0 and variance 1:

======================= ============ ============= ============================================
draw                    E z^4        scale z is    z
======================= ============ ============= ============================================
`rademacher`            1            exact         +-1
`popcount_normal`       2.94         exact [1]     (popcount(word) - 16) / sqrt(8), 33 values
`box_muller_normal`     3            rounded       |z| < 5.8; the reference for the normal
======================= ============ ============= ============================================

[1] where the scale has 19 significant bits, to which `exact_scale` rounds it. Where the product is
exact, w + scale z is rounded once, and a fused multiply-add gives the same bits as a product and a
sum; where it is not, another fusion may give other bits.

The fourth moment adds E z^4 - 3 times the diagonal part to the variance of an estimate: +-1 is the
best there, and the cheapest. Its vectors lie on the sphere of radius sqrt(n) of themselves.

*Trap.* An index array that does not depend on the layer is moved out of the scan over layers by the
compiler and kept, a word for every weight of a layer. Counters therefore start at the key:
`flat(index, shape, key)`.

*Quality.* The three draws pass a battery of moments, correlations of all pairs of 512 consecutive
seeds, lags, sums by coordinate, row and column (tests/zeroth_order/test_noise.py).

*Reference.* Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011. The rounds' constants
are Wellons' lowbias32 (nullprogram.com/blog/2018/07/31).
"""

import functools
import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

GOLDEN = 0x9E3779B9


class Noise(NamedTuple):
    """A distribution of z = unit draw(word)."""

    draw: Callable[[jax.Array], jax.Array]  # uint32 words -> float32
    unit: float  # of the draw: what makes the variance 1
    bits: int | None  # significant bits of a draw, an integer; None where it is no integer


def mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which every bit of x moves about half of the bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def leaf_number(path: str) -> int:
    """What stands for a leaf in its address, a function of its path alone."""
    return zlib.crc32(path.encode())


def block_keys(seed: ArrayLike, leaf: int, stack: tuple[int, ...]) -> jax.Array:
    """The key of every block: uint32 of shape `stack`."""
    first = mix(mix(jnp.asarray(seed, jnp.uint32)) + jnp.uint32(leaf))
    return mix(first + counters(stack) * jnp.uint32(GOLDEN))


def purpose(seed: ArrayLike, name: str) -> jax.Array:
    """The seed of a second stream of words for the same addresses, such as those to round by."""
    return mix(jnp.asarray(seed, jnp.uint32) + jnp.uint32(leaf_number(name)))


def axes(shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """The index along each axis, uint32, of length one along the others.

    Iotas, hence elementwise: they fuse with what reads them, and are sharded as that is.
    """

    def along(axis: int) -> jax.Array:
        lengths = [1] * len(shape)
        lengths[axis] = shape[axis]
        return jax.lax.broadcasted_iota(jnp.uint32, lengths, axis)

    return tuple(along(axis) for axis in range(len(shape)))


def flat(index: tuple[jax.Array, ...], shape: tuple[int, ...], start: ArrayLike = 0) -> jax.Array:
    """start + row-major index into an array of this shape, modulo 2^32.

    The length of the first axis does not matter.
    """
    total, stride = jnp.asarray(start, jnp.uint32), 1
    strides = []
    for length in reversed(shape):
        strides.append(stride % 2**32)
        stride *= length
    for one, by in zip(index, reversed(strides), strict=True):
        total = total + one * jnp.uint32(by)
    return total


def counters(shape: tuple[int, ...], start: ArrayLike = 0) -> jax.Array:
    """start + row-major index, modulo 2^32: uint32 of this shape."""
    return jnp.broadcast_to(flat(axes(shape), shape, start), shape)


def word(key: jax.Array, counter: jax.Array) -> jax.Array:
    """32 random bits for each counter = key + offset; the key is broadcast."""
    return mix(mix(counter) ^ (key * jnp.uint32(GOLDEN)))


def words(key: jax.Array, index: tuple[jax.Array, ...], shape: tuple[int, ...]) -> jax.Array:
    """A word for each element of blocks, the trailing axes of `shape`, by keys that broadcast."""
    block = shape[len(shape) - len(index) :]
    return word(key, flat(index, block, key))


def another(bits: jax.Array) -> jax.Array:
    """Words for a second use of the same addresses."""
    return mix(bits + jnp.uint32(0x85EBCA6B))


def _sign(bits: jax.Array) -> jax.Array:
    one = jnp.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type((bits & jnp.uint32(0x80000000)) | one, jnp.float32)


def _ones(bits: jax.Array) -> jax.Array:
    # By way of int32: kernels on TPUs do not convert uint32 to float.
    return (jax.lax.population_count(bits).astype(jnp.int32) - 16).astype(jnp.float32)


def _fraction(bits: jax.Array) -> jax.Array:
    """In (0, 1): the middles of 2^23 intervals."""
    return ((bits >> 9).astype(jnp.int32).astype(jnp.float32) + 0.5) * 2.0**-23


def _box_muller(bits: jax.Array) -> jax.Array:
    radius = jnp.sqrt(-2 * jnp.log(_fraction(bits)))
    return radius * jnp.cos(2 * jnp.pi * _fraction(another(bits)))


rademacher = Noise(_sign, 1.0, 1)
popcount_normal = Noise(_ones, 8**-0.5, 5)
box_muller_normal = Noise(_box_muller, 1.0, None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def exact_scale(scale: jax.Array, bits: int | None) -> jax.Array:
    """The scale, rounded in float32 so that its product with integers of so many bits is exact.

    Its derivative is one.
    """
    if bits is None or bits == 1 or scale.dtype != jnp.float32:
        return scale
    pattern = jax.lax.bitcast_convert_type(scale, jnp.uint32)
    half = jnp.uint32(1 << (bits - 1))
    rounded = (pattern + half) >> jnp.uint32(bits) << jnp.uint32(bits)
    return jax.lax.bitcast_convert_type(rounded, jnp.float32)


@exact_scale.defjvp
def _as_identity(
    bits: int | None, scale: tuple[jax.Array], tangent: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return exact_scale(scale[0], bits), tangent[0]
