"""Directions on the sphere: noise scaled so that its length is the square root of its size.

    z' = sqrt(d) z / |z|,  d: elements that are perturbed, |z|^2: the sum over all of them

with normal z uniform on the sphere of radius sqrt(d). With +-1 and no mask |z|^2 is d already.

*Cost.* One more pass of draws for each sample and use, to find the length. The product with the
scale is rounded: bits depend on the order of that sum.

*Reference.* Malladi et al., Fine-Tuning Language Models with Just Forward Passes, 2023
(arXiv:2305.17333), whose theory is of this z.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from zeroth_order.directions import Direction, Leaf, map_directed, of_all, squared_length


def sphere(along: Direction) -> Direction:
    """The direction, of length sqrt(d) for every seed.

    >>> import jax.numpy as jnp, zeroth_order
    >>> along = zeroth_order.sphere(zeroth_order.direction(zeroth_order.popcount_normal))
    >>> params = {"v": jnp.zeros(40), "w": jnp.zeros(60)}
    >>> z = zeroth_order.perturb(along, params, 3, 1.0)
    >>> print(f"{jnp.sum(z['v'] ** 2) + jnp.sum(z['w'] ** 2):.2f}")
    100.00
    """

    def of(params: optax.Params) -> Any:
        leaves = along(params)
        size = sum(jnp.size(value) for _, value in of_all(leaves, params))

        def factor(seed: ArrayLike) -> jax.Array:
            return jnp.sqrt(size / squared_length(leaves, params, seed)).astype(jnp.float32)

        def one(leaf: Leaf | None) -> Leaf | None:
            if leaf is None:
                return None

            def blocks(seed: ArrayLike, stack: tuple[int, ...]) -> Any:
                return leaf.blocks(seed, stack), jnp.broadcast_to(factor(seed), stack)

            def draw(block: Any, index: tuple[jax.Array, ...], weight: jax.Array) -> jax.Array:
                return block[1] * leaf.draw(block[0], index, weight)

            return leaf._replace(blocks=blocks, draw=draw, bits=None, factors=None, draws=None)

        return map_directed(one, leaves)

    return of
