"""The inverse of a triangular matrix by products alone, which batches well.

Of blocks twice as wide, from those on the diagonal that are inverted already::

    [A 0]^-1   [   A^-1         0  ]
    [B C]    = [-C^-1 B A^-1   C^-1]

*Differences.* From `jax.scipy.linalg.solve_triangular` with the identity: that is LAPACK's on a CPU
for one matrix, but a loop over columns for a batch. Both have an error of the order of the
condition number times rounding.

*Cost.* About n^3 multiplications, in 2 log2(n) batched products.

*Reference.* Higham, Accuracy and stability of numerical algorithms, 2002, section 14.2.
"""

import jax
import jax.numpy as jnp


def lower_inverse(matrix: jax.Array) -> jax.Array:
    """The inverse of (n, n), of which the lower triangle is read."""
    n = len(matrix)
    size = 1 << max(n - 1, 0).bit_length()
    # Ones on the diagonal after it leave the inverse of the rest alone.
    padded = jnp.eye(size, dtype=matrix.dtype).at[:n, :n].set(matrix)
    inverse = (1 / jnp.diagonal(padded)).reshape(size, 1, 1)
    width = 1
    while width < size:
        pairs = size // (2 * width)
        blocks = padded.reshape(pairs, 2, width, pairs, 2, width)
        each = jnp.arange(pairs)
        below = blocks[each, 1, :, each, 0, :]
        first, last = inverse[0::2], inverse[1::2]
        corner = -jnp.matmul(
            jnp.matmul(last, below, precision="highest"), first, precision="highest"
        )
        upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=2)
        inverse = jnp.concatenate([upper, jnp.concatenate([corner, last], axis=2)], axis=1)
        width *= 2
    return inverse[0, :n, :n]
