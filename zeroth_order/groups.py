"""Groups of parameters: a probe of one layer alone, and scales by how much each layer matters.

A group is a number for each leaf, or for each layer of a stacked one. Probing group g alone is
probing along z [group = g], where g may be traced: one compiled program serves all groups.

With d_g about the size of the gradient in group g, two estimates of less variance::

    variance-modified:     probe along z / d, read along d z    (unbiased)
    expectation-modified:  probe along z / d, read along z      (the gradient over d)

where d_g is the norm of the parameters, or that of the gradient: the slope c along z [group = g],
of mean 0 and variance 1, has the mean square |grad_g|^2, so that over n seeds::

    d_g = sqrt(mean over j of c_j^2)

A norm of 0 becomes 1.

*Differences.* From MeZO's code: (1) groups are any; there, embedding, head and each layer. (2) A
division by the root of the number of parameters, which there divides by the root of the norm, is
not offered.

*Cost.* `gradient_norms`: the estimator's losses for each group. `parameter_norms`: one pass.

*Reference.* Malladi et al., Fine-Tuning Language Models with Just Forward Passes, 2023
(arXiv:2305.17333), Definitions 6 and 7, Proposition 1; princeton-nlp/MeZO@552cb1b,
medium_models/src/trainer.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optim import trees
from zeroth_order.directions import Direction, Leaf, is_leaf, map_directed, of_all, scaled
from zeroth_order.estimates import Estimator, LossFn


def layer_groups(along: Direction, params: optax.Params) -> Any:
    """A group for each layer, and one for each top-level part of what is not stacked.

    Returns:
      A tree like params of int32, shaped as each leaf's stack: 0, 1, ... without gaps. Layer l of
      all stacked leaves is one group. What stays has -1.

    >>> import jax.numpy as jnp, zeroth_order
    >>> params = {"blocks": {"w": jnp.zeros((2, 3))}, "embed": jnp.zeros(4), "head": jnp.zeros(5)}
    >>> along = zeroth_order.direction(stack={"blocks/.*": 1})
    >>> groups = zeroth_order.layer_groups(along, params)
    >>> print(groups["blocks"]["w"], groups["embed"], groups["head"])
    [0 1] 2 3
    """
    leaves = along(params)
    stacks = [value.shape[: leaf.stack] for leaf, value in of_all(leaves, params) if leaf.stack]
    layers = max((int(np.prod(stack)) for stack in stacks), default=0)
    parts: dict[str, int] = {}

    def one(path: tuple[Any, ...], leaf: Leaf | None, value: Any) -> Any:
        if leaf is None:
            return np.int32(-1)
        stack = jnp.shape(value)[: leaf.stack]
        if stack:
            return np.arange(int(np.prod(stack)), dtype=np.int32).reshape(stack)
        part = trees.path_string(path).split("/")[0]
        return np.int32(layers + parts.setdefault(part, len(parts)))

    return jax.tree.map_with_path(one, leaves, params, is_leaf=is_leaf)


def only(along: Direction, groups: Any, group: ArrayLike) -> Direction:
    """The direction, 0 outside one group, whose number may be traced."""
    return scaled(along, jax.tree.map(lambda g: (g == group).astype(jnp.float32), groups))


def by_group(values: jax.Array, groups: Any) -> Any:
    """A value for each group as a tree of scales, which `zeroth_order.scaled` takes; 1 for -1.

    >>> import jax.numpy as jnp, numpy as np, zeroth_order
    >>> groups = {"v": np.int32(1), "w": np.array([0, 1], np.int32)}
    >>> print(zeroth_order.by_group(jnp.array([2.0, 3.0]), groups)["w"])
    [2. 3.]
    """
    return jax.tree.map(lambda g: jnp.where(g < 0, 1, jnp.asarray(values)[g]), groups)


def number_of(groups: Any) -> int:
    """How many groups there are."""
    return 1 + max(int(np.max(g)) for g in jax.tree.leaves(groups))


def gradient_norms(
    loss_fn: LossFn,
    params: optax.Params,
    seed: ArrayLike,
    make: Callable[[Direction], Estimator],
    along: Direction,
    groups: Any,
) -> jax.Array:
    """The norm of the gradient in each group, (groups,), estimated from losses; 1 for 0.

    Args:
      loss_fn: as the estimator takes it.
      params: parameters.
      seed: of the first sample, shared by all groups.
      make: the estimator of a direction, such as `zeroth_order.spsa`, with n samples.
      along: the direction.
      groups: such as `layer_groups(along, params)`.

    >>> import functools, jax.numpy as jnp, zeroth_order
    >>> params = {"v": jnp.zeros(2), "w": jnp.zeros(3)}
    >>> along = zeroth_order.direction()
    >>> norms = zeroth_order.gradient_norms(
    ...     lambda p: 3 * p["v"][0] + 5 * p["w"][1], params, 0,
    ...     functools.partial(zeroth_order.spsa, samples=4), along,
    ...     zeroth_order.layer_groups(along, params))
    >>> print(norms.round(2))
    [3. 5.]
    """

    def norm(group: jax.Array) -> jax.Array:
        found = make(only(along, groups, group))(loss_fn, params, seed)
        coefficients = found.gradient.coefficients  # the slopes over n
        return jnp.sqrt(coefficients.size * jnp.sum(jnp.square(coefficients)))

    return _nonzero(jax.lax.map(norm, jnp.arange(number_of(groups), dtype=jnp.int32)))


def parameter_norms(along: Direction, params: optax.Params, groups: Any) -> jax.Array:
    """The norm of the parameters in each group, (groups,); 1 for 0.

    >>> import jax.numpy as jnp, zeroth_order
    >>> params = {"v": jnp.array([3.0, 4.0]), "w": jnp.zeros(3)}
    >>> along = zeroth_order.direction()
    >>> print(zeroth_order.parameter_norms(along, params, zeroth_order.layer_groups(along, params)))
    [5. 1.]
    """
    count = number_of(groups)

    def one(leaf: Leaf | None, value: Any, group: Any) -> jax.Array:
        if leaf is None:
            return jnp.zeros(count)
        square = jnp.square(trees.promote(value)).reshape(*np.shape(group), -1).sum(-1)
        return jnp.zeros(count, square.dtype).at[jnp.asarray(group)].add(square)

    squares = jax.tree.leaves(map_directed(one, along(params), params, groups))
    return _nonzero(jnp.sqrt(sum(squares, jnp.zeros(count))))


def _nonzero(norms: jax.Array) -> jax.Array:
    return jnp.where(norms == 0, 1, norms)
