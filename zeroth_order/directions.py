"""Directions: how each leaf of the parameters is perturbed.

A *direction* is a function from the parameters to a tree with a `Leaf` for each of theirs that is
perturbed and None for each that stays. It is made by `direction` and changed by functions of one
direction, such as `scaled`, `small_weights` or `random_mask`. `perturb` adds one z of it.

*Numbers.* Arithmetic is in float32, or the parameter's wider dtype, and is rounded once, to the
nearest, to the parameter's dtype: the perturbed weights are the ones whose loss is asked for.

*Bits.* Where the draw is exact (`noise`) the same seed and scale give the same weights on every
backend and sharding.

*Cost.* A pass over the parameters, about 20 integer operations for an element.

*Reference.* Malladi et al., Fine-Tuning Language Models with Just Forward Passes, 2023
(arXiv:2305.17333).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from zeroth_order import noise

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

    >>> import jax.numpy as jnp, zeroth_order
    >>> print(zeroth_order.perturb(zeroth_order.direction(), jnp.zeros(4), 3, 0.5))
    [-0.5  0.5 -0.5 -0.5]
    """

    def one(leaf: Leaf | None, value: Any) -> Any:
        if leaf is None:
            return value
        value = jnp.asarray(value)
        z, factor = drawn(leaf, value, seed)
        return add_scaled(value, jnp.asarray(scale, factor.dtype) * factor, z, leaf.bits)

    return map_directed(one, along(params), params)


def add_scaled(value: jax.Array, scale: jax.Array, z: jax.Array, bits: int | None) -> jax.Array:
    """value + scale z, rounded once to the dtype of `value` where the product is exact."""
    dtype = trees.accumulator_dtype(value)
    total = value.astype(dtype) + noise.exact_scale(scale, bits) * z.astype(dtype)
    return total.astype(value.dtype)


def spread(leaf: Leaf, value: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The leaf's scale for each block, shaped as the stack."""
    return jnp.broadcast_to(jnp.asarray(leaf.scale, dtype), value.shape[: leaf.stack])


def of_all(leaves: Any, params: optax.Params) -> list[tuple[Leaf, jax.Array]]:
    """The leaves that are perturbed, each with its parameter."""
    pairs = zip(jax.tree.leaves(leaves, is_leaf=is_leaf), jax.tree.leaves(params), strict=True)
    return [(leaf, jnp.asarray(value)) for leaf, value in pairs if leaf is not None]


def squared_length(leaves: Any, params: optax.Params, seed: ArrayLike) -> jax.Array:
    """|z|^2 over all leaves, (), float32 or wider."""

    def of(leaf: Leaf, value: jax.Array) -> jax.Array:
        z, scale = drawn(leaf, value, seed)
        return jnp.sum(jnp.square(z * scale))

    return sum((of(*pair) for pair in of_all(leaves, params)), jnp.zeros(()))


def check_moves(caller: str, along: Direction, params: optax.Params) -> None:
    """That the direction moves something; nothing is checked where params are traced."""
    for leaf, value in of_all(along(params), params):

        def moves(value: jax.Array, leaf: Leaf = leaf) -> jax.Array:
            z, scale = drawn(leaf, value, 0)
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


def behind(blocks: Any, leaf: Leaf, value: jax.Array) -> Any:
    """With axes of length one behind those of the stack, to be broadcast with the value."""
    ones = (1,) * (value.ndim - leaf.stack)
    return jax.tree.map(lambda x: x.reshape(x.shape + ones), blocks)


def drawn(leaf: Leaf, value: jax.Array, seed: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """z without its scale, and the scale, which broadcast together."""
    scale = spread(leaf, value, trees.accumulator_dtype(value))
    blocks = leaf.blocks(seed, value.shape[: leaf.stack])
    index = noise.axes(value.shape[leaf.stack :])
    z = leaf.draw(behind(blocks, leaf, value), index, value)
    return z, behind(scale, leaf, value)


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
