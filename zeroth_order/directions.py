"""Directions: how each leaf of the parameters is perturbed, and gradients that are seeds.

A *direction* is a function from the parameters to a tree with a `Leaf` for each of theirs that is
perturbed and None for each that stays. It is made by `direction` and changed by functions of one
direction, such as `scaled`, `small_weights` or `random_mask`. Sample j of an estimate with
seed s is the z of the seed s + j, so that a gradient estimate, whatever the size of the model, is::

    SeededGradient(seed, coefficients):  sum over j of coefficients[j] z(seed + j)

Of many steps at once, seed is a vector and coefficients a row for each of it.

`apply` adds a multiple of it to the parameters in one pass, each read and written once; `perturb`
adds one z; `materialize` writes it out, for optimizers that want a gradient.

*Numbers.* Arithmetic is in float32, or the parameter's wider dtype, and is rounded once to the
parameter's dtype. With `stochastic` bfloat16 is rounded up or down at random, by bits that are a
function of the gradient's seed and the same addresses: an update far below the spacing of bfloat16
still moves the mean, where rounding to the nearest would move only the smallest weights, if any.
Not so `perturb`: the perturbed weights are the ones whose loss is asked for.

*Bits.* Where the draw is exact (`noise`) the same seed and coefficients give the same parameters on
every backend and sharding. A weight decay is another product, and is not exact.

*Cost.* Of `apply`: a pass over the parameters, about 20 integer operations for an element and
sample, no memory; beyond 16 samples a loop, which keeps one leaf in float32. On a TPU matrices of
more than 32 samples are a kernel's (`zeroth_order.kernels`, experimental), which does not.

*Reference.* The restored perturbations that this replaces: Malladi et al., Fine-Tuning Language
Models with Just Forward Passes, 2023 (arXiv:2305.17333).
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from optim.quantized.stochastic_rounding import round_up_by
from zeroth_order import noise
from zeroth_order.kernels.fused_update import fused_update
from zeroth_order.kernels.regimes import update_wins

UNROLLED = 16  # samples that are added without a loop, which would keep the sum in memory

Rules = Mapping[str, Any] | Iterable[tuple[str, Any]]


class Leaf(NamedTuple):
    """How one leaf is perturbed: by scale draw(block, index, weight), block by block."""

    number: int  # in its address: `noise.leaf_number` of its path
    stack: int  # leading axes that number blocks
    # Seed, shape of the stack -> what all elements of a block share: a pytree of arrays, which
    # begin with the axes of the stack; first of all a key for each block.
    blocks: Callable[[ArrayLike, tuple[int, ...]], Any]
    # Block, index along each of its axes as `noise.axes`, weights -> float32, elementwise.
    draw: Callable[[Any, tuple[jax.Array, ...], jax.Array], jax.Array]
    scale: ArrayLike = 1.0  # shaped as the stack, or a scalar
    bits: int | None = None  # as `noise.Noise.bits`
    # Block, shape of its matrix -> A (rows, rank), B (columns, rank) where its z is A B'.
    factors: Callable[[Any, tuple[int, ...]], tuple[jax.Array, jax.Array]] | None = None
    # Where blocks are keys alone and draw is this noise's of their words: what kernels can draw.
    draws: noise.Noise | None = None


Direction = Callable[[optax.Params], Any]


class SeededGradient(NamedTuple):
    """An estimate of a gradient, read through a direction."""

    seed: jax.Array  # (), uint32: of the first sample; or (steps,)
    coefficients: jax.Array  # (samples,), float32 or wider; or (steps, samples)


def direction(
    draws: noise.Noise = noise.rademacher,
    *,
    stack: Rules = (),
    select: Rules = (),
) -> Direction:
    """Independent noise of mean 0 and variance 1 for every float of the parameters.

    Args:
      draws: `zeroth_order.rademacher` for +-1, `zeroth_order.popcount_normal` or
        `zeroth_order.box_muller_normal`.
      stack: how many leading axes of a leaf number layers, by patterns of paths as
        `optim.path_labels` takes them; 0 for leaves that no pattern matches. Noise does not depend
        on it, unless a model reads its layers by `zeroth_order.read`, which needs it.
      select: True or False by patterns of paths; if any are given, leaves that none matches stay.

    Returns:
      The direction. It raises ValueError where a pattern matches nothing, nothing is perturbed, a
      block has more than 2^32 elements, a leaf has fewer axes than `stack`, or two paths have one
      checksum.

    >>> import jax.numpy as jnp, zeroth_order
    >>> params = {"w": jnp.zeros(4), "step": jnp.arange(2)}
    >>> along = zeroth_order.direction()
    >>> print(zeroth_order.perturb(along, params, 3, 0.5))
    {'step': Array([0, 1], dtype=int32), 'w': Array([ 0.5, -0.5, -0.5,  0.5], dtype=float32)}
    """
    stack, select = _rules(stack), _rules(select)

    def of(params: optax.Params) -> Any:
        stacks = trees.labels_by_path("direction: stack", params, stack, 0)
        chosen = trees.labels_by_path("direction: select", params, select, not select)
        found: dict[int, str] = {}

        def one(path: tuple[Any, ...], value: Any, axes: int, perturbed: bool) -> Leaf | None:
            name = trees.path_string(path)
            if not perturbed or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
                return None
            _check_leaf(name, jnp.shape(value), axes)
            number = noise.leaf_number(name)
            if number in found:
                raise ValueError(
                    f"direction: the paths {found[number]!r} and {name!r} have one checksum and "
                    f"would have one noise; rename one."
                )
            found[number] = name
            return Leaf(
                number=number,
                stack=axes,
                blocks=lambda seed, shape: noise.block_keys(seed, number, shape),
                draw=lambda key, index, weight: draws.draw(noise.words(key, index, weight.shape)),
                scale=draws.unit,
                bits=draws.bits,
                draws=draws,
            )

        leaves = jax.tree.map_with_path(one, params, stacks, chosen)
        if not found:
            raise ValueError(
                "direction: nothing is perturbed; accepted: a tree with a leaf of floats that "
                "`select` leaves in."
            )
        return leaves

    return of


def scaled(along: Direction, scales: Any) -> Direction:
    """The direction with each leaf's z multiplied.

    With d about the size of the gradient in each leaf or layer, probing along z / d and reading the
    estimate along d z is unbiased and of less variance; reading it along z is the gradient over d.

    Args:
      along: a direction.
      scales: a tree like the parameters, or a prefix of one, of scalars or of arrays shaped as the
        leaf's stack.

    >>> import jax.numpy as jnp, zeroth_order
    >>> params, d = {"v": jnp.zeros(2), "w": jnp.zeros(2)}, {"v": 2.0, "w": 4.0}
    >>> along = zeroth_order.scaled(zeroth_order.direction(), d)
    >>> print(abs(zeroth_order.perturb(along, params, 0, 1.0)["w"]))
    [4. 4.]
    """

    def of(params: optax.Params) -> Any:
        def one(leaf: Leaf | None, by: ArrayLike) -> Leaf | None:
            return None if leaf is None else leaf._replace(scale=leaf.scale * jnp.asarray(by))

        return map_directed(one, along(params), jax.tree.broadcast(scales, params))

    return of


def perturb(along: Direction, params: optax.Params, seed: ArrayLike, scale: ArrayLike) -> Any:
    """params + scale z(seed), rounded to the nearest: a perturbed copy.

    A model whose layers are scanned takes `zeroth_order.stream` instead, which makes no copy.
    """

    def one(leaf: Leaf | None, value: Any) -> Any:
        if leaf is None:
            return value
        value = jnp.asarray(value)
        z, factor = _drawn(leaf, value, seed)
        return add_scaled(value, jnp.asarray(scale, factor.dtype) * factor, z, leaf.bits)

    return map_directed(one, along(params), params)


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


def add_scaled(value: jax.Array, scale: jax.Array, z: jax.Array, bits: int | None) -> jax.Array:
    """value + scale z, rounded once to the dtype of `value` where the product is exact."""
    dtype = trees.accumulator_dtype(value)
    total = value.astype(dtype) + noise.exact_scale(scale, bits) * z.astype(dtype)
    return total.astype(value.dtype)


def spread(leaf: Leaf, value: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The leaf's scale for each block, shaped as the stack."""
    return jnp.broadcast_to(jnp.asarray(leaf.scale, dtype), value.shape[: leaf.stack])


