"""Sparse directions: z only where the weights are small, or at random elements.

Sparse-MeZO perturbs and updates what is small in each layer, by a mask of the weights of now::

    z' = z  where |w| <= h,  0 elsewhere;  h: that quantile of |w| of the layer at the start

The mask is a function of the weights where they are read, so that none is stored and both sides of
an estimate share it. A random mask keeps each element with the chance 1 - sparsity, by words of its
own for the same addresses: the control of the former, and ZO-Bench's gradient sparsity.

*Differences.* (1) The layers' thresholds are exact quantiles of the leaf's block; ZO-Bench takes
them from a sample of all weights. (2) ZO-Bench's code draws its random mask by comparing a normal
number with the ratio, so that its sparsities 0.1 to 0.9 are 0.54 to 0.82; here they are what they
are called. (3) There a mask lives for a number of steps; here for the run or for one sample.

*Cost.* A comparison for each element, or as many operations as z has; no memory. Thresholds: one
sort a leaf, once.

*Reference.* Liu et al., Sparse MeZO: Less Parameters for Better Performance in Zeroth-Order LLM
Fine-Tuning, 2024 (arXiv:2402.15751); Zhang et al., Revisiting Zeroth-Order Optimization for
Memory-Efficient LLM Fine-Tuning, 2024 (arXiv:2402.11592), ZO-Bench/ZO-LLM@bf210fa,
zo-bench/gradient_pruning/pruning_utils.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from zeroth_order import noise
from zeroth_order.directions import Direction, Leaf, map_directed


def magnitude_thresholds(along: Direction, params: optax.Params, sparsity: ArrayLike) -> Any:
    """For each leaf and layer, the value below which the share 1 - sparsity of |w| lies.

    Args:
      along: a direction: which leaves, and which of their axes number layers.
      params: parameters, at the start.
      sparsity: the share that is not to move, 0 <= sparsity < 1; Sparse-MeZO's is 0.5 to 0.8.

    Returns:
      A tree like params, of float32 shaped as each leaf's stack; zeros for what stays.

    >>> import jax.numpy as jnp, zeroth_order
    >>> along, params = zeroth_order.direction(), {"w": jnp.array([-4.0, 1.0, 3.0, -2.0])}
    >>> thresholds = zeroth_order.magnitude_thresholds(along, params, 0.5)
    >>> sparse = zeroth_order.small_weights(along, thresholds)
    >>> print(zeroth_order.perturb(sparse, params, 3, 0.5)["w"])
    [-4.   0.5  3.  -1.5]
    """
    _check_sparsity("magnitude_thresholds", sparsity)

    def one(leaf: Leaf | None, value: Any) -> jax.Array:
        if leaf is None:
            return jnp.zeros(())
        value = jnp.asarray(value)
        size = jnp.abs(value).astype(jnp.float32).reshape(*value.shape[: leaf.stack], -1)
        share = 1 - jnp.asarray(sparsity, jnp.float32)
        return jnp.quantile(size, share, axis=-1, method="lower")

    return map_directed(one, along(params), params)


def small_weights(along: Direction, thresholds: Any) -> Direction:
    """The direction, 0 where the weight of now is larger than its threshold.

    Args:
      along: a direction.
      thresholds: as `magnitude_thresholds`, or a prefix of such a tree: numbers above 0.

    >>> import jax.numpy as jnp, zeroth_order
    >>> along = zeroth_order.small_weights(zeroth_order.direction(), 0.2)
    >>> print(zeroth_order.perturb(along, jnp.array([0.0, 0.1, 4.0, 8.0]), 3, 0.5))
    [-0.5  0.6  4.   8. ]
    """

    def of(params: optax.Params) -> Any:
        def one(leaf: Leaf | None, threshold: ArrayLike) -> Leaf | None:
            if leaf is None:
                return None

            def blocks(seed: ArrayLike, stack: tuple[int, ...]) -> Any:
                limit = jnp.broadcast_to(jnp.asarray(threshold, jnp.float32), stack)
                return leaf.blocks(seed, stack), limit

            def draw(block: Any, index: tuple[jax.Array, ...], weight: jax.Array) -> jax.Array:
                z, limit = leaf.draw(block[0], index, weight), block[1]
                return jnp.where(jnp.abs(weight).astype(jnp.float32) <= limit, z, 0)

            return leaf._replace(blocks=blocks, draw=draw, factors=None, draws=None)

        return map_directed(one, along(params), jax.tree.broadcast(thresholds, params))

    return of


def random_mask(along: Direction, sparsity: Any, seed: ArrayLike | None = None) -> Direction:
    """The direction, 0 at random elements.

    Args:
      along: a direction.
      sparsity: the share of elements that do not move, 0 <= sparsity < 1: a number, or a tree like
        the parameters, or a prefix of one.
      seed: of a mask that stays; None draws another for each sample.

    >>> import jax.numpy as jnp, zeroth_order
    >>> along = zeroth_order.random_mask(zeroth_order.direction(), 0.75, seed=0)
    >>> z = zeroth_order.perturb(along, {"w": jnp.zeros(10_000)}, 3, 1.0)["w"]
    >>> print(f"{(z != 0).mean():.2f}")
    0.25
    """
    for share in jax.tree.leaves(sparsity):
        _check_sparsity("random_mask", share)

    def of(params: optax.Params) -> Any:
        def one(leaf: Leaf | None, share: ArrayLike) -> Leaf | None:
            if leaf is None:
                return None
            # Words below it are masked.
            limit = (jnp.asarray(share, jnp.float32) * 2.0**32).astype(jnp.uint32)

            def blocks(of_sample: ArrayLike, stack: tuple[int, ...]) -> Any:
                own = noise.purpose(of_sample if seed is None else seed, "random_mask")
                return leaf.blocks(of_sample, stack), noise.block_keys(own, leaf.number, stack)

            def draw(block: Any, index: tuple[jax.Array, ...], weight: jax.Array) -> jax.Array:
                kept = noise.words(block[1], index, weight.shape) >= limit
                return jnp.where(kept, leaf.draw(block[0], index, weight), 0)

            return leaf._replace(blocks=blocks, draw=draw, factors=None, draws=None)

        return map_directed(one, along(params), jax.tree.broadcast(sparsity, params))

    return of


def _check_sparsity(caller: str, sparsity: ArrayLike) -> None:
    trees.check_fractions(caller, sparsity=sparsity)
