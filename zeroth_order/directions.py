"""Directions: how each leaf of the parameters is perturbed, and gradients that are seeds.

A *direction* is a function from the parameters to a tree with a `Leaf` for each of theirs that is
perturbed and None for each that stays. It is made by `direction` and changed by functions of one
direction, such as `scaled`. Sample j of an estimate with seed s is the z of the seed s + j, so that
a gradient estimate, whatever the size of the model, is::

    SeededGradient(seed, coefficients):  sum over j of coefficients[j] z(seed + j)

`apply` adds a multiple of it to the parameters in one pass, each read and written once; `perturb`
adds one z; `materialize` writes it out, for optimizers that want a gradient.

*Numbers.* Arithmetic is in float32, or the parameter's wider dtype, and is rounded once to the
parameter's dtype. With `key` bfloat16 is rounded stochastically, with bits of the same addresses:
an update far below the spacing of bfloat16 still moves the mean, where rounding to the nearest
would move only the smallest weights, if any. Not so `perturb`: the perturbed weights are the ones
whose loss is asked for.

*Bits.* Where the draw is exact (`noise`) the same seed and coefficients give the same parameters on
every backend and sharding. A weight decay is another product, and is not exact.

*Cost.* Of `apply`: a pass over the parameters, about 20 integer operations for an element and
sample, no memory.

*Reference.* The restored perturbations that this replaces: Malladi et al., Fine-Tuning Language
Models with Just Forward Passes, 2023 (arXiv:2305.17333).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from optim.quantized.stochastic_rounding import round_up_by
from zeroth_order import noise

Rules = Mapping[str, Any] | Iterable[tuple[str, Any]]


class Leaf(NamedTuple):
    """How one leaf is perturbed: by scale draw(key, counter, weight)."""

    stack: int  # leading axes that number blocks, each with a key of its own
    keys: Callable[[ArrayLike, tuple[int, ...]], jax.Array]  # seed, shape of the stack -> keys
    draw: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # elementwise, float32
    scale: ArrayLike = 1.0  # shaped as the stack, or a scalar
    bits: int | None = None  # as `noise.Noise.bits`


Direction = Callable[[optax.Params], Any]


class SeededGradient(NamedTuple):
    """An estimate of a gradient, read through a direction."""

    seed: jax.Array  # (), uint32: of the first sample
    coefficients: jax.Array  # (samples,), float32 or wider


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
                stack=axes,
                keys=lambda seed, shape: noise.block_keys(seed, number, shape),
                draw=lambda key, counter, weight: draws.draw(noise.word(key, counter)),
                scale=draws.unit,
                bits=draws.bits,
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
        total = jnp.zeros(jnp.shape(value), trees.accumulator_dtype(value))
        return total if leaf is None else _sum(total, leaf, jnp.asarray(value), gradient)

    return map_directed(one, along(params), params)


def apply(
    along: Direction,
    gradient: SeededGradient,
    params: optax.Params,
    *,
    rate: ArrayLike = 1.0,
    decay: Any = 0.0,
    key: jax.Array | None = None,
) -> optax.Params:
    """params - rate (gradient + decay params), in one pass and in place where params are donated.

    Args:
      along: the direction through which the estimate was taken, or the one to read it by.
      gradient: the estimate.
      params: parameters; what the direction leaves out stays, decay included.
      rate: learning rate. Its products with the coefficients are rounded once, in their dtype.
      decay: weight decay, or a tree of them like the parameters, or a prefix of one.
      key: a typed key, which rounds bfloat16 stochastically.

    >>> import jax.numpy as jnp, zeroth_order
    >>> estimate = zeroth_order.SeededGradient(jnp.uint32(3), jnp.array([0.5]))
    >>> along = zeroth_order.direction()
    >>> print(zeroth_order.apply(along, estimate, {"w": jnp.ones(4)}, rate=0.1)["w"])
    [0.95 1.05 1.05 0.95]
    """
    coefficients = gradient.coefficients
    step = gradient._replace(coefficients=-jnp.asarray(rate, coefficients.dtype) * coefficients)
    rounding = None if key is None else jax.random.bits(trees.named_key(key, "apply"), (), "uint32")

    def one(leaf: Leaf | None, value: Any, decay: ArrayLike) -> Any:
        if leaf is None:
            return value
        value = jnp.asarray(value)
        total = value.astype(trees.accumulator_dtype(value))
        if not isinstance(decay, float) or decay:
            factor = jnp.asarray(rate, total.dtype) * jnp.asarray(decay, total.dtype)
            total = total - factor * total
        total = _sum(total, leaf, value, step)
        if rounding is None or value.dtype != jnp.bfloat16:
            return total.astype(value.dtype)
        bits = noise.word(*_addresses(leaf, value, rounding))
        return round_up_by(noise.another(bits) >> 16, total)

    return map_directed(one, along(params), params, jax.tree.broadcast(decay, params))


def add_scaled(value: jax.Array, scale: jax.Array, z: jax.Array, bits: int | None) -> jax.Array:
    """value + scale z, rounded once to the dtype of `value` where the product is exact."""
    dtype = trees.accumulator_dtype(value)
    total = value.astype(dtype) + noise.exact_scale(scale, bits) * z.astype(dtype)
    return total.astype(value.dtype)


def spread(leaf: Leaf, value: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The leaf's scale for each block, shaped as the stack."""
    return jnp.broadcast_to(jnp.asarray(leaf.scale, dtype), value.shape[: leaf.stack])


def _addresses(leaf: Leaf, value: jax.Array, seed: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Keys and counters of all elements, the keys with axes of length one behind the stack's."""
    keys = leaf.keys(seed, value.shape[: leaf.stack])
    keys = keys.reshape(keys.shape + (1,) * (value.ndim - keys.ndim))
    return keys, keys + noise.counters(value.shape[leaf.stack :])


def _drawn(leaf: Leaf, value: jax.Array, seed: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """z without its scale, and the scale, which broadcast together."""
    scale = spread(leaf, value, trees.accumulator_dtype(value))
    scale = scale.reshape(scale.shape + (1,) * (value.ndim - scale.ndim))
    return leaf.draw(*_addresses(leaf, value, seed), value), scale


def _sum(total: jax.Array, leaf: Leaf, value: jax.Array, gradient: SeededGradient) -> jax.Array:
    """total + the estimate. Unrolled over samples: a loop over them would keep a copy of total."""
    for j in range(gradient.coefficients.size):
        z, scale = _drawn(leaf, value, jnp.asarray(gradient.seed, jnp.uint32) + jnp.uint32(j))
        by = gradient.coefficients[j].astype(total.dtype) * scale
        total = total + noise.exact_scale(by, leaf.bits) * z.astype(total.dtype)
    return total


def map_directed(rule: Callable[..., Any], leaves: Any, *others: Any) -> Any:
    """The rule on every leaf of the direction, None included."""
    return jax.tree.map(rule, leaves, *others, is_leaf=lambda x: x is None or isinstance(x, Leaf))


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
