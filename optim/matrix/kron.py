"""PSGD Kron: a Kronecker factor for each side, fitted so that the gradient becomes white.

With gradient `g` of a matrix, momentum `m` (0), triangular factors `L` and `R` (the identity times
sqrt(precond_init_scale)), parameters `p`, rate `lr`, decay `wd`, step t = 1, 2, ...::

    m = b1 m + (1 - b1) g,   x = m / (1 - b1^t)
    at an update of the preconditioner, with v gaussian and s = sqrt(2^-23) mean |x|:
        x = x + s v
        A = L x R',   B = L^-T v R^-1
        L = L - precond_lr triu(A A' - B B') L / bound(A A' + B B')
        R = R - precond_lr triu(A' A - B' B) R / bound(A' A + B' B)
    u = L'L x R'R,   u = u min(1, 1.1 / rms(u))
    p = p - lr (u + wd p)

`bound` is a lower bound of the spectral norm by one power step from the largest column. A side may
have a diagonal factor instead, which is a vector; its bound is the largest entry. A vector or a
scalar has one diagonal factor. The counter of steps since the last update makes the next one when
it reaches 1 / preconditioner_update_probability. One update in a hundred first balances the
factors to one largest entry, at the same product: a matter of range that no update shows.

*Differences.* From the authors' code: (1) They fold a convolution into a matrix by comparing signed
differences of its sides, which for (out, in, kh, kw) gives (out in kh, kw); here the layout
decides, by default (kh kw in, out). (2) Their triangular solve is float32 always; here, as all
else, in the parameters' dtype, float32 at least. (3) A matrix whose gradient (or momentum, if that
is what the update sees) is exactly 0 keeps its factors: theirs grow without end, and overflow
after a few hundred updates. (4) They stop at a scalar with an error. (5) The balance is drawn at
updates alone, from the key. (6) Layers stacked in one leaf are one matrix each. (7) One count of
steps serves all leaves, so a leaf without gradient at some step is debiased as if it had one.

*Cost.* Momentum 4 bytes a parameter, factors 4 (m^2 + n^2) / (m n) as stored, 8 for a square
matrix. A step takes 4 products, 4 m n (m + n) flops; an update, twelve products and two triangular
solves more, and is a loop of no trips at other steps.

*Reference.* Li, Preconditioned Stochastic Gradient Descent, 2018 (arXiv:1512.04202);
evanatyourservice/kron_torch@884427c32bc4, kron_torch/kron.py.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optim import matrices as mats
from optim import trees
from optim.schedules.update_probability import update_probability_schedule

MEMORY_SAVE_MODES = (None, "smart_one_diag", "one_diag", "all_diag")
_MAX_RMS = 1.1
_NOISE = math.sqrt(2.0**-23)  # the square root of float32's epsilon

Factors = tuple[jax.Array, ...]


class ScaleByKronState(NamedTuple):
    """State of `scale_by_kron`."""

    step: jax.Array  # (), int32: steps made
    since: jax.Array  # (), int32: steps since the preconditioners' last update
    mu: optax.Updates  # like the parameters, float32 or wider (or mu_dtype): momentum m
    # Group by shape -> a factor a side of its stack of matrices, float32 or wider:
    factors: dict[str, Factors]  # (matrices, d, d) upper triangular, or (matrices, d) diagonal


def gaussian_probe(key: jax.Array | None, count: jax.Array, tree: Any) -> Any:
    """Standard normal numbers shaped like the tree; each leaf folds its path into the key."""
    del count
    if key is None:
        raise ValueError("kron: the default probe draws: call update(..., key=key) with a key.")

    def draw(path: Any, leaf: jax.Array) -> jax.Array:
        key_of_leaf = trees.named_key(key, trees.path_string(path))
        return jax.random.normal(key_of_leaf, leaf.shape, leaf.dtype)

    return jax.tree.map_with_path(draw, tree)


def rare_balance(key: jax.Array | None, count: jax.Array) -> jax.Array:
    """True once in a hundred."""
    del count
    if key is None:
        raise ValueError("kron: the default balance draws: call update(..., key=key) with a key.")
    return jax.random.bernoulli(key, 0.01)


def scale_by_kron(
    b1: ArrayLike = 0.9,
    *,
    precond_lr: ArrayLike = 0.1,
    precond_init_scale: float = 1.0,
    preconditioner_update_probability: optax.ScalarOrSchedule | None = None,
    max_size_triangular: int = 8192,
    min_ndim_triangular: int = 2,
    memory_save_mode: str | None = None,
    momentum_into_precond_update: bool = True,
    merge_dims: bool = True,
    mu_dtype: DTypeLike | None = None,
    probe: Callable[[jax.Array | None, jax.Array, Any], Any] = gaussian_probe,
    balance: Callable[[jax.Array | None, jax.Array], jax.Array] = rare_balance,
    matrices: mats.Matrices = None,
    mesh_axis: mats.MeshAxis = None,
    chunk: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The whitened momentum u of PSGD Kron, without rate or weight decay.

    `update` takes the key of the step as `key=`. Leaves of one shape, a tall matrix with its
    transpose, are one stack. With `mesh_axis` the factors lie spread over it, each device at work
    on whole matrices; their stacks are padded to its size, so a state belongs to that size.

    Args:
      b1: decay of the momentum, in [0, 1).
      precond_lr: relative step of the factors at an update, at least 0.
      precond_init_scale: the product of a matrix's factors at the start, positive.
      preconditioner_update_probability: in (0, 1], or a schedule of it; an update is made when
        1 / probability steps have passed. By default `update_probability_schedule()`.
      max_size_triangular: a longer side has a diagonal factor.
      min_ndim_triangular: a leaf with fewer sides has diagonal factors alone.
      memory_save_mode: None for triangular factors, "one_diag" for a diagonal one of the longest
        side (the last of them), "smart_one_diag" only if it is longer than the others, "all_diag".
      momentum_into_precond_update: whether an update sees the momentum x or the gradient.
      merge_dims: whether the axes of a layout's letter are one side, or a side each.
      mu_dtype: dtype of the momentum; by default the parameter's, float32 at least.
      probe: (key, count, tree) -> v, shaped like the tree; count is the number of steps before.
      balance: (key, count) -> whether an update balances the factors.
      matrices: pattern for the path -> layout, as in `optim.matrices`; a leaf of layout None has
        one diagonal factor of its size. By default flax's layout by shape.
      mesh_axis: mesh axis or axes over which stacks are spread.
      chunk: matrices worked on at a time; by default one on a CPU, elsewhere all.

    Raises:
      ValueError: an argument outside what is said above, or no key where one is drawn from.

    >>> import jax, jax.numpy as jnp, optim
    >>> tx = optim.scale_by_kron()
    >>> params = {"w": jnp.ones((2, 3))}
    >>> updates, state = tx.update(params, tx.init(params), params, key=jax.random.key(0))
    >>> print([factor.shape for factor in state.factors["2x3_float32"]])
    [(1, 2, 2), (1, 3, 3)]
    """
    _check(b1, precond_lr, precond_init_scale, preconditioner_update_probability, memory_save_mode)
    if preconditioner_update_probability is None:
        preconditioner_update_probability = update_probability_schedule()

    def spread(kernel: Callable[..., Any], factors: Factors) -> Callable[..., Any]:
        vectors = all(q.ndim == 2 for q in factors)  # too little work for a loop over them
        part = len(factors[0]) if vectors else chunk
        return mats.on_each_device(mats.in_chunks(kernel, part), mesh_axis)

    def init(params: optax.Params) -> ScaleByKronState:
        mats.check_mesh_axis("kron", mesh_axis)
        mu = mats.momentum_like(params, mu_dtype)
        factors = {}
        for group in _groups(mu, matrices, merge_dims):
            count, *sizes = group.shape
            count += mats.padding(count, mesh_axis)
            scale = precond_init_scale ** (1 / len(sizes))
            diagonal = _diagonal(sizes, max_size_triangular, min_ndim_triangular, memory_save_mode)
            factors[group.name] = tuple(
                mats.gather_matrices(_first_factor(count, d, scale, flat, group.dtype), mesh_axis)
                for d, flat in zip(sizes, diagonal, strict=True)
            )
        return ScaleByKronState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32), mu, factors)

    def update(
        updates: optax.Updates,
        state: ScaleByKronState,
        params: optax.Params | None = None,
        *,
        key: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByKronState]:
        del params, extra_args
        count = optax.safe_increment(state.step)

        def momentum(g: jax.Array, m: jax.Array) -> tuple[jax.Array, jax.Array]:
            m = trees.average(b1, m, g)
            return m / trees.bias_correction(b1, count, m.dtype), m

        debiased, (mu,) = trees.map_leaves(momentum, updates, (state.mu,))
        structure: Any = jax.tree.structure(mu)
        groups = _groups(mu, matrices, merge_dims)

        def stacks(tree: Any) -> dict[str, jax.Array]:
            # A leaf without gradient is a matrix of zeros, which keeps its factors.
            leaves = [
                jnp.zeros_like(m) if x is None else x
                for x, m in zip(structure.flatten_up_to(tree), jax.tree.leaves(mu), strict=True)
            ]
            stacked = {group.name: mats.stack(group, leaves) for group in groups}
            return {name: mats.gather_matrices(x, mesh_axis) for name, x in stacked.items()}

        def refreshed(_: jax.Array, carry: Any) -> Any:
            factors, x = carry
            probe_key, balance_key = _keys(key)
            drawn = stacks(probe(probe_key, state.step, _probed(mu, groups)))
            balancing = jnp.asarray(balance(balance_key, state.step))
            seen = None if momentum_into_precond_update else stacks(updates)
            for group in groups:
                name = group.name
                old = _balanced(factors[name], balancing)
                gradient = x[name] if seen is None else seen[name]
                rate = trees.as_dtype(precond_lr, group.dtype)
                kernel = spread(functools.partial(_refreshed, rate=rate), factors[name])
                new, noisy = kernel((old, gradient), drawn[name])
                factors = {**factors, name: new}
                x = {**x, name: noisy} if seen is None else x
            return factors, x

        due, since = _due(preconditioner_update_probability, state)
        # A loop rather than a cond, whose results would be one more copy of all factors.
        factors, x = jax.lax.fori_loop(
            0, due.astype(jnp.int32), refreshed, (state.factors, stacks(debiased))
        )
        leaves = structure.flatten_up_to(debiased)
        for group in groups:
            kernel = spread(_preconditioned, factors[group.name])
            u = kernel(x[group.name], factors[group.name])
            u = mats.scatter_matrices(u, group.shape[0], mesh_axis)
            leaves = mats.unstack(group, u, leaves)
        given = structure.flatten_up_to(updates)
        leaves = [None if g is None else u for g, u in zip(given, leaves, strict=True)]
        return structure.unflatten(leaves), ScaleByKronState(count, since, mu, factors)

    return optax.GradientTransformationExtraArgs(init, update)