def rounded(leaf: Leaf, value: jax.Array, total: jax.Array, seed: jax.Array) -> jax.Array:
    """`total` in the dtype of `value`, bfloat16 stochastically by words of this seed."""
    if value.dtype != jnp.bfloat16:
        return total.astype(value.dtype)
    keys = _rounding_keys(leaf, value, seed)
    index = noise.axes(value.shape[leaf.stack :])
    words = noise.words(_behind(keys, leaf, value), index, value.shape)
    return round_up_by(words >> 16, total)


def written(leaf: Leaf, value: jax.Array, gradient: SeededGradient) -> jax.Array:
    """The estimate of one leaf, written out in float32 or wider."""
    zeros = jnp.zeros(value.shape, trees.accumulator_dtype(value))
    return _sum(zeros, leaf, value, gradient)


def of_all(leaves: Any, params: optax.Params) -> list[tuple[Leaf, jax.Array]]:
    """The leaves that are perturbed, each with its parameter."""
    pairs = zip(jax.tree.leaves(leaves, is_leaf=is_leaf), jax.tree.leaves(params), strict=True)
    return [(leaf, jnp.asarray(value)) for leaf, value in pairs if leaf is not None]


def squared_length(leaves: Any, params: optax.Params, seed: ArrayLike) -> jax.Array:
    """|z|^2 over all leaves, (), float32 or wider."""

    def of(leaf: Leaf, value: jax.Array) -> jax.Array:
        z, scale = _drawn(leaf, value, seed)
        return jnp.sum(jnp.square(z * scale))

    return sum((of(*pair) for pair in of_all(leaves, params)), jnp.zeros(()))


