"""Scion: steepest descent, or Frank-Wolfe, in a norm that each kind of layer is given.

With gradient `g`, momentum `m` (0 at the start), parameters `p`, rate `lr`, and for each leaf a
norm with its scale `s`, the radius of the ball::

    m = b1 m + (1 - b1) g
    p = (1 - lr) p - lr s lmo(m)        constrained: p stays within s times the norm's unit ball
    p = p - lr s lmo(m)                 unconstrained

For a matrix of `i` inputs and `o` outputs, in flax's layout (inputs, outputs), `lmo(m)` is

    SpectralNorm        NewtonSchulz(m) sqrt(o / i)
    SpectralConvNorm    NewtonSchulz(m) sqrt(o / c) / k^2, of c channels, a k x k window
    ColumnNorm          what leaves an input, over its root mean square
    RowNorm             what enters an output, over its length and over sqrt(i)
    SignNorm            sign(m) / i
    BiasRMSNorm         m over the root mean square of its last axis
    AutoNorm            one of the first two or BiasRMSNorm, by the number of axes

*Scion Light* keeps no momentum: with b1 = 0 nothing is stored, and whoever accumulates gradients
lets the sum decay, `total = b1 * total + gradient`, and hands it over as the gradient. Since an
lmo is blind to the factor 1 - b1, that is Scion but for the 1e-8 in some norms and the 1e-7 in
Newton-Schulz, and one buffer serves as gradient and momentum.

*Differences.* From the authors' code: (1) Their `momentum` is 1 - b1. (2) Columns and rows are
theirs, named in torch's (outputs, inputs), so that an embedding (entries, features) needs no
`transpose` here and does there. (3) AutoNorm takes for a matrix what `matrices` declares, whatever
its number of axes. (4) `scion_init` draws from JAX's generator, and knows 1-D convolutions, at
which theirs stops. (5) The rate has to be given (1e-3 there). Their airbench example is another
variant: its momentum starts at the first gradient, and its Newton-Schulz differs. For a window that
is not square, k is its first side, as in their code.

*Cost.* 4 bytes a parameter, none with b1 = 0. A Newton-Schulz of each spectral matrix: 15 matrix
products, batched over matrices of one shape.

*Reference.* Pethick et al., Training Deep Learning Models with Norm-Constrained LMOs, 2025
(arXiv:2502.07529); LIONS-EPFL/scion@f58a393e0103, scion.py.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optim import matrices as stacks
from optim import trees
from optim.solvers import newton_schulz

_EPS = 1e-8


@dataclasses.dataclass(frozen=True)
class SpectralNorm:
    """The largest singular value, in terms of root mean squares: for hidden matrices."""

    scale: float = 1.0  # s, the radius
    max: bool = False  # at least 1 for the factor sqrt(outputs / inputs), as input layers want
    normalized: bool = True  # divide by sqrt(inputs)
    steps: int = 5  # of Newton-Schulz


@dataclasses.dataclass(frozen=True)
class SpectralConvNorm:
    """SpectralNorm at each position of a convolution's window, (*window, inputs, outputs).

    The first side of the window counts for all, and without a window the factor is 1, as in the
    authors' code.
    """

    scale: float = 1.0  # s, the radius
    steps: int = 5  # of Newton-Schulz


@dataclasses.dataclass(frozen=True)
class ColumnNorm:
    """The largest root mean square of what leaves an input: for first layers and embeddings."""

    scale: float = 1.0  # s, the radius
    normalized: bool = False  # divide by the number of inputs
    transpose: bool = False  # the leaf is (outputs, inputs)


@dataclasses.dataclass(frozen=True)
class RowNorm:
    """The largest length of what enters an output: for last layers."""

    scale: float = 1.0  # s, the radius
    normalized: bool = True  # divide by sqrt(inputs)
    transpose: bool = False  # the leaf is (outputs, inputs)


@dataclasses.dataclass(frozen=True)
class SignNorm:
    """The largest entry: for last layers, and for embeddings that are tied to one."""

    scale: float = 1.0  # s, the radius
    normalized: bool = True  # divide by the number of inputs
    zero_init: bool = False  # what `scion_init` does: zeros instead of random signs


@dataclasses.dataclass(frozen=True)
class BiasRMSNorm:
    """The root mean square over the last axis: for biases and other vectors."""

    scale: float = 1.0  # s, the radius


@dataclasses.dataclass(frozen=True)
class AutoNorm:
    """By the number of axes: two SpectralNorm, three or four SpectralConvNorm, fewer BiasRMSNorm.

    A leaf with a layout in `matrices` has SpectralNorm.
    """

    scale: float = 1.0  # s, the radius


Norm = SpectralNorm | SpectralConvNorm | ColumnNorm | RowNorm | SignNorm | BiasRMSNorm | AutoNorm
Norms = Mapping[str, Norm]

DEFAULT_NORMS: Norms = {".*": AutoNorm()}  # the authors'


class ScaleByScionState(NamedTuple):
    """State of `scale_by_scion`."""

    mu: optax.Updates | None  # like the parameters, float32 or wider: momentum m; None if b1 is 0


class _Leaf(NamedTuple):
    """How one leaf is treated."""

    shape: tuple[int, ...]
    norm: Norm  # AutoNorm resolved
    axes: stacks.Axes | None  # as (batch, inputs, outputs); None for a vector


def scale_by_scion(
    b1: ArrayLike = 0.0,
    *,
    norms: Norms = DEFAULT_NORMS,
    matrices: stacks.Matrices = None,
    dtype: DTypeLike | None = "bfloat16",
    mesh_axis: stacks.MeshAxis = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction s lmo(m) of Scion, without rate or constraint.

    Args:
      b1: decay of the momentum, in [0, 1); the authors' momentum is 1 - b1. The number 0 stores
        none.
      norms: pattern for the whole path -> norm. Every leaf of floats needs one.
      matrices: pattern for the whole path -> layout or None (see `optim.matrices`), for leaves that
        are not in flax's layout, such as attention heads or stacked layers.
      dtype: of Newton-Schulz; None means that of the momentum.
      mesh_axis: name of the mesh axis, or axes, over which same-shaped matrices are spread.

    Raises:
      ValueError: b1 is a number outside [0, 1), a leaf has no norm or one that does not fit its
        shape, or patterns match nothing or contradict each other.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_scion(norms={"head": optim.SignNorm(6.0), "bias": optim.BiasRMSNorm()})
    >>> params = {"head": jnp.zeros((2, 3)), "bias": jnp.zeros(2)}
    >>> gradient = {"head": jnp.array([[1.0, -2, 0], [0, 5, 5]]), "bias": jnp.array([7.0, -1])}
    >>> print(tx.update(gradient, tx.init(params))[0])
    {'bias': Array([ 1.4, -0.2], dtype=float32), 'head': Array([[ 3., -3.,  0.],
           [ 0.,  3.,  3.]], dtype=float32)}
    """
    trees.check_fractions("scion", b1=b1)
    _check_norms(norms)
    without_momentum = isinstance(b1, numbers.Real) and b1 == 0

    def init(params: optax.Params) -> ScaleByScionState:
        stacks.check_mesh_axis("scion", mesh_axis)
        _plan(params, norms, matrices)
        return ScaleByScionState(None if without_momentum else trees.zeros_like(params))

    def update(
        updates: optax.Updates,
        state: ScaleByScionState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByScionState]:
        del params, extra_args
        plan = _plan(updates, norms, matrices)
        orthogonal = functools.partial(
            _orthogonal, matrices=matrices, dtype=dtype, mesh_axis=mesh_axis
        )
        if state.mu is None:
            moved, _ = trees.map_leaves(lambda g: (g,), updates)
        else:
            moved, (mu,) = trees.map_leaves(
                lambda g, m: (trees.average(b1, m, g),) * 2, updates, (state.mu,)
            )
            state = ScaleByScionState(mu)
        return _lmo(moved, plan, orthogonal), state

    return optax.GradientTransformationExtraArgs(init, update)


