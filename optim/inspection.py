"""What a transformation keeps for each parameter, without making anything."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import optax

from optim.trees import path_string


class _Entry(NamedTuple):
    path: str | None  # of the parameter that it belongs to; None: shared
    method: str
    size: int  # bytes


def describe(tx: optax.GradientTransformation, params: optax.Params) -> str:
    """A table of parameters: path, shape, dtype, the methods that keep a state for it, bytes of it.

    A state belongs to a parameter when its path, from the state's own fields on, starts with the
    parameter's: momenta do, and the factors that a matrix method keeps below a parameter's name.

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
    leaves = jax.tree.leaves_with_path(jax.eval_shape(lambda p: p, params))
    names = {path_string(path): leaf for path, leaf in leaves}
    entries = list(_walk(jax.eval_shape(tx.init, params), "", names))
    rows = [("parameter", "shape", "dtype", "method", "state bytes")]
    for path, leaf in names.items():
        own = [entry for entry in entries if entry.path == path]
        methods = ", ".join(dict.fromkeys(entry.method for entry in own)) or "-"
        size = sum(entry.size for entry in own)
        rows.append((path, str(leaf.shape), str(leaf.dtype), methods, str(size)))
    shared = sum(entry.size for entry in entries if entry.path is None)
    total = sum(entry.size for entry in entries)
    count = sum(math.prod(leaf.shape) for leaf in names.values())
    rows.append(("shared", "", "", "", str(shared)))
    rows.append(("total", "", "", "", str(total)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row[:4], widths)), row[4].rjust(widths[4])])
        for row in rows
    ]
    return "\n".join(lines) + f", {total / max(count, 1):.3g} a parameter"


def _walk(node: Any, method: str, names: dict[str, Any]) -> Iterator[_Entry]:
    """The leaves of a state, each with its parameter and the nearest named state around it."""
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        method = _method(type(node).__name__)
    found = [(_owner(path_string(p), names), leaf) for p, leaf in jax.tree.leaves_with_path(node)]
    children = _children(node)
    if (found and all(owner is not None for owner, _ in found)) or not children:
        yield from (_Entry(owner, method, leaf.size * leaf.dtype.itemsize) for owner, leaf in found)
        return
    for child in children:
        yield from _walk(child, method, names)


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return [*node.values()]
    return [*node] if isinstance(node, (tuple, list)) else []


def _owner(path: str, names: dict[str, Any]) -> str | None:
    """The parameter whose path `path` is or lies below, the longest where several do."""
    prefixes = [name for name in names if path == name or path.startswith(f"{name}/") or not name]
    return max(prefixes, key=len, default=None)


def _method(name: str) -> str:
    """`ScaleByLionState` -> `lion`."""
    stem = name.removeprefix("ScaleBy").removesuffix("State")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", stem).lower()
