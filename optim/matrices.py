"""A model's matrices in a few batched stacks: layouts by path, groups by shape, on a mesh.

A layout is one letter an axis, in the order of the leaf's axes: `m` rows (what the layer
contracts), `n` columns, `b` batch (a layer axis, a head). Axes that share a letter are flattened
together in order, and `3n` or `3m` declares an axis that holds three matrices side by side::

    "m n"      a Dense kernel                       "b m n"    layers stacked for a scan
    "m b n"    (d, heads, head_dim), a head each    "m n n"    the same, all heads as one matrix
    "m 3n"     a fused query-key-value kernel       "b m 3n"   the same, stacked
    "m m m n"  a convolution (kh, kw, in, out)      None       not a matrix

Without rules a leaf of two axes or more is a matrix in flax's layout: the last axis columns, all
others rows. Integers and leaves without elements are never matrices.

Same-shaped matrices of one dtype form a group, a tall matrix with its transpose unless that is
switched off, so that a method is one kernel a group on a stack (batch, m, n).

On a mesh, `mesh_axis` names the axis, or axes, over which the stack's first axis is split: each
device works on whole matrices, with one all-to-all in, one out, and none between. It wants
`jax.set_mesh(mesh)` around the jitted step.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike, DTypeLike

from optim import trees

Matrices = Mapping[str, str | None] | None
MeshAxis = str | Sequence[str] | None

FILLS_A_CHIP = 2**22  # elements of a batch of matrices whose product keeps an accelerator busy


class Axes(NamedTuple):
    """How one leaf becomes (batch, rows, columns), or (batch, *modes)."""

    split: tuple[int, ...]  # the leaf's shape with `3n` axes split in two
    order: tuple[int, ...]  # transposition that brings batch, then rows, then columns together
    shape: tuple[int, ...]  # batch, rows, columns; or batch and the size of each mode
    transposed: bool  # stacked with rows and columns swapped


class Member(NamedTuple):
    """One leaf of a group."""

    position: int  # among the leaves, None and masked ones left out
    path: str
    shape: tuple[int, ...]
    axes: Axes


class Group(NamedTuple):
    """Leaves whose matrices, or tensors, have one shape."""

    members: tuple[Member, ...]
    shape: tuple[int, ...]  # batch, m, n of the stack; or batch and modes
    dtype: jnp.dtype  # for accumulators: that of the leaves, float32 at least

    @property
    def name(self) -> str:
        """A name that no other group of the same tree has."""
        return f"{'x'.join(str(size) for size in self.shape[1:])}_{self.dtype.name}"


def _has_elements(leaf: ArrayLike) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and jnp.size(leaf) > 0


def _is_matrix(leaf: ArrayLike) -> bool:
    return _has_elements(leaf) and jnp.ndim(leaf) >= 2


def layouts(method: str, tree: Any, matrices: Matrices = None) -> list[str | None]:
    """The layout of every leaf, or None, in the order of `jax.tree.leaves`.

    Args:
      method: named in errors.
      tree: parameters, or a gradient of their structure.
      matrices: pattern for the whole path -> layout or None; None means flax's layout by shape.

    Raises:
      ValueError: a pattern matches nothing, two patterns with different layouts match one leaf, a
        leaf of two axes or more has no pattern, or a layout does not fit the leaf.
    """
    leaves = jax.tree.leaves_with_path(tree)
    if matrices is None:
        return [_by_shape(leaf) if _is_matrix(leaf) else None for _, leaf in leaves]
    rules = {pattern: _Label(layout) for pattern, layout in matrices.items()}
    labels = trees.labels_by_path(f"{method}: matrices", tree, rules, default=_Label(_UNNAMED))
    found: list[str | None] = []
    for (path, leaf), label in zip(leaves, jax.tree.leaves(labels), strict=True):
        name, layout = trees.path_string(path), label.layout
        if layout == _UNNAMED and _is_matrix(leaf):
            raise ValueError(
                f"{method}: matrices has no pattern for the leaf {name!r} of shape "
                f'{jnp.shape(leaf)}; give it a layout such as "m n", or None if it is no matrix.'
            )
        layout = layout if layout != _UNNAMED and _has_elements(leaf) else None
        found.append(layout if layout is None else _checked(method, name, leaf, layout))
    return found


_UNNAMED = ""


class _Label:
    """A layout as a leaf of its own, so that None stays one."""

    def __init__(self, layout: str | None) -> None:
        self.layout = layout

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Label) and self.layout == other.layout


def _by_shape(leaf: ArrayLike) -> str:
    return " ".join(["m"] * (jnp.ndim(leaf) - 1) + ["n"])


def _checked(method: str, name: str, leaf: ArrayLike, layout: str) -> str:
    shape, words = jnp.shape(leaf), layout.split()
    where = f"{method}: matrices: the layout {layout!r} of {name!r}"
    if len(words) != len(shape) or not all(re.fullmatch(r"b|([1-9]\d*)?[mn]", w) for w in words):
        raise ValueError(
            f"{where} must give b, m or n, or a count and m or n, for each of the axes {shape}."
        )
    if not {"m", "n"} <= {word[-1] for word in words}:
        raise ValueError(f"{where} needs an m and an n axis.")
    for word, size in zip(words, shape, strict=True):
        if size % int(word[:-1] or 1):
            raise ValueError(f"{where}: an axis of size {size} does not divide as {word!r}.")
    return layout


def check_all_matrices(method: str, tree: Any, matrices: Matrices = None) -> None:
    """Raises ValueError naming a leaf that is no matrix, unless it has nothing to train."""
    found = layouts(method, tree, matrices)
    for (path, leaf), layout in zip(jax.tree.leaves_with_path(tree), found, strict=True):
        if layout is None and _has_elements(leaf):
            raise ValueError(
                f"{method}: the leaf {trees.path_string(path)!r} of shape {jnp.shape(leaf)} is no "
                f"matrix; give {method} an auxiliary optimizer, which takes such leaves, or give "
                f"the leaf a layout in matrices."
            )


def with_auxiliary(
    method: str,
    main: optax.GradientTransformation,
    auxiliary: optax.GradientTransformation | None,
    matrices: Matrices = None,
) -> optax.GradientTransformationExtraArgs:
    """`main` for the matrices of a tree and `auxiliary`, if there is one, for all other leaves.

    The state is that of `optax.partition`, whose groups are called by `method` and "auxiliary".
    """
    if auxiliary is None:
        return optax.with_extra_args_support(main)

    def labels(tree: Any) -> list[str]:
        found = layouts(method, tree, matrices)
        return ["auxiliary" if layout is None else method for layout in found]

    return partition_leaves({method: main, "auxiliary": auxiliary}, labels)


def partition_leaves(
    groups: Mapping[str, optax.GradientTransformation], labels: Callable[[Any], list[str]]
) -> optax.GradientTransformationExtraArgs:
    """`optax.partition` by the leaves of the parameters, where these are given.

    A gradient may be None, or of another dtype, where they are not.
    """

    def partition(tree: Any) -> optax.GradientTransformationExtraArgs:
        labelled = jax.tree.unflatten(jax.tree.structure(tree), labels(tree))
        return optax.partition(groups, labelled, mask_compatible_extra_args=True)

    def init(params: optax.Params) -> optax.OptState:
        return partition(params).init(params)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        tree = updates if params is None else params
        return partition(tree).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


@functools.cache
def matrix_axes(shape: tuple[int, ...], layout: str, transpose: bool = True) -> Axes:
    """How a leaf of that shape and layout becomes a stack, rows <= columns if `transpose`."""
    split, letters = _split(shape, layout)
    order = tuple(i for kind in "bmn" for i, letter in enumerate(letters) if letter == kind)
    b, m, n = (
        math.prod(s for s, k in zip(split, letters, strict=True) if k == kind) for kind in "bmn"
    )
    return Axes(split, order, (b, m, n), transpose and m > n)


@functools.cache
def mode_axes(shape: tuple[int, ...], layout: str | None) -> Axes:
    """How a leaf becomes a stack of tensors: each `m` and `n` axis a mode, in the leaf's order.

    A leaf without a layout is one vector.
    """
    if layout is None:
        return Axes((math.prod(shape),), (0,), (1, math.prod(shape)), False)
    split, letters = _split(shape, layout)
    batch = [i for i, letter in enumerate(letters) if letter == "b"]
    modes = [i for i, letter in enumerate(letters) if letter != "b"]
    count = math.prod(split[i] for i in batch)
    return Axes(split, (*batch, *modes), (count, *(split[i] for i in modes)), False)


def _split(shape: tuple[int, ...], layout: str) -> tuple[tuple[int, ...], list[str]]:
    """The shape with `3n` axes split in two, and the letter of each axis."""
    split: list[int] = []
    letters: list[str] = []
    for word, size in zip(layout.split(), shape, strict=True):
        count = int(word[:-1] or 1)
        if count > 1:
            split, letters = [*split, count], [*letters, "b"]
        split, letters = [*split, size // count], [*letters, word[-1]]
    return tuple(split), letters


def to_matrices(leaf: jax.Array, axes: Axes) -> jax.Array:
    """The leaf as (batch, m, n)."""
    x = leaf.reshape(axes.split).transpose(axes.order).reshape(axes.shape)
    return x.mT if axes.transposed else x


def from_matrices(x: jax.Array, axes: Axes, shape: tuple[int, ...]) -> jax.Array:
    """The way back."""
    x = x.mT if axes.transposed else x
    x = x.reshape([axes.split[i] for i in axes.order])
    return x.transpose([axes.order.index(i) for i in range(len(axes.order))]).reshape(shape)


def group_matrices(
    method: str, tree: Any, matrices: Matrices = None, *, transpose: bool = True
) -> tuple[Group, ...]:
    """The groups of a tree, in order of first appearance; static, so cheap at trace time.

    Args:
      method: named in errors.
      tree: parameters, or a gradient of their structure.
      matrices: pattern for the whole path -> layout or None; None means flax's layout by shape.
      transpose: whether a tall matrix is stacked as its transpose.

    Raises:
      ValueError: as `layouts`.
    """
    found: dict[Any, list[Member]] = {}
    layout_of = layouts(method, tree, matrices)
    for index, (path, leaf) in enumerate(jax.tree.leaves_with_path(tree)):
        if (layout := layout_of[index]) is not None:
            axes = matrix_axes(jnp.shape(leaf), layout, transpose)
            _, m, n = axes.shape
            key = ((n, m) if axes.transposed else (m, n)), trees.accumulator_dtype(leaf)
            member = Member(index, trees.path_string(path), jnp.shape(leaf), axes)
            found.setdefault(key, []).append(member)
    return tuple(
        Group(tuple(members), (sum(x.axes.shape[0] for x in members), *shape), dtype)
        for (shape, dtype), members in found.items()
    )


def momentum_like(params: Any, dtype: DTypeLike | None = None) -> Any:
    """Zeros like the parameters, in `dtype` or their accumulators', with the groups these have.

    Integers keep their dtype, by which they are known to be no matrices.
    """

    def zeros(p: ArrayLike) -> jax.Array:
        inexact = jnp.issubdtype(jnp.result_type(p), jnp.inexact)
        return jnp.zeros_like(p, dtype or trees.accumulator_dtype(p) if inexact else None)

    return jax.tree.map(zeros, params)


def stack(group: Group, leaves: Sequence[Any], dtype: DTypeLike | None = None) -> jax.Array:
    """The group's matrices, (batch, m, n), in `dtype` or the group's."""
    wanted = jnp.dtype(dtype or group.dtype)
    parts = [to_matrices(trees.as_dtype(leaves[x.position], wanted), x.axes) for x in group.members]
    if len(parts) == 1 or not _one_kernel_for_all_slices():
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    # A concatenation is one kernel with a branch a part, and holds more stacks at a time.
    stacked, start = jnp.zeros(group.shape, wanted), 0
    for part in parts:
        stacked = jax.lax.dynamic_update_slice_in_dim(stacked, part, _hidden(start, part), 0)
        start += part.shape[0]
    return stacked


def unstack(group: Group, stacked: jax.Array, leaves: Sequence[Any]) -> list[Any]:
    """`leaves` with the group's members replaced by their slices of `stacked`."""
    leaves, start = list(leaves), 0
    hide = len(group.members) > 1 and _one_kernel_for_all_slices()
    for x in group.members:
        count = x.axes.shape[0]
        if hide:
            part = jax.lax.dynamic_slice_in_dim(stacked, _hidden(start, stacked), count)
        else:
            part = jax.lax.slice_in_dim(stacked, start, start + count)
        leaves[x.position] = from_matrices(part, x.axes, x.shape)
        start += count
    return leaves