def scion(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: ArrayLike = 0.0,
    norms: Norms = DEFAULT_NORMS,
    unconstrained: bool = False,
    matrices: stacks.Matrices = None,
    dtype: DTypeLike | None = "bfloat16",
    mesh_axis: stacks.MeshAxis = None,
) -> optax.GradientTransformationExtraArgs:
    """Scion; constrained, the rate is also the decay, for each leaf's scale is its radius.

    Args:
      learning_rate: lr, the step in units of each leaf's scale, or a schedule of it.
      b1: decay of the momentum, in [0, 1); the authors' momentum is 1 - b1. The number 0 stores
        none.
      norms: pattern for the whole path -> norm. Every leaf of floats needs one.
      unconstrained: leave out the factor 1 - lr of the parameters.
      matrices: pattern for the whole path -> layout or None (see `optim.matrices`), for leaves that
        are not in flax's layout, such as attention heads or stacked layers.
      dtype: of Newton-Schulz; None means that of the momentum.
      mesh_axis: name of the mesh axis, or axes, over which same-shaped matrices are spread.

    Raises:
      ValueError: as `scale_by_scion`.

    >>> import jax, jax.numpy as jnp, optim
    >>> norms = {"block": optim.SpectralNorm(50.0), "head": optim.SignNorm(3000.0)}
    >>> params = {"block": jnp.ones((4, 4)), "head": jnp.ones((4, 9))}
    >>> params = optim.scion_init(jax.random.key(0), params, norms=norms)
    >>> tx = optim.scion(2**-12, b1=0.9, norms=norms)
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> abs(optim.apply_updates(params, updates)["head"]).max().item() <= 3000 / 4
    True
    """
    direction = scale_by_scion(b1, norms=norms, matrices=matrices, dtype=dtype, mesh_axis=mesh_axis)
    constraint = trees.add_decayed_weights(1.0)
    links = [direction] if unconstrained else [direction, constraint]
    return optax.chain(*links, optax.scale_by_learning_rate(learning_rate))


