"""What jax.tree and optax.tree lack: rules over leaves, labels and keys by path, dtypes."""

import math
import numbers
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike


def accumulator_dtype(*leaves: ArrayLike) -> jnp.dtype:
    """The dtype for arithmetic on these leaves: theirs promoted, float32 at least."""
    dtypes = [jnp.result_type(x) for x in leaves]
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(jnp.float32, *(d for d in dtypes if d != jax.dtypes.float0))


def as_dtype(leaf: ArrayLike, dtype: jnp.dtype) -> jax.Array:
    """The leaf in the dtype; a float0 leaf, the gradient of integers, becomes zeros."""
    if jnp.result_type(leaf) == jax.dtypes.float0:
        return jnp.zeros(jnp.shape(leaf), dtype)
    return jnp.asarray(leaf, dtype)


def promote(tree: Any) -> Any:
    """The tree with every leaf in its `accumulator_dtype`."""
    return jax.tree.map(lambda x: as_dtype(x, accumulator_dtype(x)), tree)


def zeros_like(tree: Any, dtype: DTypeLike | None = None) -> Any:
    """Zeros like the tree, in `dtype` or in each leaf's `accumulator_dtype`."""
    return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype or accumulator_dtype(x)), tree)


def float_copy(tree: Any) -> Any:
    """A copy in the leaves' `accumulator_dtype`, with MaskedNode in place of integers."""

    def one(leaf: ArrayLike) -> jax.Array | optax.MaskedNode:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            return optax.MaskedNode()
        return jnp.array(leaf, accumulator_dtype(leaf), copy=True)

    return jax.tree.map(one, tree)


def moved_floats(method: str, params: Any, updates: Any) -> Any:
    """The parameters as the updates leave them, unrounded; structure and dtypes of `float_copy`."""
    if params is None:
        raise ValueError(
            f"{method}: params is None; call update(updates, state, params) with parameters."
        )

    def one(p: ArrayLike, u: ArrayLike | None) -> jax.Array | optax.MaskedNode:
        if not jnp.issubdtype(jnp.result_type(p), jnp.inexact):
            return optax.MaskedNode()
        dtype = accumulator_dtype(p)
        moved = jnp.asarray(p, dtype)
        return moved if u is None else moved + as_dtype(u, dtype)

    return jax.tree.map(one, params, updates)


def any_element(faulty: Callable[..., Any], *trees: Any) -> jax.Array:
    """Whether `faulty` of any element of any leaf of floats, of trees that are alike."""
    found = [
        jnp.any(faulty(*leaves))
        for leaves in zip(*map(jax.tree.leaves, trees), strict=True)
        if jnp.issubdtype(jnp.result_type(leaves[0]), jnp.inexact)
    ]
    return jnp.any(jnp.stack(found)) if found else jnp.zeros((), bool)


def all_finite(tree: Any) -> jax.Array:
    """Whether every float of the tree is a number."""
    return ~any_element(lambda leaf: ~jnp.isfinite(leaf), tree)


def squared_norm(tree: Any) -> jax.Array:
    """The sum of the squares of all leaves together, in their common `accumulator_dtype`."""
    leaves = jax.tree.leaves(tree)
    dtype = accumulator_dtype(*leaves)
    squares = (jnp.sum(jnp.square(as_dtype(leaf, dtype))) for leaf in leaves)
    return sum(squares, start=jnp.zeros((), dtype))


def norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all leaves together, in their common `accumulator_dtype`."""
    return jnp.sqrt(squared_norm(tree))


def map_leaves(
    rule: Callable[..., Any], updates: Any, state: tuple[Any, ...] = (), *consumed: Any
) -> tuple[Any, tuple[Any, ...]]:
    """Applies an elementwise or leafwise rule to every leaf of a gradient, state included.

    A leaf of the gradient that is None gives None and leaves the state as it is. All that the rule
    is given comes in the `accumulator_dtype` of the gradient, the state and the consumed trees;
    new state goes back to the dtype of the old.

    Args:
      rule: (gradient, *state, *consumed), arrays of one dtype -> (update, *new state).
      updates: the gradient.
      state: trees like the gradient, each of which the rule replaces.
      consumed: trees like the gradient (parameters, for one) that the rule only reads.

    Returns:
      (updates, state): the tree of the rule's updates, and the new trees of the state.
    """
    structure: Any
    gradients, structure = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    columns = [structure.flatten_up_to(tree) for tree in (*state, *consumed)]

    def one(g: ArrayLike | None, *others: Any) -> tuple[Any, ...]:
        old = others[: len(state)]
        if g is None:
            return (None, *old)
        dtype = accumulator_dtype(g, *others)
        new = rule(*(as_dtype(x, dtype) for x in (g, *others)))
        return (new[0], *(n.astype(o.dtype) for n, o in zip(new[1:], old, strict=True)))

    results = [one(g, *others) for g, *others in zip(gradients, *columns, strict=True)]
    update, *states = zip(*results, strict=True) if results else ((),) * (1 + len(state))
    return structure.unflatten(update), tuple(structure.unflatten(leaves) for leaves in states)


def average(weight: ArrayLike, old: jax.Array, new: jax.Array) -> jax.Array:
    """weight * old + (1 - weight) * new in the dtype of `new`; the weight may be traced."""
    keep, take = as_dtype(weight, new.dtype), as_dtype(1 - weight, new.dtype)
    return keep * old + take * new


def bias_correction(decay: ArrayLike, steps: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """1 - decay^steps, the total weight of an average after that many steps, at least one.

    By the logarithm, since in float32 the difference 1 - 0.999 is wrong in its fifth digit.
    """
    if isinstance(decay, numbers.Real):
        rate: ArrayLike = math.log(decay) if decay > 0 else -math.inf
    else:
        rate = jnp.log(as_dtype(decay, dtype))
    return -jnp.expm1(as_dtype(rate, dtype) * as_dtype(steps, dtype))


def trust_ratio(update: jax.Array, parameter: jax.Array, coefficient: ArrayLike = 1) -> jax.Array:
    """coefficient |parameter| / |update|, norms of one leaf; 1 where one of the norms is zero."""
    ours, other = (jnp.sqrt(jnp.sum(jnp.square(x))) for x in (parameter, update))
    moves = (ours > 0) & (other > 0)
    ratio = as_dtype(coefficient, ours.dtype) * ours / jnp.where(moves, other, 1)
    return jnp.where(moves, ratio, 1)


def mask_like(tree: Any, mask: Any) -> Any:
    """The mask as a tree of booleans with a leaf for every leaf of `tree`.

    Args:
      tree: the parameters.
      mask: such a tree, a prefix of one, a function from the parameters to one, or None, for True.
    """
    chosen = mask(tree) if callable(mask) else mask
    return jax.tree.broadcast(True if chosen is None else chosen, tree)


def check_fractions(method: str, **values: ArrayLike) -> None:
    """Raises ValueError on a number outside [0, 1). Traced values and arrays are not checked."""
    for name, value in values.items():
        if isinstance(value, numbers.Real) and not 0 <= value < 1:
            raise ValueError(f"{method}: {name} is {value}; accepted: 0 <= {name} < 1.")


def check_at_least(method: str, least: float, **values: ArrayLike) -> None:
    """Raises ValueError on a number below `least`. Traced values and arrays are not checked."""
    for name, value in values.items():
        if isinstance(value, numbers.Real) and not value >= least:
            raise ValueError(f"{method}: {name} is {value}; accepted: {name} >= {least}.")


def check_positive(method: str, **values: ArrayLike) -> None:
    """Raises ValueError on a number that is not positive. Traced values are not checked."""
    for name, value in values.items():
        if isinstance(value, numbers.Real) and not value > 0:
            raise ValueError(f"{method}: {name} is {value}; accepted: {name} > 0.")


def value_at(value: optax.ScalarOrSchedule, count: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """A hyper-parameter, or the value of its schedule at `count`, as an array of the dtype."""
    return as_dtype(value(count) if callable(value) else value, dtype)


def decay_terms(
    params: Any, weight_decay: ArrayLike, mask: Any | Callable[[Any], Any] | None
) -> Any:
    """weight_decay times the parameters that the mask chooses, zeros for the others.

    For methods that use these terms elsewhere than `optax.add_decayed_weights` adds them.
    """
    params = promote(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    decay = optax.add_decayed_weights(weight_decay, mask)
    return decay.update(zeros, decay.init(params), params)[0]


def add_decayed_weights(
    weight_decay: optax.ScalarOrSchedule, mask: Any = None
) -> optax.GradientTransformationExtraArgs:
    """`optax.add_decayed_weights` of promoted parameters; `mask` as `mask_like` takes it.

    optax's rounds decay times a bfloat16 parameter to bfloat16, its mask is an error where a
    parameter has no gradient, and so are gradients of dtype float0.
    """
    inner = optax.add_decayed_weights(weight_decay)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        params = promote(params)
        if mask is not None:
            decays = mask_like(params, mask)
            params = jax.tree.map(lambda d, p: jnp.where(d, p, 0), decays, params)
        return inner.update(promote(updates), state, params)

    return optax.GradientTransformationExtraArgs(inner.init, update)


_REQUIRED = object()


def path_string(path: tuple[Any, ...]) -> str:
    """The path of a leaf as patterns see it, such as `blocks/attention/query/kernel`.

    Args:
      path: the key path that `jax.tree.leaves_with_path` gives.

    >>> import jax, optim
    >>> [optim.path_string(path) for path, _ in jax.tree.leaves_with_path({"a": [1, 2]})]
    ['a/0', 'a/1']
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def path_labels(
    tree: Any,
    rules: Mapping[str, Any] | Iterable[tuple[str, Any]],
    default: Any = _REQUIRED,
) -> Any:
    """A tree like `tree` that holds, for each leaf, the label of the pattern that matches its path.

    The result serves as the labels of `optax.partition` or, with boolean labels, as a mask. A leaf
    that is None or that `optax.masked` has taken out stays as it is and needs no label; it keeps
    its path, and a pattern may match none but such leaves.

    Args:
      tree: parameters, or anything with their structure.
      rules: (pattern, label) pairs; a pattern is a regular expression for the whole path.
      default: the label of a leaf that no pattern matches; without it such a leaf is an error.

    Raises:
      ValueError: a pattern is no regular expression or matches nothing, patterns with different
        labels match one leaf, or a leaf is left without a label.

    >>> import optim
    >>> optim.path_labels({"w": 1, "norm": {"scale": 2}}, {"w": "muon", "norm/.*": "adam"})
    {'norm': {'scale': 'adam'}, 'w': 'muon'}
    """
    return labels_by_path("path_labels: rules", tree, rules, default)