def _one_kernel_for_all_slices() -> bool:
    """Whether `stack` and `unstack` hide where slices begin.

    A CPU compiles a kernel for each beginning that it knows, which for a list of layers takes
    longer than all else. Under a mesh, which may be that of another machine, the partitioner has to
    know them.
    """
    return jax.default_backend() == "cpu" and jax.sharding.get_abstract_mesh().empty


def _hidden(start: int, x: jax.Array) -> jax.Array:
    """`start`, in a way that the compiler cannot see through.

    The sign of some number chooses between two entries that are both `start`; without the third,
    which nothing chooses, the compiler would notice.
    """
    positive = (x[(0,) * x.ndim] > 0).astype(jnp.int32)
    entries = jnp.array([start, start, -1], jnp.int32)
    return jax.lax.dynamic_index_in_dim(entries, positive, keepdims=False)


def in_chunks(kernel: Callable[..., Any], chunk: int | None = None) -> Callable[..., Any]:
    """The kernel, ([batch,] m, n) -> same, on some of the matrices at a time, in place.

    What it is called on, and all that the kernel only reads after it, may be trees of stacks. A
    loop that overwrites its carry needs the temporaries of one chunk and no second stack: right
    where a chunk fills the machine. It has at most `chunk` matrices; None means one on a CPU, and
    elsewhere as many as have `FILLS_A_CHIP` elements. Which of them is decided where the program is
    lowered, so that what is compiled for a slice is what would run there.
    """

    def in_place(x: Any, *inputs: Any) -> Any:
        first = jax.tree.leaves(x)[0]
        divisors = [c for c in range(1, first.shape[0] + 1) if first.shape[0] % c == 0]
        if chunk is not None:
            most = max(c for c in divisors if c <= chunk)
            return _in_loop(kernel, most, x, *inputs)
        wanted = -(-FILLS_A_CHIP // max(1, math.prod(first.shape[1:])))
        many = min(c for c in divisors if c >= min(wanted, first.shape[0]))
        if many == 1:
            return _in_loop(kernel, 1, x, *inputs)
        return jax.lax.platform_dependent(
            x,
            *inputs,
            cpu=functools.partial(_in_loop, kernel, 1),
            default=functools.partial(_in_loop, kernel, many),
        )

    return in_place


def _in_loop(kernel: Callable[..., Any], size: int, x: Any, *inputs: Any) -> Any:
    """The kernel on `size` matrices after another, overwriting x."""
    count = jax.tree.leaves(x)[0].shape[0]

    def run(*parts: Any) -> Any:
        if size > 1:
            return kernel(*parts)
        # A CPU multiplies a matrix faster than a batch of one.
        return jax.tree.map(lambda y: y[None], kernel(*jax.tree.map(lambda y: y[0], parts)))

    def body(i: jax.Array, x: Any) -> Any:
        def part(y: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(y, i * size, size)

        def overwrite(y: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(y, new, i * size, 0)

        return jax.tree.map(overwrite, x, run(*jax.tree.map(part, (x, *inputs))))

    if size == count:
        return run(x, *inputs)
    return jax.lax.fori_loop(0, count // size, body, x)


def axis_names(mesh_axis: MeshAxis) -> tuple[str, ...]:
    """The axis or axes as a tuple."""
    return (mesh_axis,) if isinstance(mesh_axis, str) else tuple(mesh_axis or ())


def check_mesh_axis(method: str, mesh_axis: MeshAxis, argument: str = "mesh_axis") -> None:
    """Raises ValueError if the mesh set by `jax.set_mesh` lacks the axis."""
    mesh = jax.sharding.get_abstract_mesh()
    if missing := [name for name in axis_names(mesh_axis) if name not in mesh.shape]:
        raise ValueError(
            f"{method}: {argument} is {mesh_axis!r}, but {missing} is not among the axes "
            f"{tuple(mesh.axis_names)} of the mesh set by jax.set_mesh."
        )


def padding(count: int, mesh_axis: MeshAxis) -> int:
    """Zero matrices that make a stack of `count` divisible over the mesh axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return -count % math.prod(mesh.shape[name] for name in axis_names(mesh_axis))


def gather_matrices(x: jax.Array, mesh_axis: MeshAxis, columns: Any = P.UNCONSTRAINED) -> jax.Array:
    """A stack with whole rows on each device and its first axis, padded, over `mesh_axis`.

    Columns are left unconstrained: where the parameters split them over another axis (tensor
    parallelism) they stay split, and only Gram matrices are summed over it. Several mesh axes are
    taken one at a time, since GSPMD has no direct way and would replicate the stack.
    """
    names = axis_names(mesh_axis)
    if not names:
        return x
    x = jnp.pad(x, ((0, padding(x.shape[0], names)), *((0, 0),) * (x.ndim - 1)))
    whole = (None,) * (x.ndim - 2)
    for i in range(len(names)):
        x = jax.lax.with_sharding_constraint(x, P(names[: i + 1], *whole, columns))
    return x


def scatter_matrices(
    x: jax.Array, count: int, mesh_axis: MeshAxis, columns: Any = P.UNCONSTRAINED
) -> jax.Array:
    """The way back, padding cut off; the parameters' own sharding is then GSPMD's to find."""
    names, whole = axis_names(mesh_axis), (None,) * (x.ndim - 2)
    for i in reversed(range(len(names))):
        x = jax.lax.with_sharding_constraint(x, P(names[: i + 1], *whole, columns))
    return x[:count] if names else x


def on_each_device(kernel: Callable[..., Any], mesh_axis: MeshAxis) -> Callable[..., Any]:
    """The kernel on each device's own matrices: manual over `mesh_axis`, all else left to GSPMD.

    Every argument and result, tree or array, has the stack axis first; inside, that axis is local,
    so a loop over it is a loop over one device's matrices.
    """
    names = axis_names(mesh_axis)
    if not names:
        return kernel
    return jax.shard_map(
        kernel, in_specs=P(names), out_specs=P(names), axis_names=set(names), check_vma=False
    )


def distributed(
    kernel: Callable[[jax.Array], jax.Array], x: jax.Array, mesh_axis: MeshAxis
) -> jax.Array:
    """kernel(x) for a stack x (batch, m, n), each device along `mesh_axis` on whole matrices."""
    whole = gather_matrices(x, mesh_axis)
    return scatter_matrices(on_each_device(kernel, mesh_axis)(whole), x.shape[0], mesh_axis)
