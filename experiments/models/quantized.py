"""Weights as integer codes and a scale for each group of rows: int8, or int4 packed two in a byte.

    scale = max |w| / most,   code = round(w / scale),   w ~ scale code

over groups of `group` rows of each column; most is 127 or 7. A `Quantized` node stands where the
matrix was, with the same leading axes, so that a scan over layers slices it; `dequantized` makes
the matrices of one layer where the model reads it. Codes are integers and stay; scales are
parameters, which `zeroth_order.qzo` tunes.

*Cost.* 1 or 1/2 byte a weight, and 4/group of the scales; a product a weight where it is read.

*Reference.* Absmax group quantisation as of Dettmers et al., 8-bit Optimizers via Block-wise
Quantization, 2021 (arXiv:2110.02861), here linear.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from experiments.models.model import Params
from optim import trees

MOST = {4: 7, 8: 127}  # the largest code, by bits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A stack of matrices (..., rows, columns) as codes and scales."""

    code: jax.Array  # (..., rows, columns) int8, or (..., rows / 2, columns) uint8 of two codes
    scale: jax.Array  # (..., rows / group, columns) float32
    bits: int = dataclasses.field(metadata={"static": True})


def quantized(params: Params, matrices: Any, *, bits: int, group: int) -> Params:
    """The parameters with `Quantized` nodes for the leaves that patterns select.

    Args:
      params: parameters.
      matrices: True by patterns of paths, such as `{"blocks/.*kernel": True}`.
      bits: 4 or 8.
      group: rows that share a scale.

    Raises:
      ValueError: bits is neither, or group does not divide the rows of a selected leaf, or, with 4
        bits, their number is odd.

    >>> import jax.numpy as jnp
    >>> from experiments.models.quantized import dequantized, quantized
    >>> params = {"w": jnp.array([[0.5, 7.0], [-3.5, 2.0]]), "b": jnp.ones(2)}
    >>> small = quantized(params, {"w": True}, bits=4, group=2)
    >>> print(small["w"].code.nbytes, dequantized(small)["w"].tolist())
    2 [[0.5, 7.0], [-3.5, 2.0]]
    """
    if bits not in MOST:
        raise ValueError(f"quantized: bits is {bits}; accepted: {', '.join(map(str, MOST))}.")
    trees.check_at_least("quantized", 1, group=group)
    rules = list(matrices.items() if hasattr(matrices, "items") else matrices)
    chosen = trees.labels_by_path("quantized: matrices", params, rules, False)

    def one(path: tuple[Any, ...], w: jax.Array, chosen: bool) -> Any:
        if not chosen:
            return w
        rows = w.shape[-2] if w.ndim >= 2 else 0
        if not rows or rows % group or (bits == 4 and rows % 2):
            raise ValueError(
                f"quantized: {trees.path_string(path)!r} has the shape {w.shape}; accepted: "
                f"matrices whose rows are a multiple of group = {group}"
                f"{' and even' if bits == 4 else ''}."
            )
        return _quantized(w, bits, group)

    return jax.tree.map_with_path(one, params, chosen)


def dequantized(params: Params) -> Params:
    """The parameters with float32 matrices in place of `Quantized` nodes, whose scales are read."""

    def one(w: Any) -> Any:
        if not isinstance(w, Quantized):
            return w
        code = _unpacked(w.code) if w.bits == 4 else w.code
        *front, groups, columns = w.scale.shape
        grouped = code.reshape(*front, groups, -1, columns).astype(jnp.float32)
        return (grouped * w.scale[..., None, :]).reshape(code.shape)

    return jax.tree.map(one, params, is_leaf=lambda w: isinstance(w, Quantized))


def _quantized(w: jax.Array, bits: int, group: int) -> Quantized:
    most, (*front, rows, columns) = MOST[bits], w.shape
    grouped = w.astype(jnp.float32).reshape(*front, rows // group, group, columns)
    scale = jnp.maximum(jnp.max(jnp.abs(grouped), axis=-2) / most, 1e-7)
    code = jnp.round(grouped / scale[..., None, :]).astype(jnp.int8).reshape(w.shape)
    return Quantized(_packed(code) if bits == 4 else code, scale, bits)


def _packed(code: jax.Array) -> jax.Array:
    """Even rows in the low half of a byte, odd ones in the high half, each plus 8."""
    halves = (code + 8).astype(jnp.uint8)
    return halves[..., 0::2, :] | (halves[..., 1::2, :] << 4)


def _unpacked(code: jax.Array) -> jax.Array:
    *front, rows, columns = code.shape
    halves = jnp.stack([code & 15, code >> 4], axis=-2).astype(jnp.int8) - 8
    return halves.reshape(*front, 2 * rows, columns)