def check_moves(caller: str, along: Direction, params: optax.Params) -> None:
    """That the direction moves something; nothing is checked where params are traced."""
    for leaf, value in of_all(along(params), params):

        def moves(value: jax.Array, leaf: Leaf = leaf) -> jax.Array:
            z, scale = _drawn(leaf, value, 0)
            return jnp.any(z * scale != 0)

        found = jax.jit(moves)(value)
        if isinstance(found, jax.core.Tracer) or found:
            return
    raise ValueError(
        f"{caller}: the direction moves no parameter: z is 0 everywhere; accepted: masks, "
        f"thresholds and scales that leave something to move."
    )


def is_leaf(x: Any) -> bool:
    """Whether this ends a direction's tree."""
    return x is None or isinstance(x, Leaf)


def _behind(blocks: Any, leaf: Leaf, value: jax.Array) -> Any:
    """With axes of length one behind those of the stack, to be broadcast with the value."""
    ones = (1,) * (value.ndim - leaf.stack)
    return jax.tree.map(lambda x: x.reshape(x.shape + ones), blocks)


def _drawn(leaf: Leaf, value: jax.Array, seed: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """z without its scale, and the scale, which broadcast together."""
    scale = spread(leaf, value, trees.accumulator_dtype(value))
    blocks = leaf.blocks(seed, value.shape[: leaf.stack])
    index = noise.axes(value.shape[leaf.stack :])
    z = leaf.draw(_behind(blocks, leaf, value), index, value)
    return z, _behind(scale, leaf, value)


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
        z, scale = _drawn(leaf, value, seeds[j])
        by = coefficients[j].astype(total.dtype) * scale
        return total + noise.exact_scale(by, leaf.bits) * z.astype(total.dtype)

    if coefficients.size > UNROLLED:
        return jax.lax.fori_loop(0, coefficients.size, add, total)
    for j in range(coefficients.size):
        total = add(j, total)
    return total


def map_directed(rule: Callable[..., Any], leaves: Any, *others: Any) -> Any:
    """The rule on every leaf of the direction, None included."""
    return jax.tree.map(rule, leaves, *others, is_leaf=is_leaf)


def _rules(rules: Rules) -> list[tuple[str, Any]]:
    return list(rules.items() if isinstance(rules, Mapping) else rules)


def _check_leaf(path: str, shape: tuple[int, ...], stack: int) -> None:
    if not 0 <= stack <= len(shape):
        raise ValueError(
            f"direction: stack is {stack} for {path!r} of shape {shape}; "
            f"accepted: 0 to {len(shape)} axes."
        )
    for name, axes in (("block", shape[stack:]), ("stack", shape[:stack])):
        size = 1
        for length in axes:
            size *= length
        if size > 2**32:
            raise ValueError(
                f"direction: {path!r} of shape {shape} has a {name} of {size} elements; accepted: "
                f"at most 2^32, with the leading axes of the others declared by `stack`."
            )
