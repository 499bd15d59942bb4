"""Experimental: where the kernels are used, by arithmetic and by the TPU compiler's schedules.

Work is counted in cycles of one core for 1024 weights, one vector register of float32. What the
vector units need is read off the compiler's final schedules for v5e and v5p, which are alike, for
+-1 and bfloat16; `experiments.benchmarks.zeroth_order_kernels_ahead` prints them::

    the pair    kernel 7.7 for both signs      XLA 6.1 or more for each sign
    the update  kernel 9.5 + 5.9 a direction   XLA 9.0 + 6.2 a direction up to 32, 7.5 to 10 beyond

A product also needs 2 tokens flops a weight, and what is read comes at the memory's rate. The units
work side by side, so that the slowest is the time of a fused program. Memory never is: at 2 bytes
it takes 3.8 of these cycles on v5e, 2.6 on v5p.

*The pair* draws the noise once for two signs: 1.6 times faster by arithmetic up to 256 tokens, 1.6
to 1.9 by the schedules. From about 250 tokens on the matrix units are the limit of the kernel, from
about 400 that of XLA too, and nothing is left to win (schedules still say 1.2 at 512). A layer that
is sliced from a stack is copied for the kernel first, 7.5 cycles on v5e and 5.2 on v5p, while XLA
slices as it reads: nothing is won there, and no rule can see it.

*The update* in XLA is one fused pass, in place, with its vector units full: the kernel cannot win
up to 32 directions. Beyond, XLA schedules one register at a time, 1.25 to 1.6 times slower; at 128
it also keeps the float32 sum between two fusions. From 32 directions on it compiles for 8 s or
more, the kernel for less than one.

No TPU ran any of this, and no GPU was at hand: the kernels are for TPUs, and GPUs and CPUs have the
XLA form. Which chip a program is for is not known when it is traced; the rules hold for both.
"""

from typing import NamedTuple

import jax

from zeroth_order.noise import Noise

VMEM_LIMIT = 64 * 2**20  # bytes; the chips have more
MOST_TOKENS = 256
MOST_DIRECTIONS_OF_XLA = 32
MOST_ROWS = 8192  # whose chunks are unrolled: the schedule of one block has two bundles a row
LEAST_WEIGHTS = 2**20  # below, starting a kernel takes as long as its work


class Chip(NamedTuple):
    """What a TPU chip can do, from its data sheet."""

    hertz: float
    cores: int
    bytes_per_second: float
    flops_per_second: float  # in bfloat16

    def vector_seconds(self, cycles: float) -> float:
        """Of a weight whose register of 1024 takes so many cycles of a core."""
        return cycles / (1024 * self.hertz * self.cores)


CHIPS = {"v5e": Chip(1.5e9, 1, 819e9, 197e12), "v5p": Chip(1.75e9, 2, 2765e9, 459e12)}


def pair_speedup(chip: Chip, tokens: int, itemsize: int) -> float:
    """How many times faster the kernel is than two fused products, by arithmetic."""
    memory, product = itemsize / chip.bytes_per_second, 2 * tokens / chip.flops_per_second
    kernel = max(memory, 2 * product, chip.vector_seconds(7.7))
    return 2 * max(memory, product, chip.vector_seconds(6.1)) / kernel


def update_speedup(chip: Chip, directions: int, itemsize: int) -> float:
    """How many times faster the kernel is than XLA's fused update, by arithmetic."""
    memory = 2 * itemsize / chip.bytes_per_second
    each = 6.2 if directions <= MOST_DIRECTIONS_OF_XLA else 7.5
    xla = chip.vector_seconds(9.0 + each * directions)
    return max(memory, xla) / max(memory, chip.vector_seconds(9.5 + 5.9 * directions))


def pair_wins(x: jax.Array, w: jax.Array, noise: Noise) -> bool:
    """Whether the kernel is to multiply x, of shape (2, tokens, m), by perturbed w, on a TPU."""
    _, tokens, m = x.shape
    rows, width = pair_blocks(tokens, m, w.shape[1], w.dtype.itemsize)
    return (
        tokens <= MOST_TOKENS
        and w.size >= LEAST_WEIGHTS
        and x.dtype == w.dtype
        and noise.bits is not None  # logarithms and cosines of a kernel have bits of their own
        and min(m, 1024) <= rows <= MOST_ROWS  # fewer do not overlap drawing and multiplying
        and m % 128 == w.shape[1] % 128 == 0  # others are laid out anew for a kernel
        and pair_bytes(tokens, rows, width, w.dtype.itemsize) <= VMEM_LIMIT
    )


def update_wins(w: jax.Array, keys: jax.Array | jax.ShapeDtypeStruct, noise: Noise) -> bool:
    """Whether the kernel is to add noise of these keys, (directions, *stack), to w, on a TPU."""
    block = w.shape[keys.ndim - 1 :]
    return (
        keys.shape[0] > MOST_DIRECTIONS_OF_XLA
        and len(block) == 2
        and block[0] % 32 == block[1] % 128 == 0  # others are laid out anew for a kernel
        and block[0] * block[1] >= LEAST_WEIGHTS
        and noise.bits is not None
    )


def pair_blocks(tokens: int, m: int, n: int, itemsize: int) -> tuple[int, int]:
    """Rows and columns of w at a time: rows divide m, so that none is read beyond its end."""
    width = min(256, n // 128 * 128) or n
    candidates = [r for r in range(128, min(m, MOST_ROWS) + 1, 128) if m % r == 0]
    fit = [r for r in candidates if pair_bytes(tokens, r, width, itemsize) <= VMEM_LIMIT]
    return max(fit, default=m), width


def pair_bytes(tokens: int, rows: int, width: int, itemsize: int) -> int:
    """Of the kernel's memory on the chip: two buffers of each block, and the sums in float32."""
    blocks = 2 * tokens * (rows + width) + rows * width
    return 2 * itemsize * blocks + 8 * tokens * width


def update_blocks(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a block at a time."""
    return min(256, rows // 32 * 32), min(512, columns // 128 * 128)
