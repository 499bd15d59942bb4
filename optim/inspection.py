"""What a transformation keeps for each parameter, without making anything."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim.trees import path_string

_Path = tuple[Any, ...]
_STACK = re.compile(r"\d+(x\d+)*_[a-z]+\d+")  # the name of a group of `optim.matrices`


class _Entry(NamedTuple):
    owner: _Path | str | None  # path of its parameter, name of a stack of matrices; None: shared
    method: str
    size: int  # bytes


def describe(tx: optax.GradientTransformation, params: optax.Params) -> str:
    """A table of parameters: path, shape, dtype, the methods that keep a state for it, bytes of it.

    A field of a named state belongs to the parameters when the path of every array in it starts
    with a parameter's: momenta do, and the factors that a matrix method keeps below a parameter's
    name. What a method keeps for a stack of same-shaped matrices has a line of its own. Everything
    else is shared.

    Args:
      tx: any transformation.
      params: parameters, or their `jax.ShapeDtypeStruct`; no array is made.

    >>> import jax.numpy as jnp, optim
    >>> print(optim.describe(optim.lion(1e-4), {"w": jnp.ones((8, 4)), "b": jnp.ones(4)}))
    parameter  shape   dtype    method  state bytes
    b          (4,)    float32  lion             16
    w          (8, 4)  float32  lion            128
    shared                                        0
    total                                       144, 4 a parameter
    """
    leaves = dict(jax.tree.leaves_with_path(jax.eval_shape(lambda p: p, params)))
    entries = list(_walk(jax.eval_shape(tx.init, params), leaves))
    rows = [("parameter", "shape", "dtype", "method", "state bytes")]
    for path, leaf in leaves.items():
        own = [entry for entry in entries if entry.owner == path]
        methods = ", ".join(dict.fromkeys(entry.method for entry in own)) or "-"
        size = sum(entry.size for entry in own)
        rows.append((path_string(path), str(leaf.shape), str(leaf.dtype), methods, str(size)))
    for stack in dict.fromkeys(e.owner for e in entries if isinstance(e.owner, str)):
        own = [entry for entry in entries if entry.owner == stack]
        size = sum(entry.size for entry in own)
        rows.append((f"stack {stack}", "", "", own[0].method, str(size)))
    shared = sum(entry.size for entry in entries if entry.owner is None)
    total = sum(entry.size for entry in entries)
    count = sum(math.prod(leaf.shape) for leaf in leaves.values())
    rows.append(("shared", "", "", "", str(shared)))
    rows.append(("total", "", "", "", str(total)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row[:4], widths)), row[4].rjust(widths[4])])
        for row in rows
    ]
    return "\n".join(lines) + f", {total / max(count, 1):.3g} a parameter"


def _walk(node: Any, params: dict[_Path, Any]) -> Iterator[_Entry]:
    """The arrays of a state, each with its parameter and the named state that holds it."""
    children = [child for _, child in _children(node)]
    for child in children:
        owned = _owned(child, params) if _is_named(node) else None
        method = _method(type(node).__name__)
        if _is_named(node) and isinstance(child, dict) and _are_stacks(child):
            for stack, arrays in child.items():
                yield from (_Entry(stack, method, _size(leaf)) for leaf in jax.tree.leaves(arrays))
        elif owned:
            yield from (_Entry(owner, method, _size(leaf)) for owner, leaf in owned)
        elif child is not node:
            yield from _walk(child, params)
        else:
            yield _Entry(None, "", _size(node))


def _are_stacks(field: dict[Any, Any]) -> bool:
    return bool(field) and all(isinstance(k, str) and _STACK.fullmatch(k) for k in field)


def _owned(field: Any, params: dict[_Path, Any]) -> list[tuple[_Path, Any]] | None:
    """The arrays of a field with their parameters, or None where the field is not like them."""
    if _holds_state(field):
        return None
    found = [(_owner(path, params), leaf) for path, leaf in jax.tree.leaves_with_path(field)]
    owned = [(owner, leaf) for owner, leaf in found if owner is not None]
    if len(owned) < len(found):
        return None
    whole = params.get(())  # a tree that is one array: its path, being empty, starts every other
    if whole is not None and isinstance(field, dict):
        return None
    if whole is not None and not any(_like(whole, leaf) for _, leaf in owned):
        return None
    return owned


def _like(param: Any, leaf: Any) -> bool:
    """Whether the leaf is no mere counter or coefficient beside the one array of parameters."""
    return leaf.ndim > 0 or (param.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.inexact))


def _owner(path: _Path, params: dict[_Path, Any]) -> _Path | None:
    """The parameter whose path `path` is or lies below."""
    starts = (path[:length] for length in range(len(path) + 1))
    return next((start for start in starts if start in params), None)


def _children(node: Any) -> list[tuple[_Path, Any]]:
    """What is one level down; of a leaf, the leaf itself."""
    return jax.tree.leaves_with_path(node, is_leaf=lambda x: x is not node)


def _is_named(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _holds_state(node: Any) -> bool:
    """Whether states stand below, whose keys and indices may look like those of parameters."""
    if _is_named(node) and type(node).__name__.endswith("State"):
        return True
    return any(child is not node and _holds_state(child) for _, child in _children(node))


def _size(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize


def _method(name: str) -> str:
    """`ScaleByLionState` -> `lion`."""
    stem = name.removeprefix("ScaleBy").removesuffix("State")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", stem).lower()