def scion_init(
    key: jax.Array,
    params: optax.Params,
    *,
    norms: Norms = DEFAULT_NORMS,
    matrices: stacks.Matrices = None,
) -> optax.Params:
    """Parameters anew, on the sphere of each leaf's norm and scale, as the authors start.

    Orthogonal matrices for the spectral norms, normalized Gaussian columns or rows, random signs,
    zeros for biases. Constrained Scion keeps them in the ball.

    Args:
      key: a typed key.
      params: only paths, shapes and dtypes count, so `jax.ShapeDtypeStruct` will do; integers and
        leaves without elements are handed back.
      norms: as given to `scion`.
      matrices: as given to `scion`.

    Raises:
      ValueError: as `scale_by_scion`.

    >>> import jax, jax.numpy as jnp, optim
    >>> params = {"kernel": jnp.ones((2, 8)), "bias": jnp.ones(8)}
    >>> params = optim.scion_init(jax.random.key(0), params, norms={".*": optim.AutoNorm(3.0)})
    >>> print(jnp.linalg.svd(params["kernel"])[1].round(4), params["bias"])
    [6. 6.] [0. 0. 0. 0. 0. 0. 0. 0.]
    """
    _check_norms(norms)
    key = trees.named_key(key, "scion")
    leaves, structure = jax.tree.flatten_with_path(params)
    plan = _plan(params, norms, matrices)
    drawn = [
        leaf if x is None else _initial(trees.named_key(key, trees.path_string(path)), x, leaf)
        for (path, leaf), x in zip(leaves, plan, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def _check_norms(norms: Norms) -> None:
    for pattern, norm in norms.items():
        if not isinstance(norm, Norm):
            raise ValueError(
                f"scion: norms gives {pattern!r} the value {norm!r}; accepted: a norm, such as "
                f"optim.SpectralNorm(50.0)."
            )


def _plan(tree: Any, norms: Norms, matrices: stacks.Matrices) -> list[_Leaf | None]:
    """For every leaf how it is treated; None for integers and leaves without elements."""
    layouts = stacks.layouts("scion", tree, matrices)
    labels = jax.tree.leaves(trees.labels_by_path("scion: norms", tree, norms, default=""))
    plan: list[_Leaf | None] = []
    for (path, leaf), norm, layout in zip(
        jax.tree.leaves_with_path(tree), labels, layouts, strict=True
    ):
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        present = jnp.issubdtype(dtype, jnp.inexact) and math.prod(shape) > 0
        declared = matrices is not None and layout is not None
        name = trees.path_string(path)
        plan.append(_leaf(name, shape, norm, layout, declared) if present else None)
    return plan


def _leaf(
    name: str, shape: tuple[int, ...], norm: Any, layout: str | None, declared: bool
) -> _Leaf:
    """The treatment of one leaf, or an error that names it."""
    if norm == "":
        raise ValueError(
            f"scion: norms has no pattern for the leaf {name!r} of shape {shape}; "
            f"give it a norm, such as optim.AutoNorm()."
        )
    if isinstance(norm, AutoNorm):
        norm = _resolved(name, shape, norm, declared)
    axes = None if layout is None else stacks.matrix_axes(shape, layout, transpose=False)
    if axes is None and not isinstance(norm, BiasRMSNorm):
        raise ValueError(
            f"scion: norms gives {name!r} {type(norm).__name__}, which is for matrices, but the "
            f"leaf of shape {shape} is none; accepted: BiasRMSNorm or AutoNorm, or a layout in "
            f"matrices."
        )
    if isinstance(norm, SpectralConvNorm) and (declared or len(shape) > 4):
        raise ValueError(
            f"scion: norms gives {name!r} of shape {shape} SpectralConvNorm; accepted: a leaf of 2 "
            f"to 4 axes (*window, inputs, outputs) without a layout in matrices."
        )
    return _Leaf(shape, norm, axes)


def _resolved(name: str, shape: tuple[int, ...], norm: AutoNorm, declared: bool) -> Norm:
    if declared or len(shape) == 2:
        return SpectralNorm(norm.scale)
    if len(shape) < 2:
        return BiasRMSNorm(norm.scale)
    if len(shape) <= 4:
        return SpectralConvNorm(norm.scale)
    raise ValueError(
        f"scion: norms gives {name!r} AutoNorm, which knows nothing of {len(shape)} axes; "
        f"accepted: at most 4 axes, another norm, or a layout in matrices."
    )


def _lmo(tree: Any, plan: list[_Leaf | None], orthogonal: Callable[[Any, int], Any]) -> Any:
    """s lmo(m) of every leaf m of the tree."""
    leaves, structure = jax.tree.flatten(tree)
    by_steps: dict[int, list[int]] = {}
    for i, x in enumerate(plan):
        if x is not None and isinstance(x.norm, SpectralNorm | SpectralConvNorm):
            by_steps.setdefault(x.norm.steps, []).append(i)
        elif x is not None:
            leaves[i] = _normalized(x, leaves[i])
    for steps, chosen in by_steps.items():
        part = jax.tree.unflatten(
            structure, [m if i in chosen else None for i, m in enumerate(leaves)]
        )
        for i, m in zip(chosen, jax.tree.leaves(orthogonal(part, steps)), strict=True):
            leaves[i] = m
    done = [m if x is None else _factor(x) * m for x, m in zip(plan, leaves, strict=True)]
    return jax.tree.unflatten(structure, done)


def _orthogonal(
    tree: Any,
    steps: int,
    *,
    matrices: stacks.Matrices,
    dtype: DTypeLike | None,
    mesh_axis: stacks.MeshAxis,
) -> Any:
    """Newton-Schulz of every leaf of the tree, all of them matrices, group by group."""
    coefficients = (newton_schulz.STANDARD[0],) * steps
    kernel = stacks.in_chunks(
        functools.partial(newton_schulz.newton_schulz, coefficients=coefficients)
    )
    leaves, structure = jax.tree.flatten(tree)
    for group in stacks.group_matrices("scion", tree, matrices):
        x = stacks.stack(group, leaves, dtype)
        x = stacks.distributed(kernel, x, mesh_axis).astype(group.dtype)
        leaves = stacks.unstack(group, x, leaves)
    return jax.tree.unflatten(structure, leaves)


def _factor(leaf: _Leaf) -> float:
    """The scale, with what a spectral norm multiplies an orthogonal matrix by."""
    norm, axes = leaf.norm, leaf.axes
    if isinstance(norm, SpectralNorm) and axes is not None:
        _, inputs, outputs = axes.shape
        factor = math.sqrt(outputs / inputs if norm.normalized else outputs)
        return norm.scale * (max(1.0, factor) if norm.max else factor)
    if isinstance(norm, SpectralConvNorm) and len(leaf.shape) > 2:
        side, *_, inputs, outputs = leaf.shape
        return norm.scale * math.sqrt(outputs / inputs) / side ** (len(leaf.shape) - 2)
    return norm.scale


def _normalized(leaf: _Leaf, m: jax.Array) -> jax.Array:
    """lmo(m), without the scale, for the norms that need no orthogonal matrix."""
    norm, axes = leaf.norm, leaf.axes
    if isinstance(norm, SignNorm) and axes is not None:
        return jnp.sign(m) / (axes.shape[1] if norm.normalized else 1)
    if isinstance(norm, ColumnNorm | RowNorm) and axes is not None:
        x = stacks.to_matrices(m, axes)
        x = _of_unit_vectors(norm, x.mT).mT if norm.transpose else _of_unit_vectors(norm, x)
        return stacks.from_matrices(x, axes, leaf.shape)
    square = jnp.mean(jnp.square(m), axis=-1 if m.ndim else None, keepdims=True)
    return m / (jnp.sqrt(square) + _EPS)


def _of_unit_vectors(norm: ColumnNorm | RowNorm, x: jax.Array) -> jax.Array:
    """lmo(x) for x of shape (batch, inputs, outputs)."""
    _, inputs, outputs = x.shape
    if isinstance(norm, ColumnNorm):
        unit, axis = (inputs if norm.normalized else 1) / math.sqrt(outputs), 2
    else:
        unit, axis = math.sqrt(inputs if norm.normalized else 1), 1
    return x / (unit * jnp.linalg.norm(x, axis=axis, keepdims=True) + _EPS)


def _initial(key: jax.Array, leaf: _Leaf, like: ArrayLike) -> jax.Array:
    """A leaf on the sphere of its norm."""
    norm, axes, dtype = leaf.norm, leaf.axes, trees.accumulator_dtype(like)
    if isinstance(norm, BiasRMSNorm) or axes is None or getattr(norm, "zero_init", False):
        return jnp.zeros(leaf.shape, jnp.result_type(like))
    if isinstance(norm, SpectralNorm):
        x = stacks.from_matrices(_draw_orthogonal(key, axes.shape, dtype), axes, leaf.shape)
    elif isinstance(norm, SpectralConvNorm):
        shape = (math.prod(leaf.shape[:-2]), *leaf.shape[-2:])
        x = _draw_orthogonal(key, shape, dtype).reshape(leaf.shape)
    else:
        x = _normalized(leaf, jax.random.normal(key, leaf.shape, dtype))
    return (_factor(leaf) * x).astype(jnp.result_type(like))


def _draw_orthogonal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    count, *sides = shape
    draw = functools.partial(jax.nn.initializers.orthogonal(), shape=sides, dtype=dtype)
    return jax.vmap(draw)(jax.random.split(key, count))