def labels_by_path(
    where: str,
    tree: Any,
    rules: Mapping[str, Any] | Iterable[tuple[str, Any]],
    default: Any = _REQUIRED,
) -> Any:
    """`path_labels`, whose errors begin with `where`, the method and its argument."""
    given = rules.items() if isinstance(rules, Mapping) else rules
    pairs = [(_compiled(where, pattern), label) for pattern, label in given]
    leaves, structure = jax.tree.flatten_with_path(tree, is_leaf=_absent)
    paths = [path_string(path) for path, _ in leaves]
    for pattern, _ in pairs:
        # Transformations are also initialised on empty trees, by optax.tree.map_params for one.
        if paths and not any(pattern.fullmatch(path) for path in paths):
            raise ValueError(
                f"{where}: the pattern {pattern.pattern!r} matches no leaf; "
                f"the paths are: {_listed(paths)}."
            )
    labels = [
        leaf if _absent(leaf) else _label(where, path, pairs, default)
        for path, (_, leaf) in zip(paths, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, labels)


def _absent(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, optax.MaskedNode)


def _label(where: str, path: str, pairs: list[tuple[re.Pattern[str], Any]], default: Any) -> Any:
    found = [(pattern.pattern, label) for pattern, label in pairs if pattern.fullmatch(path)]
    if any(label != found[0][1] for _, label in found):
        patterns = " and ".join(repr(pattern) for pattern, _ in found)
        raise ValueError(
            f"{where}: {patterns} match one leaf, {path!r}, with different labels; "
            f"a leaf takes one label."
        )
    if found:
        return found[0][1]
    if default is _REQUIRED:
        raise ValueError(f"{where}: no pattern matches the leaf {path!r}; add one, or a default.")
    return default


def _compiled(where: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{where}: {pattern!r} is no regular expression: {error}.") from error


def _listed(paths: list[str], most: int = 12) -> str:
    more = f", and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more


def named_key(key: jax.Array, name: str) -> jax.Array:
    """The key of one user of `key`, so that no two names draw the same numbers from it.

    Args:
      key: a typed key.
      name: of the method that draws, or the path of the leaf that it draws for.
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