def kron(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: ArrayLike = 0.9,
    precond_lr: ArrayLike = 0.1,
    precond_init_scale: float = 1.0,
    preconditioner_update_probability: optax.ScalarOrSchedule | None = None,
    max_size_triangular: int = 8192,
    min_ndim_triangular: int = 2,
    memory_save_mode: str | None = None,
    momentum_into_precond_update: bool = True,
    merge_dims: bool = True,
    mu_dtype: DTypeLike | None = None,
    probe: Callable[[jax.Array | None, jax.Array, Any], Any] = gaussian_probe,
    balance: Callable[[jax.Array | None, jax.Array], jax.Array] = rare_balance,
    matrices: mats.Matrices = None,
    mesh_axis: mats.MeshAxis = None,
    chunk: int | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """PSGD Kron; the weight decay is multiplied by the rate, as the authors do.

    Args:
      learning_rate: the rate lr, 3e-4 by the authors' default, or a schedule of it.
      b1: as the others up to chunk, see `scale_by_kron`.
      precond_lr: relative step of the factors.
      precond_init_scale: the product of a matrix's factors at the start.
      preconditioner_update_probability: in (0, 1], or a schedule of it.
      max_size_triangular: a longer side has a diagonal factor.
      min_ndim_triangular: a leaf with fewer sides has diagonal factors alone.
      memory_save_mode: None, "smart_one_diag", "one_diag" or "all_diag".
      momentum_into_precond_update: whether an update sees the momentum or the gradient.
      merge_dims: whether the axes of a layout's letter are one side, or a side each.
      mu_dtype: dtype of the momentum.
      probe: (key, count, tree) -> v.
      balance: (key, count) -> whether an update balances the factors.
      matrices: pattern for the path -> layout.
      mesh_axis: mesh axis or axes over which stacks are spread.
      chunk: matrices worked on at a time.
      weight_decay: decoupled decay wd, or a schedule of it.
      mask: tree of booleans like the parameters (or a function from them to it): what decays; by
        default leaves of two axes or more, as the authors'.

    Raises:
      ValueError: as `scale_by_kron`.

    >>> import jax, jax.numpy as jnp, optim
    >>> tx = optim.kron(3e-4, weight_decay=0.1)
    >>> params = {"w": jnp.ones((2, 3))}
    >>> updates, state = tx.update(params, tx.init(params), params, key=jax.random.key(0))
    >>> print(updates["w"].shape)
    (2, 3)
    """
    return optax.chain(
        scale_by_kron(
            b1,
            precond_lr=precond_lr,
            precond_init_scale=precond_init_scale,
            preconditioner_update_probability=preconditioner_update_probability,
            max_size_triangular=max_size_triangular,
            min_ndim_triangular=min_ndim_triangular,
            memory_save_mode=memory_save_mode,
            momentum_into_precond_update=momentum_into_precond_update,
            merge_dims=merge_dims,
            mu_dtype=mu_dtype,
            probe=probe,
            balance=balance,
            matrices=matrices,
            mesh_axis=mesh_axis,
            chunk=chunk,
        ),
        trees.add_decayed_weights(weight_decay, _two_axes if mask is None else mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def _two_axes(params: optax.Params) -> Any:
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


def _check(
    b1: ArrayLike,
    precond_lr: ArrayLike,
    precond_init_scale: float,
    probability: optax.ScalarOrSchedule | None,
    memory_save_mode: str | None,
) -> None:
    trees.check_fractions("kron", b1=b1)
    trees.check_at_least("kron", 0, precond_lr=precond_lr)
    if isinstance(precond_init_scale, float | int) and not precond_init_scale > 0:
        raise ValueError(f"kron: precond_init_scale is {precond_init_scale}; accepted: above 0.")
    if isinstance(probability, float | int) and not 0 < probability <= 1:
        raise ValueError(
            f"kron: preconditioner_update_probability is {probability}; accepted: above 0, at "
            f"most 1, or a schedule."
        )
    if memory_save_mode not in MEMORY_SAVE_MODES:
        raise ValueError(
            f"kron: memory_save_mode is {memory_save_mode!r}; accepted: "
            f"{', '.join(map(repr, MEMORY_SAVE_MODES))}."
        )


def _keys(key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """A key for the probe and one for the balance."""
    if key is None:
        return None, None
    return trees.named_key(key, "kron"), trees.named_key(key, "kron: balance")


def _due(
    probability: optax.ScalarOrSchedule, state: ScaleByKronState
) -> tuple[jax.Array, jax.Array]:
    """Whether this step updates the preconditioners, and the counter after it."""
    if callable(probability):
        probability = probability(state.step)
    wait = jnp.asarray(1 / probability)
    since = state.since + 1
    due = since.astype(wait.dtype) >= wait
    return due, jnp.where(due, 0, since)


def _groups(tree: Any, matrices: mats.Matrices, merge_dims: bool) -> tuple[mats.Group, ...]:
    """Every float leaf with elements, by the sizes of its sides."""
    found: dict[Any, list[mats.Member]] = {}
    layouts = mats.layouts("kron", tree, matrices)
    for index, (path, leaf) in enumerate(jax.tree.leaves_with_path(tree)):
        if not leaf.size or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        layout, shape = layouts[index], leaf.shape
        if layout is None or not merge_dims:
            axes = mats.mode_axes(shape, layout)
        else:
            axes = mats.matrix_axes(shape, layout)
        sizes = axes.shape[:0:-1] if axes.transposed else axes.shape[1:]
        member = mats.Member(index, trees.path_string(path), shape, axes)
        found.setdefault((sizes, trees.accumulator_dtype(leaf)), []).append(member)
    return tuple(
        mats.Group(tuple(members), (sum(x.axes.shape[0] for x in members), *sizes), dtype)
        for (sizes, dtype), members in found.items()
    )


def _probed(tree: Any, groups: tuple[mats.Group, ...]) -> Any:
    """The tree as the probe sees it: leaves in their group's dtype, None where there is none."""
    structure: Any = jax.tree.structure(tree)
    leaves: list[Any] = [None] * structure.num_leaves
    for group in groups:
        for x in group.members:
            leaves[x.position] = jnp.zeros(x.shape, group.dtype)
    return structure.unflatten(leaves)


def _diagonal(sizes: list[int], max_size: int, min_ndim: int, mode: str | None) -> list[bool]:
    """Which sides have a diagonal factor."""
    longest = max(range(len(sizes)), key=lambda i: (sizes[i], i))
    second = max((size for i, size in enumerate(sizes) if i != longest), default=sizes[longest])
    chosen = {
        None: [],
        "smart_one_diag": [longest] if sizes[longest] > second else [],
        "one_diag": [longest],
        "all_diag": list(range(len(sizes))),
    }[mode]
    few = len(sizes) < min_ndim
    return [few or d == 1 or d > max_size or i in chosen for i, d in enumerate(sizes)]


def _first_factor(
    count: int, size: int, scale: float, diagonal: bool, dtype: jnp.dtype
) -> jax.Array:
    one = jnp.ones(size, dtype) if diagonal else jnp.eye(size, dtype=dtype)
    return jnp.tile(jnp.asarray(scale, dtype) * one, (count, *(1,) * one.ndim))


def _balanced(factors: Factors, balancing: jax.Array) -> Factors:
    """The factors of each matrix with one largest entry and the same product, if so decided."""
    if len(factors) == 1:
        return factors
    largest = [jnp.abs(q).max(tuple(range(1, q.ndim))) for q in factors]
    mean = jnp.exp(sum(jnp.log(x) for x in largest) / len(factors))
    return tuple(
        jnp.where(balancing, q * (mean / x).reshape(-1, *(1,) * (q.ndim - 1)), q)
        for q, x in zip(factors, largest, strict=True)
    )


def _unfolded(x: jax.Array, side: int, sides: int) -> jax.Array:
    """x (..., d1, ..., dk) as (..., d of the side, all else)."""
    x = jnp.moveaxis(x, side - sides, -sides)
    return x.reshape(*x.shape[: 1 - sides or None], -1)


def _folded(y: jax.Array, side: int, shape: tuple[int, ...], sides: int) -> jax.Array:
    """The way back, to the shape that x had."""
    lead, own = shape[: len(shape) - sides], shape[len(shape) - sides :]
    others = own[:side] + own[side + 1 :]
    return jnp.moveaxis(y.reshape(*lead, own[side], *others), -sides, side - sides)


def _is_diagonal(q: jax.Array, x: jax.Array, sides: int) -> bool:
    return q.ndim == x.ndim - sides + 1


def _along(
    apply: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    q: jax.Array,
    side: int,
    sides: int,
) -> jax.Array:
    """apply(q, x) with the side of x first and all its others as columns."""
    q = q[..., None] if _is_diagonal(q, x, sides) else q
    return _folded(apply(q, _unfolded(x, side, sides)), side, x.shape, sides)


def _times(q: jax.Array, x: jax.Array) -> jax.Array:
    return q * x if q.shape[-1] == 1 else q @ x


def _transpose_times(q: jax.Array, x: jax.Array) -> jax.Array:
    return q * x if q.shape[-1] == 1 else q.mT @ x


def _transpose_solve(q: jax.Array, x: jax.Array) -> jax.Array:
    if q.shape[-1] == 1:
        return x / q
    return jax.lax.linalg.triangular_solve(q, x, left_side=True, transpose_a=True)


def _preconditioned(x: jax.Array, factors: Factors) -> jax.Array:
    """Every factor q applied to its side as q'q, then the root mean square clipped."""
    k = len(factors)
    for apply in (_times, _transpose_times):
        for side, q in enumerate(factors):
            x = _along(apply, x, q, side, k)
    rms = jnp.sqrt(jnp.mean(jnp.square(x), tuple(range(-k, 0)), keepdims=True))
    return x * jnp.minimum(1, _MAX_RMS / (rms + 1e-12))


def _refreshed(
    carry: tuple[Factors, jax.Array], v: jax.Array, *, rate: jax.Array
) -> tuple[Factors, jax.Array]:
    """The factors after one update by the gradient g and the probe v, and g with its noise."""
    factors, g = carry
    k = len(factors)
    axes = tuple(range(-k, 0))
    noisy = g + _NOISE * jnp.mean(jnp.abs(g), axes, keepdims=True) * v
    a, b = noisy, v
    for side, q in enumerate(factors):
        a = _along(_times, a, q, side, k)
        b = _along(_transpose_solve, b, q, side, k)
    silent = (g == 0).all(axes)
    new = []
    for side, q in enumerate(factors):
        step = _step(_unfolded(a, side, k), _unfolded(b, side, k), q, rate)
        keep = silent.reshape(silent.shape + (1,) * (step.ndim - silent.ndim))
        new.append(jnp.where(keep, q, q - step))
    return tuple(new), noisy


def _step(a: jax.Array, b: jax.Array, q: jax.Array, rate: jax.Array) -> jax.Array:
    """What is taken from the factor q of the rows of a = A and b = B."""
    tiny = jnp.finfo(q.dtype).tiny
    if q.ndim < a.ndim:
        aa, bb = jnp.sum(a * a, -1), jnp.sum(b * b, -1)
        return rate * (aa - bb) * (q / jnp.maximum((aa + bb).max(-1, keepdims=True), tiny))
    aa, bb = a @ a.mT, b @ b.mT
    bound = jnp.maximum(_norm_bound(aa + bb), tiny)
    return (jnp.triu(rate * (aa - bb)) / bound[..., None, None]) @ q


def _norm_bound(a: jax.Array) -> jax.Array:
    """A lower bound of the spectral norm of each symmetric matrix, never far below; 0 for 0."""
    largest = jnp.abs(a).max((-2, -1), keepdims=True)
    a = a / jnp.where(largest > 0, largest, 1)
    column = jnp.argmax(jnp.sum(a * a, -2), -1)
    x = jnp.take_along_axis(a, column[..., None, None], -1).mT @ a  # (..., 1, d)
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    x = x / jnp.where(length > 0, length, 1)
    return jnp.linalg.norm(x @ a.mT, axis=-1)[..., 0] * largest[..., 0, 0]
