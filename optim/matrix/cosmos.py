"""COSMOS: Adam in the leading eigenspace of the gradients, Newton-Schulz in all the rest.

With gradient `g` of a matrix (m inputs, n outputs), momentum `M` (0), orthonormal basis `U` (m, r),
Gram matrix `S` (r, r) of the gradients in it, second moment `V` (r, n) (0), parameters `p`, rate
`lr`, decay `wd`, step t = 1, 2, ..., and c = (1 - b1^t) / (1 - b1)::

    M = b1 M + g
    U, S = top r eigenvectors of g g', (1 - b2) (U'g)(U'g)'                   t = 1
    Q = qr(b2 U S + (1 - b2) g g' U),  T = U'Q,
    U, S = Q, b2 T'S T + (1 - b2) (U'g)(U'g)'                                 t > 1
    V = b2 V + (1 - b2) (U'g)^2
    x = (g + b1 M) / (1 + b1 c) with nesterov, M / c without
    A = U (U'x / (sqrt(V / (1 - b2^t)) + eps))
    B = newton_schulz(x - U U'x),  B = sqrt(m n) B / (|B| + eps)
    D = A + gamma B,  u = lr_ratio sqrt(m n) D / (|D| + eps)
    p = p - lr (u + wd p)

so that the update of a matrix has root mean square lr lr_ratio. What is no matrix, and a matrix of
more than `max_columns` outputs, gets Adam, at the full rate lr.

*Differences.* From the authors' code, whose matrices are (outputs, inputs): (1) mode="code" keeps
two slips of it that mode="paper" mends: the average of its Adam takes 0.1 of the gradient and is
debiased by 1 - 0.9^t whatever b1, which at b1 = 0.95 doubles the steps of embeddings and vectors;
and without nesterov x is g / c, so that momentum is never used. With the default b1 and nesterov
the modes are one. (2) A residual x - U U'x of rounding errors alone counts as the 0 that it is,
where theirs is blown up to full size; inside U, Adam makes 1 or -1 of them here as there. (3) A
rank above the number of inputs, which stops theirs, is cut to it. (4) Newton-Schulz's B is
projected off U again: it is off it but for rounding errors, which five steps multiply by up to 485
(in bfloat16 to 0.5 to 4 per cent of B, measured up to 1024 x 1024); theirs keeps them. (5) B is
normalized in the dtype of the parameters, theirs in bfloat16. (6) They give Adam to what has not
two axes; here a convolution is a matrix, and layers stacked in one leaf are one matrix each. (7)
Theirs knows an embedding by its first size, the vocabulary; here declare it "n m", or None. (8) No
amsgrad. From their first version: a left basis, no gamma, no decay there.

The signs of the columns of U, which QR leaves open, change nothing.

*Cost.* 4 + 4 r (1 / n + 1 / m) bytes a parameter, 4.5 for 1024 x 1024 at r = 64; 8 where Adam is.
A step takes 16 m n r flops, a QR of m x r and five steps of Newton-Schulz. The first step takes an
eigendecomposition of the smaller side.

*Reference.* Liu et al., COSMOS: A Hybrid Adaptive Optimizer for Memory-Efficient Training of LLMs,
2025 (arXiv:2502.17410); lliu606/COSMOS@61de180e1f44, COSMOS_optim.py.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

from optim import matrices as mats
from optim import trees
from optim.solvers.newton_schulz import newton_schulz

MODES = ("paper", "code")


class Subspace(NamedTuple):
    """What COSMOS knows of a stack of matrices (m, n)."""

    basis: jax.Array  # (matrices, m, r), float32 or wider: orthonormal columns U
    gram: jax.Array  # (matrices, r, r), float32 or wider: average S of the gradients' in U
    nu: jax.Array  # (matrices, r, n), float32 or wider: second moment V


class ScaleByCosmosState(NamedTuple):
    """State of `scale_by_cosmos`."""

    step: jax.Array  # (), int32: steps made
    mu: optax.Updates  # like the parameters, float32 or wider: momentum M, or Adam's average
    nu: optax.Updates  # Adam's second moment, and `optax.MaskedNode` where there is a matrix
    subspaces: dict[str, Subspace]  # by shape of the matrices


def leading_eigenvectors(g: jax.Array, rank: int) -> jax.Array:
    """An orthonormal basis (..., m, rank) of the leading left singular vectors of g (..., m, n)."""
    m, n = g.shape[-2:]
    if rank <= n < m:
        return jnp.linalg.qr(g @ leading_eigenvectors(g.mT, rank))[0]
    return jnp.linalg.eigh(g @ g.mT)[1][..., ::-1][..., :rank]


def scale_by_cosmos(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    *,
    eps: ArrayLike = 1e-8,
    rank: int = 64,
    lr_ratio: ArrayLike = 0.1,
    gamma: ArrayLike = 0.2,
    nesterov: bool = True,
    mode: str = "paper",
    max_columns: int = 10_000,
    initial_basis: Callable[[jax.Array, int], jax.Array] = leading_eigenvectors,
    dtype: DTypeLike | None = jnp.bfloat16,
    matrices: mats.Matrices = None,
    mesh_axis: mats.MeshAxis = None,
    chunk: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction u of COSMOS, and Adam's for what is no matrix, without rate or weight decay.

    Matrices of one shape are one stack. With `mesh_axis` what is known of them lies spread over it,
    each device at work on whole matrices; stacks are padded to its size, so a state belongs to it.

    Args:
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moments, in [0, 1).
      eps: added to the root of a second moment and to norms.
      rank: number r of columns of the basis, at least 1.
      lr_ratio: root mean square of a matrix's update; the authors' language models take 0.2.
      gamma: weight of the Newton-Schulz part.
      nesterov: whether the update looks ahead.
      mode: "paper", or "code" for the two slips of the authors' code.
      max_columns: a matrix of more outputs is given to Adam.
      initial_basis: (first gradients (..., m, n), rank) -> orthonormal columns (..., m, rank).
      dtype: of Newton-Schulz; None for that of the parameters, float32 at least.
      matrices: pattern for the path -> layout, as in `optim.matrices`, `m` inputs and `n` outputs;
        None for Adam. By default flax's layout by shape.
      mesh_axis: mesh axis or axes over which stacks are spread.
      chunk: matrices worked on at a time; by default one on a CPU, elsewhere all.

    Raises:
      ValueError: an argument outside what is said above. Traced values are not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_cosmos(rank=1, lr_ratio=0.1)
    >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> print(updates["kernel"][0].round(3), updates["bias"].round(3))
    [0.1 0.1 0.1] [1. 1. 1.]
    """
    trees.check_fractions("cosmos", b1=b1, b2=b2)
    trees.check_at_least("cosmos", 0, eps=eps, lr_ratio=lr_ratio, gamma=gamma)
    trees.check_at_least("cosmos", 1, rank=rank)
    if mode not in MODES:
        raise ValueError(f"cosmos: mode is {mode!r}; accepted: {', '.join(map(repr, MODES))}.")

    def groups_of(tree: Any) -> tuple[mats.Group, ...]:
        groups = mats.group_matrices("cosmos", tree, matrices, transpose=False)
        return tuple(group for group in groups if group.shape[-1] <= max_columns)

    def init(params: optax.Params) -> ScaleByCosmosState:
        mats.check_mesh_axis("cosmos", mesh_axis)
        mu = mats.momentum_like(params)
        groups = groups_of(mu)
        subspaces = {}
        for group in groups:
            count, m, n = group.shape
            count, r = count + mats.padding(count, mesh_axis), min(rank, m)
            shapes = (count, m, r), (count, r, r), (count, r, n)
            zeros = [jnp.zeros(shape, group.dtype) for shape in shapes]
            subspaces[group.name] = Subspace(*(mats.gather_matrices(x, mesh_axis) for x in zeros))
        fresh, structure = mats.momentum_like(params), jax.tree.structure(mu)
        _, nu = _split(fresh, structure, groups, optax.MaskedNode())
        return ScaleByCosmosState(jnp.zeros([], jnp.int32), mu, nu, subspaces)

    def update(
        updates: optax.Updates,
        state: ScaleByCosmosState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByCosmosState]:
        del params, extra_args
        step = optax.safe_increment(state.step)

        def look_ahead(g: jax.Array, m: jax.Array) -> tuple[jax.Array, jax.Array]:
            b = trees.as_dtype(b1, g.dtype)
            m = b * m + g
            weight = trees.bias_correction(b1, step, g.dtype) / (1 - b)
            if nesterov:
                return (g + b * m) / (1 + b * weight), m
            return (m if mode == "paper" else g) / weight, m

        def adam(g: jax.Array, m: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
            if mode == "paper":
                m, decay = trees.average(b1, m, g), b1
            else:
                m, decay = trees.as_dtype(b1, g.dtype) * m + 0.1 * g, 0.9
            v = trees.average(b2, v, jnp.square(g))
            root = jnp.sqrt(v) / jnp.sqrt(trees.bias_correction(b2, step, g.dtype))
            mean = m / trees.bias_correction(decay, step, g.dtype)
            return mean / (root + trees.as_dtype(eps, g.dtype)), m, v

        groups = groups_of(state.mu)
        structure: Any = jax.tree.structure(state.mu)
        own, others = _split(updates, structure, groups, None)
        ahead, (mu,) = trees.map_leaves(look_ahead, own, (state.mu,))
        rest, (mu, nu) = trees.map_leaves(adam, others, (mu, state.nu))

        gradients, ahead, result = (structure.flatten_up_to(x) for x in (own, ahead, rest))

        def moved(carry: tuple[Subspace, jax.Array], g: jax.Array) -> tuple[Subspace, jax.Array]:
            """The subspace after the gradient g, and x replaced by its update."""
            subspace, x = carry
            subspace = jax.lax.cond(
                state.step == 0,
                functools.partial(_first, b2=b2, initial_basis=initial_basis),
                functools.partial(_tracked, b2=b2),
                subspace,
                g,
            )
            correction = trees.bias_correction(b2, step, g.dtype)
            low = _adam_part(subspace, x, correction, trees.as_dtype(eps, g.dtype))
            rest = _rest(subspace.basis, x, trees.as_dtype(eps, g.dtype), dtype or g.dtype)
            size = trees.as_dtype(lr_ratio, g.dtype) * math.sqrt(math.prod(x.shape[-2:]))
            direction = low + trees.as_dtype(gamma, g.dtype) * rest
            return subspace, size * _normalized(direction, trees.as_dtype(eps, g.dtype))

        kernel = mats.on_each_device(mats.in_chunks(moved, chunk), mesh_axis)
        subspaces = {}
        for group in groups:
            old = state.subspaces[group.name]
            g, x = (_gathered(group, leaves, mesh_axis) for leaves in (gradients, ahead))
            new, u = kernel((old, x), g)
            subspaces[group.name] = _kept(group, gradients, old, new)
            result = mats.unstack(
                group, mats.scatter_matrices(u, group.shape[0], mesh_axis), result
            )
        given = structure.flatten_up_to(updates)
        result = [None if g is None else u for g, u in zip(given, result, strict=True)]
        state = ScaleByCosmosState(step, mu, nu, subspaces)
        return structure.unflatten(result), state

    return optax.GradientTransformationExtraArgs(init, update)


def cosmos(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    rank: int = 64,
    lr_ratio: ArrayLike = 0.1,
    gamma: ArrayLike = 0.2,
    nesterov: bool = True,
    mode: str = "paper",
    max_columns: int = 10_000,
    initial_basis: Callable[[jax.Array, int], jax.Array] = leading_eigenvectors,
    dtype: DTypeLike | None = jnp.bfloat16,
    matrices: mats.Matrices = None,
    mesh_axis: mats.MeshAxis = None,
    chunk: int | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """COSMOS; the weight decay is multiplied by the rate lr, not by lr_ratio, as the authors do.

    Args:
      learning_rate: the rate lr, 1e-3 by the authors' default, or a schedule of it.
      b1: as the others up to chunk, see `scale_by_cosmos`.
      b2: decay of the second moments.
      eps: added to the root of a second moment and to norms.
      rank: number r of columns of the basis.
      lr_ratio: root mean square of a matrix's update, in units of the rate.
      gamma: weight of the Newton-Schulz part.
      nesterov: whether the update looks ahead.
      mode: "paper", or "code" for the two slips of the authors' code.
      max_columns: a matrix of more outputs is given to Adam.
      initial_basis: (first gradients, rank) -> orthonormal columns.
      dtype: of Newton-Schulz.
      matrices: pattern for the path -> layout.
      mesh_axis: mesh axis or axes over which stacks are spread.
      chunk: matrices worked on at a time.
      weight_decay: decoupled decay wd, or a schedule of it.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.

    Raises:
      ValueError: as `scale_by_cosmos`.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.cosmos(0.01, rank=1)
    >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> print(optim.apply_updates(params, updates)["kernel"][0])
    [0.999 0.999 0.999]
    """
    return optax.chain(
        scale_by_cosmos(
            b1,
            b2,
            eps=eps,
            rank=rank,
            lr_ratio=lr_ratio,
            gamma=gamma,
            nesterov=nesterov,
            mode=mode,
            max_columns=max_columns,
            initial_basis=initial_basis,
            dtype=dtype,
            matrices=matrices,
            mesh_axis=mesh_axis,
            chunk=chunk,
        ),
        trees.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def _split(tree: Any, structure: Any, groups: tuple[mats.Group, ...], absent: Any) -> list[Any]:
    """The tree with `absent` for what is no matrix, and for what is one."""
    positions = {x.position for group in groups for x in group.members}
    leaves = structure.flatten_up_to(tree)
    return [
        structure.unflatten(x if (i in positions) == own else absent for i, x in enumerate(leaves))
        for own in (True, False)
    ]


def _gathered(group: mats.Group, leaves: list[Any], mesh_axis: mats.MeshAxis) -> jax.Array:
    """The stack, with zeros for a leaf that is None."""
    leaves = list(leaves)
    for x in group.members:
        if leaves[x.position] is None:
            leaves[x.position] = jnp.zeros(x.shape, group.dtype)
    return mats.gather_matrices(mats.stack(group, leaves), mesh_axis)


def _kept(group: mats.Group, gradients: list[Any], old: Subspace, new: Subspace) -> Subspace:
    """The new subspaces, the old ones where the gradient is None."""
    if all(gradients[x.position] is not None for x in group.members):
        return new
    given = [gradients[x.position] is not None for x in group.members]
    counts = [x.axes.shape[0] for x in group.members]
    moved = np.zeros((len(new.basis), 1, 1), bool)
    moved[: group.shape[0], 0, 0] = np.repeat(given, counts)
    return jax.tree.map(lambda n, o: jnp.where(moved, n, o), new, old)


def _first(
    subspace: Subspace,
    g: jax.Array,
    *,
    b2: ArrayLike,
    initial_basis: Callable[[jax.Array, int], jax.Array],
) -> Subspace:
    basis = initial_basis(g, subspace.basis.shape[-1])
    low = basis.mT @ g
    zero = jnp.zeros((), g.dtype)
    gram = trees.average(b2, zero, low @ low.mT)
    return Subspace(basis, gram, trees.average(b2, zero, jnp.square(low)))


def _tracked(subspace: Subspace, g: jax.Array, *, b2: ArrayLike) -> Subspace:
    """One orthogonal iteration for the average of g g', which is known in the old basis alone."""
    old, gram, nu = subspace
    basis = jnp.linalg.qr(trees.average(b2, old @ gram, g @ (g.mT @ old)))[0]
    turn, low = old.mT @ basis, basis.mT @ g
    gram = trees.average(b2, turn.mT @ gram @ turn, low @ low.mT)
    return Subspace(basis, gram, trees.average(b2, nu, jnp.square(low)))


def _adam_part(subspace: Subspace, x: jax.Array, correction: jax.Array, eps: jax.Array) -> Any:
    root = jnp.sqrt(subspace.nu) / jnp.sqrt(correction)
    return subspace.basis @ (subspace.basis.mT @ x / (root + eps))


def _rest(basis: jax.Array, x: jax.Array, eps: jax.Array, dtype: DTypeLike) -> jax.Array:
    """What Newton-Schulz makes of x outside the basis, of root mean square 1, or 0 of nothing."""
    if basis.shape[-1] == basis.shape[-2]:
        return jnp.zeros_like(x)
    rest = x - basis @ (basis.mT @ x)
    noise = 32 * jnp.finfo(x.dtype).eps * _norm(x)
    rest = jnp.where(_norm(rest) > noise, rest, 0)
    orthogonal = newton_schulz(rest.astype(dtype)).astype(x.dtype)
    orthogonal -= basis @ (basis.mT @ orthogonal)
    return math.sqrt(math.prod(x.shape[-2:])) * _normalized(orthogonal, eps)


def _norm(x: jax.Array) -> jax.Array:
    return jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)


def _normalized(x: jax.Array, eps: jax.Array) -> jax.Array:
    return x / (_norm(x) + eps)
