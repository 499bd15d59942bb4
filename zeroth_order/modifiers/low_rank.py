"""Low-rank directions: the noise of a matrix is A B' / sqrt(rank), with A and B of +-1.

    z[i, j] = sum over r of a[i, r] b[j, r] / sqrt(rank)

has mean 0, variance 1 and uncorrelated elements, like full noise, but a perturbed product is one of
the weights, which all perturbations share, and a thin one (`zeroth_order.product`)::

    x (W + s A B') = x W + s (x A) B'

What is no matrix inside its block (norm scales, biases) has full noise of +-1.

*Differences.* From EGGROLL and LOZO: (1) A and B are +-1, so that their sums are integers and an
update is exact in float32; there, normal. (2) Both are drawn anew for each sample; LOZO keeps one
of them for some steps, and takes no 1/sqrt(rank).

*Cost.* For each element 2 rank words where z is written out; rank (rows + columns) words and
products where a model multiplies by `zeroth_order.product`.

*Reference.* Sarkar et al., Evolution Strategies at the Hyperscale, 2025 (arXiv:2511.16652); Chen
et al., Enhancing Zeroth-order Fine-tuning for Language Models with Low-rank Structures, 2024
(arXiv:2410.07698). From the papers alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim import trees
from zeroth_order import noise
from zeroth_order.directions import Direction, Leaf, map_directed


def low_rank(along: Direction, rank: int = 1) -> Direction:
    """The direction with noise of low rank for the leaves whose blocks are matrices.

    Args:
      along: a direction of +-1, `zeroth_order.direction`: which leaves, and which axes are stacked.
      rank: of each matrix's noise.

    Raises:
      ValueError: rank is below 1.

    >>> import jax.numpy as jnp, zeroth_order
    >>> along = zeroth_order.low_rank(zeroth_order.direction(), rank=1)
    >>> z = zeroth_order.perturb(along, {"w": jnp.zeros((4, 6))}, 3, 1.0)["w"]
    >>> print(jnp.linalg.matrix_rank(z), jnp.unique(z))
    1 [-1.  1.]
    """
    trees.check_at_least("low_rank", 1, rank=rank)

    def of(params: optax.Params) -> Any:
        def one(leaf: Leaf | None, value: Any) -> Leaf | None:
            if leaf is None or jnp.ndim(value) - leaf.stack != 2:
                return leaf

            def draw(key: jax.Array, index: tuple[jax.Array, ...], weight: jax.Array) -> jax.Array:
                rows, columns = index
                terms = (_sign(key, 0, rows, r) * _sign(key, 1, columns, r) for r in range(rank))
                return sum(terms, jnp.zeros((), jnp.float32))

            def factors(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
                a, b = (jnp.arange(length, dtype=jnp.uint32) for length in shape)
                columns = [(_sign(key, 0, a, r), _sign(key, 1, b, r)) for r in range(rank)]
                first, second = zip(*columns, strict=True)
                return jnp.stack(first, 1), jnp.stack(second, 1)

            unit = jnp.asarray(leaf.scale) * rank**-0.5
            bits = int(rank).bit_length()
            return leaf._replace(draw=draw, factors=factors, scale=unit, bits=bits, draws=None)

        return map_directed(one, along(params), params)

    return of


def _sign(key: jax.Array, side: int, index: jax.Array, r: int) -> jax.Array:
    """+-1 of A (side 0) or B (side 1), column r. Counters start at a key of their own."""
    own = noise.mix(key + jnp.uint32((2 * r + side + 1) * noise.GOLDEN % 2**32))
    return noise.rademacher.draw(noise.word(own, own + index))
