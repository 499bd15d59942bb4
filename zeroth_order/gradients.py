"""Gradients that are seeds: a seed and a few coefficients, whatever the size of the model.

Sample j of an estimate with seed s is the z of the seed s + j, read through a direction::

    SeededGradient(seed, coefficients):  sum over j of coefficients[j] z(seed + j)

Of many steps at once, seed is a vector and coefficients a row for each of it. `apply` adds a
multiple of it to the parameters in one pass, each read and written once; `materialize` writes it
out, for optimizers that want a gradient.

*Numbers.* Arithmetic is in float32, or the parameter's wider dtype, and is rounded once to the
parameter's dtype. With `stochastic` bfloat16 is rounded up or down at random, by bits that are a
function of the gradient's seed and the same addresses: an update far below the spacing of bfloat16
still moves the mean, where rounding to the nearest would move only the smallest weights, if any.

*Bits.* Where the draw is exact (`noise`) the same seed and coefficients give the same parameters on
every backend and sharding. A weight decay is another product, and is not exact.

*Cost.* Of `apply`: a pass over the parameters, about 20 integer operations for an element and
sample, no memory; beyond 16 samples a loop, which keeps one leaf in float32. On a TPU matrices of
more than 32 samples are a kernel's (`zeroth_order.kernels`, experimental), which does not.

*Reference.* The restored perturbations that this replaces: Malladi et al., Fine-Tuning Language
Models with Just Forward Passes, 2023 (arXiv:2305.17333).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from optim.quantized.stochastic_rounding import round_up_by
from zeroth_order import noise
from zeroth_order.directions import Direction, Leaf, behind, drawn, map_directed
from zeroth_order.kernels.fused_update import fused_update
from zeroth_order.kernels.regimes import update_wins

UNROLLED = 16  # samples that are added without a loop, which would keep the sum in memory


class SeededGradient(NamedTuple):
    """An estimate of a gradient, read through a direction."""

    seed: jax.Array  # (), uint32: of the first sample; or (steps,)
    coefficients: jax.Array  # (samples,), float32 or wider; or (steps, samples)


def materialize(along: Direction, gradient: SeededGradient, params: optax.Params) -> Any:
    """The estimate written out, like the parameters in float32 or wider; zeros for what stays.

    >>> import jax.numpy as jnp, zeroth_order
    >>> estimate = zeroth_order.SeededGradient(jnp.uint32(3), jnp.array([0.5]))
    >>> print(zeroth_order.materialize(zeroth_order.direction(), estimate, {"w": jnp.ones(4)})["w"])
    [ 0.5 -0.5 -0.5  0.5]
    """

    def one(leaf: Leaf | None, value: Any) -> Any:
        value = jnp.asarray(value)
        if leaf is None:
            return jnp.zeros(value.shape, trees.accumulator_dtype(value))
        return written(leaf, value, gradient)

    return map_directed(one, along(params), params)


def apply(
    along: Direction,
    gradient: SeededGradient,
    params: optax.Params,
    *,
    rate: ArrayLike = 1.0,
    decay: Any = 0.0,
    stochastic: bool = False,
) -> optax.Params:
    """params - rate (gradient + decay params), in one pass and in place where params are donated.

    Args:
      along: the direction through which the estimate was taken, or the one to read it by.
      gradient: the estimate.
      params: parameters; what the direction leaves out stays, decay included.
      rate: learning rate. Its products with the coefficients are rounded once, in their dtype.
      decay: weight decay, or a tree of them like the parameters, or a prefix of one.
      stochastic: round bfloat16 stochastically, by words of the gradient's seed.

    >>> import jax.numpy as jnp, zeroth_order
    >>> estimate = zeroth_order.SeededGradient(jnp.uint32(3), jnp.array([0.5]))
    >>> along = zeroth_order.direction()
    >>> print(zeroth_order.apply(along, estimate, {"w": jnp.ones(4)}, rate=0.1)["w"])
    [0.95 1.05 1.05 0.95]
    """
    # A barrier, since constants of the estimate and of the rate would be multiplied first, and the
    # product be another than that of what is told of a step.
    coefficients = jax.lax.optimization_barrier(gradient.coefficients)
    step = gradient._replace(coefficients=-jnp.asarray(rate, coefficients.dtype) * coefficients)
    first = jnp.ravel(jnp.asarray(gradient.seed, jnp.uint32))[0]

    def one(leaf: Leaf | None, value: Any, decay: ArrayLike) -> Any:
        if leaf is None:
            return value
        value, decays = jnp.asarray(value), not isinstance(decay, float) or decay

        def in_xla(value: jax.Array) -> jax.Array:
            total = value.astype(trees.accumulator_dtype(value))
            if decays:
                factor = jnp.asarray(rate, total.dtype) * jnp.asarray(decay, total.dtype)
                total = total - factor * total
            total = _sum(total, leaf, value, step)
            return rounded(leaf, value, total, first) if stochastic else total.astype(value.dtype)

        if leaf.draws is None or decays or not _kernel_wins(leaf, value, step):
            return in_xla(value)
        in_kernel = functools.partial(
            _by_kernel, leaf, leaf.draws, step, first if stochastic else None
        )
        return jax.lax.platform_dependent(value, tpu=in_kernel, default=in_xla)

    return map_directed(one, along(params), params, jax.tree.broadcast(decay, params))


def rounded(leaf: Leaf, value: jax.Array, total: jax.Array, seed: jax.Array) -> jax.Array:
    """`total` in the dtype of `value`, bfloat16 stochastically by words of this seed."""
    if value.dtype != jnp.bfloat16:
        return total.astype(value.dtype)
    keys = _rounding_keys(leaf, value, seed)
    index = noise.axes(value.shape[leaf.stack :])
    words = noise.words(behind(keys, leaf, value), index, value.shape)
    return round_up_by(words >> 16, total)


def written(leaf: Leaf, value: jax.Array, gradient: SeededGradient) -> jax.Array:
    """The estimate of one leaf, written out in float32 or wider."""
    zeros = jnp.zeros(value.shape, trees.accumulator_dtype(value))
    return _sum(zeros, leaf, value, gradient)


def _samples(gradient: SeededGradient) -> tuple[jax.Array, jax.Array]:
    """Seeds and coefficients of all samples of all steps."""
    offsets = jnp.arange(gradient.coefficients.shape[-1], dtype=jnp.uint32)
    seeds = jnp.asarray(gradient.seed, jnp.uint32)[..., None] + offsets
    return seeds.reshape(-1), gradient.coefficients.reshape(-1)


def _rounding_keys(leaf: Leaf, value: jax.Array, seed: jax.Array) -> jax.Array:
    own = noise.purpose(seed, "rounding")
    return noise.block_keys(own, leaf.number, value.shape[: leaf.stack])


def _kernel_wins(leaf: Leaf, value: jax.Array, gradient: SeededGradient) -> bool:
    if leaf.draws is None or value.dtype not in (jnp.float32, jnp.bfloat16):
        return False
    if leaf.scale is not leaf.draws.unit and leaf.draws.unit != 1:
        return (
            False  # coefficient, scale and unit would be multiplied, and rounded, in another order
        )
    stack = value.shape[: leaf.stack]
    keys = jax.ShapeDtypeStruct((gradient.coefficients.size, *stack), jnp.uint32)
    return update_wins(value, keys, leaf.draws)


def _by_kernel(
    leaf: Leaf,
    draws: noise.Noise,
    gradient: SeededGradient,
    rounding: jax.Array | None,
    value: jax.Array,
) -> jax.Array:
    """The value plus the estimate, its bfloat16 rounded by words of a seed if one is given."""
    stack, (seeds, coefficients) = value.shape[: leaf.stack], _samples(gradient)
    keys = jax.vmap(lambda seed: leaf.blocks(seed, stack))(seeds)
    by = coefficients.reshape(-1, *(1,) * len(stack)) * (jnp.asarray(leaf.scale) / draws.unit)
    words = None if rounding is None else _rounding_keys(leaf, value, rounding)
    by = jnp.broadcast_to(by, keys.shape)
    return fused_update(value, keys, by, draws, words, implementation="pallas")


def _sum(total: jax.Array, leaf: Leaf, value: jax.Array, gradient: SeededGradient) -> jax.Array:
    """total + the estimate, one sample after the other."""
    seeds, coefficients = _samples(gradient)

    def add(j: ArrayLike, total: jax.Array) -> jax.Array:
        z, scale = drawn(leaf, value, seeds[j])
        by = coefficients[j].astype(total.dtype) * scale
        return total + noise.exact_scale(by, leaf.bits) * z.astype(total.dtype)

    if coefficients.size > UNROLLED:
        return jax.lax.fori_loop(0, coefficients.size, add, total)
    for j in range(coefficients.size):
        total = add(j, total)
    return total
