"""SOAP: Adam in the eigenbasis of Shampoo's factors.

With gradient `g` of a matrix, factors `L`, `R` and moments `m`, `v` (all 0 at the start),
parameters `p`, rate `lr`, decay `wd`, shampoo_beta `sb`::

    first step:  L = (1 - sb) g g',  R = (1 - sb) g' g,  QL, QR = their eigenvectors; p stands
    step t = 1, 2, ... after it:
        h = QL' g QR
        m = b1 m + (1 - b1) h,   v = b2 v + (1 - b2) h^2
        u = QL (m / (sqrt(v) + eps)) QR'
        u = u sqrt(1 - b2^t) / (1 - b1^t)
        p = p - lr u,   p = p - lr wd p
        L = sb L + (1 - sb) g g',   R = sb R + (1 - sb) g' g
        if t is a multiple of frequency, for each side, here the left:
            columns of QL, and v along its side, sorted by diag(QL' L QL), largest first
            QL' = the Q of the QR of L QL;  m turned into the new bases

A tensor of more axes has a factor and a basis for each. A side longer than max_precond_dim, and
that of a vector unless `precondition_1d`, has none: it stays as it is. A leaf without any basis is
Adam's, its first step skipped, too.

*Differences.* From the paper, as the authors' code: (1) the first gradient only makes the bases;
(2) v is sorted and not turned into new bases; (3) the basis of a step is that of the step before.
From the authors' code: (4) m is turned forth and back at a refresh alone, not at each step, where
that changes nothing; 12 n^3 of 20 n^3 flops remain. (5) Their `merge_dims` merges neighbouring
axes while their product is at most max_precond_dim; ours goes by the letters of a layout. (6) QR
and eigenvectors are computed in the dtype of the state, not always in float32. (7) One counter of
steps serves all leaves; a leaf whose gradient is None at some step keeps its state there. (8) With
`normalize`, each tensor of a leaf that holds many is divided by its own root mean square. (9) On a
TPU bases are found by methods that its compiler can compile, see `optim.solvers.orthonormal`.

*Cost.* 24 bytes a parameter of a square matrix, 16 with one side; 8 + 8 (m^2 + n^2) / (m n) in
general: cap the long side of an embedding with max_precond_dim. An ordinary step takes 12 n^3
flops. A refresh step runs one matrix after another in a loop of no trips at other steps. Products
run at jax's default precision, those of a refresh at the highest.

*On a mesh.* With `mesh_axis` all state lies where the work is, stacks spread over it and, with
`column_axis`, their last axes over that; gradient and update alone travel. Stacks are padded with
zeros to the size of `mesh_axis`, so a state belongs to that size: to restore it on another, cut
the first axis of each array of `stacks` to the number of tensors, and pad it anew.

*Reference.* Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam, 2024
(arXiv:2409.11321); nikhilvyas/SOAP@a1e553530fde, soap.py.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from optim import matrices as mats
from optim import trees
from optim.solvers.orthonormal import eigenbasis, orthonormalized

Sides = tuple[jax.Array | None, ...]
InitialBasis = Callable[[jax.Array], jax.Array] | Mapping[str, Sequence[ArrayLike | None]]


class SoapStack(NamedTuple):
    """State of N tensors of one shape; None for a side without a basis."""

    mu: jax.Array  # (N, d1, ..., dk), float32 or wider: first moment m, in the bases
    nu: jax.Array  # (N, d1, ..., dk), float32 or wider: second moment v, in the bases
    factors: Sides  # (N, d, d) a side, float32 or wider: L, R
    bases: Sides  # (N, d, d) a side, float32 or wider: QL, QR; zero before the first gradient


class ScaleBySoapState(NamedTuple):
    """State of `scale_by_soap`."""

    step: jax.Array  # (), int32: gradients seen, the first of which moves nothing
    stacks: dict[str, SoapStack]  # group by shape -> its state
    mu: optax.Updates  # like the parameters, float32 or wider: m of Adam's leaves, else None
    nu: optax.Updates  # like the parameters, float32 or wider: v of Adam's leaves, else None


class DecayAfterState(NamedTuple):
    """State of the weight decay of `soap`."""

    step: jax.Array  # (), int32: steps made, the first of which does not decay


class _Rule(NamedTuple):
    """What a step of one stack needs to know."""

    b1: ArrayLike
    b2: ArrayLike
    shampoo_beta: ArrayLike
    eps: ArrayLike
    frequency: ArrayLike
    normalize: bool
    bias_correction: bool
    first_basis: Callable[[jax.Array], jax.Array]
    orthonormalize: Callable[[jax.Array, jax.Array], jax.Array]
    column_axis: str | None


def scale_by_soap(
    matrices: mats.Matrices = None,
    *,
    b1: ArrayLike = 0.95,
    b2: ArrayLike = 0.95,
    shampoo_beta: ArrayLike | None = None,
    eps: ArrayLike = 1e-8,
    frequency: ArrayLike = 10,
    max_precond_dim: int = 10_000,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize: bool = False,
    bias_correction: bool = True,
    initial_basis: InitialBasis = eigenbasis,
    orthonormalize: Callable[[jax.Array, jax.Array], jax.Array] = orthonormalized,
    mesh_axis: mats.MeshAxis = None,
    column_axis: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction u of SOAP, zero at the first step, without rate or weight decay.

    Tensors of one shape, a tall matrix with its transpose, are one stack. By default each axis of
    a leaf of two axes or more is a side, so that a convolution (kh, kw, in, out) has four bases, as
    the authors'; `merge_dims=True` makes it a matrix, (kh kw in, out).

    Args:
      matrices: pattern for the path -> layout, as in `optim.matrices`; b axes count the tensors of
        a leaf, each m or n axis is a side. None leaves to Adam. By default by shape, without b.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      shampoo_beta: decay of the factors, in [0, 1); by default b2.
      eps: added to the root of the second moment, which is not bias-corrected.
      frequency: steps from refresh to refresh of the bases.
      max_precond_dim: a longer side has no basis.
      merge_dims: whether the axes of a layout's letter are one side, or a side each.
      precondition_1d: whether vectors have a basis.
      normalize: whether u is divided by its root mean square before bias correction.
      bias_correction: whether u is multiplied by sqrt(1 - b2^t) / (1 - b1^t).
      initial_basis: a function of a factor (d, d), or the first bases themselves: path of a leaf ->
        for each side an orthonormal (d, d), or None where there is none.
      orthonormalize: (L QL, QL), both (d, d), -> the Q of the QR of the first.
      mesh_axis: mesh axis or axes over which stacks are spread.
      column_axis: mesh axis over which the last axis of all state is split where it divides.

    Raises:
      ValueError: an argument outside what is said above, a mesh axis that is not there, a gradient
        without its leaves, or initial bases that do not fit.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_soap()
    >>> params = {"w": jnp.ones((2, 3))}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> print([basis.shape for basis in state.stacks["2x3_float32"].bases], updates["w"].sum())
    [(1, 2, 2), (1, 3, 3)] 0.0
    """
    shampoo_beta = b2 if shampoo_beta is None else shampoo_beta
    trees.check_fractions("soap", b1=b1, b2=b2, shampoo_beta=shampoo_beta)
    trees.check_at_least("soap", 0, eps=eps)
    trees.check_at_least("soap", 1, frequency=frequency, max_precond_dim=max_precond_dim)
    if column_axis is not None and not mats.axis_names(mesh_axis):
        raise ValueError(
            f"soap: column_axis is {column_axis!r} without a mesh_axis; give both, or neither."
        )
    given = initial_basis if isinstance(initial_basis, Mapping) else None
    rule = _Rule(
        *(b1, b2, shampoo_beta, eps, frequency, normalize, bias_correction),
        first_basis=eigenbasis if isinstance(initial_basis, Mapping) else initial_basis,
        orthonormalize=orthonormalize,
        column_axis=column_axis,
    )
    grouped = functools.partial(
        _groups,
        matrices=matrices,
        longest=max_precond_dim,
        merge_dims=merge_dims,
        vectors=precondition_1d,
    )
    has_basis = functools.partial(_has_basis, longest=max_precond_dim)

    def init(params: optax.Params) -> ScaleBySoapState:
        mats.check_mesh_axis("soap", mesh_axis)
        mats.check_mesh_axis("soap", column_axis, "column_axis")
        groups = grouped(params)
        stacks = {}
        for group in groups:
            count, *sizes = group.shape
            count += mats.padding(count, mesh_axis)
            first = _first_stack((count, *sizes), group.dtype, has_basis)
            stacks[group.name] = _placed(first, mesh_axis, column_axis)
        structure: Any = jax.tree.structure(params)
        leaves = jax.tree.leaves(params)
        rest = structure.unflatten(_without(groups, leaves))
        mu, nu = trees.zeros_like(rest), trees.zeros_like(rest)
        return ScaleBySoapState(jnp.zeros([], jnp.int32), stacks, mu, nu)

    def update(
        updates: optax.Updates,
        state: ScaleBySoapState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleBySoapState]:
        del extra_args
        # By the parameters, since a gradient may be None, or of another dtype, where they are not.
        tree = updates if params is None else params
        groups = grouped(tree)
        if {group.name for group in groups} != state.stacks.keys():
            raise ValueError(
                f"soap: the gradient has tensors {sorted(group.name for group in groups)}, the "
                f"state {sorted(state.stacks)}; pass update(gradient, state, params) if some "
                f"gradients are None or of another dtype."
            )
        structure: Any = jax.tree.structure(tree)
        gradients = structure.flatten_up_to(updates)
        rest = structure.unflatten(_without(groups, gradients))
        plain = functools.partial(_adam_step, count=state.step, rule=rule)
        plain_updates, (mu, nu) = trees.map_leaves(plain, rest, (state.mu, state.nu))
        leaves, stacks = structure.flatten_up_to(plain_updates), {}
        for group in groups:
            old = state.stacks[group.name]
            columns = _columns(group.shape[-1], column_axis)
            g = mats.gather_matrices(_stacked(group, gradients), mesh_axis, columns)
            bases = None if given is None else _given_bases(group, given, has_basis)
            bases = jax.tree.map(lambda q: mats.gather_matrices(q, mesh_axis), bases)
            step = functools.partial(_stack_step, count=state.step, rule=rule)
            u, new = mats.on_each_device(step, mesh_axis)(g, old, bases)
            new = _kept(group, gradients, _placed(new, mesh_axis, column_axis), old)
            stacks[group.name] = new
            u = mats.scatter_matrices(u, group.shape[0], mesh_axis, columns)
            leaves = mats.unstack(group, u, leaves)
        moved = [None if g is None else u for g, u in zip(gradients, leaves, strict=True)]
        count = optax.safe_increment(state.step)
        return structure.unflatten(moved), ScaleBySoapState(count, stacks, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def soap(
    learning_rate: optax.ScalarOrSchedule,
    *,
    matrices: mats.Matrices = None,
    b1: ArrayLike = 0.95,
    b2: ArrayLike = 0.95,
    shampoo_beta: ArrayLike | None = None,
    eps: ArrayLike = 1e-8,
    frequency: ArrayLike = 10,
    max_precond_dim: int = 10_000,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize: bool = False,
    bias_correction: bool = True,
    initial_basis: InitialBasis = eigenbasis,
    orthonormalize: Callable[[jax.Array, jax.Array], jax.Array] = orthonormalized,
    mesh_axis: mats.MeshAxis = None,
    column_axis: str | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SOAP; what the step arrives at decays by rate times weight decay, as the authors do.

    Args:
      learning_rate: the rate lr, 3e-3 by the authors' default, or a schedule of it.
      matrices: as the others up to column_axis, see `scale_by_soap`.
      b1: decay of the first moment.
      b2: decay of the second moment.
      shampoo_beta: decay of the factors; by default b2.
      eps: added to the root of the second moment.
      frequency: steps from refresh to refresh of the bases.
      max_precond_dim: a longer side has no basis.
      merge_dims: whether the axes of a layout's letter are one side, or a side each.
      precondition_1d: whether vectors have a basis.
      normalize: whether u is divided by its root mean square.
      bias_correction: whether u is corrected as Adam's.
      initial_basis: a function of a factor, or the first bases by path.
      orthonormalize: (L QL, QL) -> the Q of the QR of the first.
      mesh_axis: mesh axis or axes over which stacks are spread.
      column_axis: mesh axis over which the last axis of all state is split where it divides.
      weight_decay: decoupled decay wd, or a schedule of it.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.

    Raises:
      ValueError: as `scale_by_soap`, or no parameters where these decay.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.soap(0.1, b1=0.0, b2=0.0, weight_decay=0.0)
    >>> params, state = jnp.zeros((2, 2)), tx.init(jnp.zeros((2, 2)))
    >>> for gradient in (jnp.diag(jnp.array([3.0, 1.0])), jnp.array([[4.0, -5.0], [6.0, 7.0]])):
    ...     updates, state = tx.update(gradient, state, params)
    >>> print(updates)  # with both moments forgotten, Adam's step is the sign
    [[-0.1  0.1]
     [-0.1 -0.1]]
    """
    return optax.chain(
        scale_by_soap(
            matrices,
            b1=b1,
            b2=b2,
            shampoo_beta=shampoo_beta,
            eps=eps,
            frequency=frequency,
            max_precond_dim=max_precond_dim,
            merge_dims=merge_dims,
            precondition_1d=precondition_1d,
            normalize=normalize,
            bias_correction=bias_correction,
            initial_basis=initial_basis,
            orthonormalize=orthonormalize,
            mesh_axis=mesh_axis,
            column_axis=column_axis,
        ),
        optax.scale_by_learning_rate(learning_rate),
        _decay_after(learning_rate, weight_decay, mask),
    )


def _decay_after(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    mask: optax.Params | Callable[[optax.Params], Any] | None,
) -> optax.GradientTransformationExtraArgs:
    """Decays what the update u arrives at: u - lr wd (p + u), but at the first step."""

    def init(params: optax.Params) -> DecayAfterState:
        del params
        return DecayAfterState(jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates,
        state: DecayAfterState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DecayAfterState]:
        del extra_args
        if params is None:
            raise ValueError("soap: params is None; call update(gradient, state, params).")

        def rule(u: jax.Array, p: jax.Array, decays: jax.Array) -> tuple[jax.Array]:
            rate = trees.value_at(learning_rate, state.step, u.dtype)
            rate = rate * trees.value_at(weight_decay, state.step, u.dtype)
            return (jnp.where((state.step > 0) & (decays != 0), u - rate * (p + u), u),)

        decays = trees.mask_like(params, mask)
        updates, _ = trees.map_leaves(rule, updates, (), params, decays)
        return updates, DecayAfterState(optax.safe_increment(state.step))

    return optax.GradientTransformationExtraArgs(init, update)


def _has_basis(size: int, longest: int) -> bool:
    return 1 < size <= longest


def _groups(
    tree: Any, matrices: mats.Matrices, longest: int, merge_dims: bool, vectors: bool
) -> tuple[mats.Group, ...]:
    """The leaves with a basis on any side, by the sizes of their sides."""
    found: dict[Any, list[mats.Member]] = {}
    layouts = mats.layouts("soap", tree, matrices)
    for index, (path, leaf) in enumerate(jax.tree.leaves_with_path(tree)):
        layout, shape = layouts[index], jnp.shape(leaf)
        vector = len(shape) == 1 and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        if layout is None and not (vectors and vector):
            continue
        if layout is None or not merge_dims:
            axes = mats.mode_axes(shape, layout)
        else:
            axes = mats.matrix_axes(shape, layout)
        sizes = axes.shape[1:]
        if not any(_has_basis(size, longest) for size in sizes):
            continue
        if len(sizes) == 2 and not axes.transposed and sizes[0] > sizes[1]:
            axes = axes._replace(transposed=True)
        sizes = sizes[::-1] if axes.transposed else sizes
        member = mats.Member(index, trees.path_string(path), shape, axes)
        found.setdefault((sizes, trees.accumulator_dtype(leaf)), []).append(member)
    return tuple(
        mats.Group(tuple(members), (sum(x.axes.shape[0] for x in members), *sizes), dtype)
        for (sizes, dtype), members in found.items()
    )


def _without(groups: tuple[mats.Group, ...], leaves: Sequence[Any]) -> list[Any]:
    """The leaves with None in place of those of the groups."""
    taken = {x.position for group in groups for x in group.members}
    return [None if i in taken else leaf for i, leaf in enumerate(leaves)]


def _first_stack(
    shape: tuple[int, ...], dtype: jnp.dtype, has_basis: Callable[[int], bool]
) -> SoapStack:
    def zeros() -> Sides:
        return tuple(
            jnp.zeros((shape[0], d, d), dtype) if has_basis(d) else None for d in shape[1:]
        )

    return SoapStack(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), zeros(), zeros())


def _columns(size: int, column_axis: str | None) -> Any:
    """Over which mesh axis a last axis of that size is split."""
    if column_axis is None:
        return P.UNCONSTRAINED
    split = size % jax.sharding.get_abstract_mesh().shape[column_axis] == 0
    return column_axis if split else None


def _placed(stack: SoapStack, mesh_axis: mats.MeshAxis, column_axis: str | None) -> SoapStack:
    """The state where it lives."""
    names = mats.axis_names(mesh_axis)

    def place(x: jax.Array) -> jax.Array:
        columns = None if column_axis is None else _columns(x.shape[-1], column_axis)
        spec = P(names, *(None,) * (x.ndim - 2), columns)
        return jax.lax.with_sharding_constraint(x, spec)

    return jax.tree.map(place, stack) if names else stack


def _stacked(group: mats.Group, gradients: list[Any]) -> jax.Array:
    """The group's gradients, zeros where a leaf has none."""
    missing = {x.position: jnp.zeros(x.shape, group.dtype) for x in group.members}
    leaves = [missing.get(i) if g is None else g for i, g in enumerate(gradients)]
    return mats.stack(group, leaves)


def _kept(group: mats.Group, gradients: list[Any], new: SoapStack, old: SoapStack) -> SoapStack:
    """The new state, and the old one of leaves without a gradient."""
    moves = [
        gradients[x.position] is not None for x in group.members for _ in range(x.axes.shape[0])
    ]
    if all(moves):
        return new

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        chosen = np.array([*moves, *[True] * (len(new) - len(moves))])
        return jnp.where(chosen.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, new, old)


def _given_bases(
    group: mats.Group,
    given: Mapping[str, Sequence[ArrayLike | None]],
    has_basis: Callable[[int], bool],
) -> Sides:
    """The first bases that the caller gave, stacked."""
    sides: list[list[jax.Array]] = [[] for _ in group.shape[1:]]
    for x in group.members:
        count, *sizes = x.axes.shape
        bases = list(given.get(x.path, ()))
        fits = [
            not has_basis(d) or (q is not None and jnp.shape(q)[-2:] == (d, d))
            for q, d in zip(bases, sizes, strict=False)
        ]
        if len(bases) != len(sizes) or not all(fits):
            raise ValueError(
                f"soap: initial_basis has shapes {[jnp.shape(q) for q in bases if q is not None]} "
                f"for {x.path!r}, whose sides are {sizes}; accepted: for each side a (d, d) "
                f"basis, or None where it has none."
            )
        for side, q in enumerate(bases[::-1] if x.axes.transposed else bases):
            if has_basis(d := group.shape[1 + side]):
                q = jnp.asarray(q, group.dtype)
                sides[side].append(jnp.broadcast_to(q, (count, d, d)))
    return tuple(jnp.concatenate(side) if side else None for side in sides)


def _adam_step(
    g: jax.Array, m: jax.Array, v: jax.Array, *, count: jax.Array, rule: _Rule
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The update and the moments of a leaf without bases."""
    first = count == 0
    m = jnp.where(first, m, trees.average(rule.b1, m, g))
    v = jnp.where(first, v, trees.average(rule.b2, v, jnp.square(g)))
    u = m / (jnp.sqrt(v) + trees.as_dtype(rule.eps, v.dtype))
    return _scaled(u, count, rule, tuple(range(u.ndim))), m, v


def _scaled(u: jax.Array, count: jax.Array, rule: _Rule, axes: tuple[int, ...]) -> jax.Array:
    """The direction normalized over the axes and bias-corrected, zero at the first step."""
    if rule.normalize:
        rms = jnp.sqrt(jnp.mean(jnp.square(u), axes, keepdims=True))
        u = u / (rms + 1e-30)
    if rule.bias_correction:
        steps = jnp.maximum(count, 1)
        corrections = [trees.bias_correction(b, steps, u.dtype) for b in (rule.b1, rule.b2)]
        u = u * (jnp.sqrt(corrections[1]) / corrections[0])
    return jnp.where(count == 0, 0, u)


def _stack_step(
    g: jax.Array, stack: SoapStack, given: Sides | None, *, count: jax.Array, rule: _Rule
) -> tuple[jax.Array, SoapStack]:
    """The update and the new state of a stack.

    Before the first gradient the bases are zero, and so are all that is turned into them.
    """
    step = functools.partial(_moved, count=count, rule=rule)
    changed = (g, stack.mu, stack.nu, stack.factors)
    u, mu, nu, factors = mats.in_chunks(step)(changed, stack.bases)
    new = SoapStack(mu, nu, factors, stack.bases)
    return u, _refreshed_in_place(new, given, count, rule)


def _moved(
    changed: tuple[jax.Array, jax.Array, jax.Array, Sides],
    bases: Sides,
    *,
    count: jax.Array,
    rule: _Rule,
) -> tuple[jax.Array, jax.Array, jax.Array, Sides]:
    """(gradient, mu, nu, factors) -> (update, mu, nu, factors), of one tensor or a stack."""
    g, mu, nu, factors = changed
    sides = len(bases)
    h = _turned(g, bases)
    mu = trees.average(rule.b1, mu, h)
    nu = trees.average(rule.b2, nu, jnp.square(h))
    u = _turned_back(mu / (jnp.sqrt(nu) + trees.as_dtype(rule.eps, nu.dtype)), bases)
    factors = tuple(
        None if old is None else trees.average(rule.shampoo_beta, old, _gram(g, side, sides))
        for side, old in enumerate(factors)
    )
    return _scaled(u, count, rule, tuple(range(-sides, 0))), mu, nu, factors


def _refreshed_in_place(
    stack: SoapStack, given: Sides | None, count: jax.Array, rule: _Rule
) -> SoapStack:
    """The bases, and the moments in them, made anew where that is due.

    One tensor after another in a loop that overwrites its carry, of no trips at most steps, rather
    than by lax.cond, whose results would be one more copy of all that either branch may change.
    """

    def body(i: jax.Array, carry: Any) -> Any:
        def one(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)

        old = jax.tree.map(one, carry)
        factors, first = jax.tree.map(one, (stack.factors, given))

        def begin(carry: Any) -> Any:
            mu, nu, _ = carry
            find = _on_whole_columns(rule.first_basis, rule.column_axis)
            return mu, nu, jax.tree.map(find, factors) if first is None else first

        def go_on(carry: Any) -> Any:
            mu, nu, bases = carry
            orthonormalize = _on_whole_columns(rule.orthonormalize, rule.column_axis)
            return _refreshed(mu, nu, bases, factors, orthonormalize)

        new = jax.lax.cond(count == 0, begin, go_on, old)
        return jax.tree.map(
            lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 0), carry, new
        )

    due = count % jnp.asarray(rule.frequency).astype(count.dtype) == 0
    carry = stack.mu, stack.nu, stack.bases
    mu, nu, bases = jax.lax.fori_loop(0, jnp.where(due, len(stack.mu), 0), body, carry)
    return SoapStack(mu, nu, stack.factors, bases)


def _on_whole_columns(kernel: Callable[..., Any], column_axis: str | None) -> Callable[..., Any]:
    """The kernel on matrices that are gathered over the axis once, the same work on each device.

    A factorization goes over the columns of its matrix again and again, each time by collectives
    if they lie spread.
    """
    if column_axis is None:
        return kernel
    return jax.shard_map(
        kernel, in_specs=P(), out_specs=P(), axis_names={column_axis}, check_vma=False
    )


def _refreshed(
    mu: jax.Array,
    nu: jax.Array,
    bases: Sides,
    factors: Sides,
    orthonormalize: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array, Sides]:
    """One step of orthogonal iteration for each side of one tensor."""
    turned_back = _turned_back(mu, bases)
    new: list[jax.Array | None] = []
    for side, (factor, q) in enumerate(zip(factors, bases, strict=True)):
        if factor is None or q is None:
            new.append(None)
            continue
        product = jnp.matmul(factor, q, precision="highest")
        order = jnp.argsort(-jnp.sum(q * product, -2))
        nu = jnp.take(nu, order, axis=side)
        new.append(orthonormalize(product[:, order], q[:, order]))
    return _turned(turned_back, tuple(new)), nu, tuple(new)


def _unfolded(x: jax.Array, side: int, sides: int) -> jax.Array:
    """x (..., d1, ..., dk) as (..., d of the side, all else)."""
    x = jnp.moveaxis(x, side - sides, -sides)
    return x.reshape(*x.shape[: 1 - sides or None], -1)


def _gram(g: jax.Array, side: int, sides: int) -> jax.Array:
    x = _unfolded(g, side, sides)
    return x @ x.mT


def _turned(x: jax.Array, bases: Sides) -> jax.Array:
    """q' applied to each side that has a basis q."""
    sides = len(bases)
    for side, q in enumerate(bases):
        if q is None:
            continue
        if side == sides - 1:
            lead = x.shape[: x.ndim - sides]
            x = (x.reshape(*lead, -1, x.shape[-1]) @ q).reshape(x.shape)
        else:
            y = q.mT @ _unfolded(x, side, sides)
            first = jnp.moveaxis(x, side - sides, -sides).shape
            x = jnp.moveaxis(y.reshape(first), -sides, side - sides)
    return x


def _turned_back(x: jax.Array, bases: Sides) -> jax.Array:
    return _turned(x, tuple(None if q is None else q.mT for q in bases))
