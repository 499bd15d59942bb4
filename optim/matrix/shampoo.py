"""Shampoo: the gradient between inverse roots of its Gram matrices, one a side, block by block.

With gradient `G` of a block (rows and columns at most max_preconditioner_dim long), momentum `M`,
factors `L` and `R` (all 0 at the start), their roots `X` and `Y` (the identity), parameters `P`,
rate `lr`, decay `wd`, step t = 1, 2, ...::

    L = b2 L + w G G',   R = b2 R + w G' G,   w = 1 if b2 = 1 else 1 - b2
    at t = start, and from then on where t divides by frequency:
        X = (L / c + eps I)^(-1/4),   Y = (R / c + eps I)^(-1/4),   c = 1 if b2 = 1 else 1 - b2^t
    D = (b3 M + (1 - b3) G) / (1 - b3 b1^(t-1)),   M = b1 M + (1 - b1) G
    U = X D Y
    U = |F| / |U| U if t >= start else F        with grafting, whose update is F
    P = P - lr (U + wd P)

A vector is preconditioned on its one side by L^(-1/2), a tensor on each of its k sides by an
exponent of -1/(2k). Blocks share nothing: roots, and norms |.| of the grafting, are a block's own,
as in the authors' code. `optim.solvers.inverse_root` has the roots.

*Grafting* is any transformation of the gradient; its update F counts alone before `start`, and its
norm from then on. The authors' Adam is `optax.scale_by_adam(b1, b2, eps)` with the b1 of Shampoo,
their SGD `optax.ema(b1)`.

*Differences.* From the authors' code: (1) Their grafting divides the momentum D by roots of the
averaged squares of G; here it keeps a momentum of its own, so that any transformation will do. For
Adam and SGD that is the same number, for `optax.scale_by_rms` and `scale_by_rss` it is with b1 = 0.
(2) They merge neighbouring axes while the product is at most max_preconditioner_dim, so that a
small matrix becomes a vector; here the layout decides, and a leaf of layout None is one vector.
Axes of size 1 are left out, as there. (3) Side 0 of inverse_exponent_override is the rows, which
the layer contracts; theirs is PyTorch's first axis, its output. (4) b3 counts where b1 is 0.
(5) Left out: trace scaling, pseudo-inverses, other orders of Newton's iteration; the averages of
iterates, for which there is `optim.schedule_free`. Their dampening d is the rate (1 - d) lr. (6) A
leaf without gradient keeps its factors, but counts as a step for its corrections; its grafting sees
zeros. (7) Layers stacked in one leaf are one matrix each.

*Cost.* Square blocks: momentum 4 bytes a parameter, factors 8, roots 8, and what the grafting
keeps: 24 with squares alone. A step takes 4 products of a block's size, two for the factors and two
for U; roots are a loop of no trips at other steps.

*Reference.* Gupta et al., Shampoo: Preconditioned Stochastic Tensor Optimization, 2018
(arXiv:1802.09568); Shi et al., A Distributed Data-Parallel PyTorch Implementation of the
Distributed Shampoo Optimizer, 2023 (arXiv:2309.06497); facebookresearch/optimizers@f60660661194,
distributed_shampoo/distributed_shampoo.py.
"""

import functools
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optim import matrices as mats
from optim import trees
from optim.solvers import inverse_root

# For each order, an exponent for all sides, or for some sides by number; 0 leaves a side out.
Exponents = Mapping[int, float | Mapping[int, float]]
Factors = tuple[jax.Array | None, ...]

_TINY = 1e-16  # added to the norm that grafting divides by


class ScaleByShampooState(NamedTuple):
    """State of `scale_by_shampoo`."""

    step: jax.Array  # (), int32: steps made
    mu: optax.Updates  # like the parameters, float32 or wider: momentum M
    # Group by shape of block -> a matrix a side (None if left out), float32 or wider:
    factors: dict[str, Factors]  # (blocks, d, d), symmetric: L, R
    roots: dict[str, Factors]  # (blocks, d, d), symmetric: X, Y
    grafting: optax.OptState  # of the transformation that gives the norm


class Region(NamedTuple):
    """A leaf's blocks of one shape, side by side: all of it, if it divides."""

    position: int  # of the leaf, among those that are not None or masked
    shape: tuple[int, ...]  # of the leaf
    axes: mats.Axes
    sides: tuple[int, ...]  # batch and the sides longer than 1
    starts: tuple[int, ...]  # of the region, on each side
    counts: tuple[int, ...]  # of blocks, on each side

    @property
    def blocks(self) -> int:
        """How many there are, over all matrices of the leaf."""
        return self.sides[0] * math.prod(self.counts)


class Group(NamedTuple):
    """All blocks of one shape."""

    regions: tuple[Region, ...]
    sizes: tuple[int, ...]  # of the sides of a block
    dtype: jnp.dtype

    @property
    def name(self) -> str:
        """A name that no other group of the same tree has."""
        return f"{'x'.join(str(size) for size in self.sizes)}_{self.dtype.name}"

    @property
    def blocks(self) -> int:
        """How many there are."""
        return sum(region.blocks for region in self.regions)


def scale_by_shampoo(
    matrices: mats.Matrices = None,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 1.0,
    b3: ArrayLike | None = None,
    eps: ArrayLike = 1e-12,
    frequency: int = 1,
    start: int | None = None,
    max_preconditioner_dim: float = 1024,
    inverse_exponent_override: Exponents | None = None,
    bias_correction: bool = True,
    grafting: optax.GradientTransformation | None = None,
    merge_dims: bool = True,
    root_method: str = "eigh",
    chunk: int | None = None,
    mesh_axis: mats.MeshAxis = None,
) -> optax.GradientTransformationExtraArgs:
    """The preconditioned and grafted momentum U of Shampoo, without rate or weight decay.

    Equal blocks of all leaves, a tall matrix transposed, are one stack. With `mesh_axis` factors
    and roots lie spread over it, each device at work on whole blocks; their stacks are padded to
    its size, so a state belongs to that size.

    Args:
      matrices: pattern for the path -> layout, as in `optim.matrices`; a leaf of layout None is one
        vector. By default flax's layout by shape.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the factors, in [0, 1]; 1 sums, as AdaGrad.
      b3: weight of the momentum in D, in [0, 1); b1 by default.
      eps: added to the diagonal of the factors before the root, positive.
      frequency: steps from one computation of the roots to the next.
      start: step of the first one, at least frequency, by default that; before it U is F, or D
        without grafting.
      max_preconditioner_dim: longer sides are cut into blocks of that length and a rest; math.inf
        for none.
      inverse_exponent_override: number of sides -> exponent, or side -> exponent, in place of
        1 / (2 sides); 0 leaves a side without factor, as {2: {0: 0.5, 1: 0.0}} one side alone.
      bias_correction: whether D is divided by 1 - b3 b1^(t-1), and the factors by c.
      grafting: a transformation of the gradient, shown it in float32 or wider.
      merge_dims: whether the axes of a layout's letter are one side, or a side each.
      root_method: "eigh", or "newton" where eigenvalues are slow; it takes whole 1 / exponent.
      chunk: blocks worked on at a time; by default one on a CPU, elsewhere all.
      mesh_axis: mesh axis or axes over which stacks are spread.

    Raises:
      ValueError: an argument outside what is said above.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_shampoo(max_preconditioner_dim=2)
    >>> params = {"w": jnp.ones((2, 3))}
    >>> _, state = tx.update(params, tx.init(params), params)
    >>> print({name: [x.shape for x in both] for name, both in state.factors.items()})
    {'2x2_float32': [(1, 2, 2), (1, 2, 2)], '2x1_float32': [(1, 2, 2), (1, 1, 1)]}
    """
    b3 = b1 if b3 is None else b3
    start = frequency if start is None else start
    override = inverse_exponent_override or {}
    _check(b1, b2, b3, eps, frequency, start, max_preconditioner_dim)
    _check_exponents(override, root_method)
    groups_of = functools.partial(
        _groups,
        matrices=matrices,
        merge_dims=merge_dims,
        most=max_preconditioner_dim,
        override=override,
    )

    def spread(kernel: Callable[..., Any]) -> Callable[..., Any]:
        return mats.on_each_device(mats.in_chunks(kernel, chunk), mesh_axis)

    def init(params: optax.Params) -> ScaleByShampooState:
        mats.check_mesh_axis("shampoo", mesh_axis)
        mu = mats.momentum_like(params)
        factors, roots = {}, {}
        for group in groups_of(mu):
            count = group.blocks + mats.padding(group.blocks, mesh_axis)

            def stacked(one: Callable[..., jax.Array], group=group, count=count) -> Factors:
                made = (
                    jnp.tile(one(d, group.dtype), (count, 1, 1)) if e else None
                    for d, e in zip(group.sizes, _exponents(group, override), strict=True)
                )
                return jax.tree.map(lambda x: mats.gather_matrices(x, mesh_axis), tuple(made))

            factors[group.name] = stacked(lambda d, dtype: jnp.zeros((d, d), dtype))
            roots[group.name] = stacked(lambda d, dtype: jnp.eye(d, dtype=dtype))
        inner = () if grafting is None else grafting.init(trees.promote(params))
        return ScaleByShampooState(jnp.zeros([], jnp.int32), mu, factors, roots, inner)

    def update(
        updates: optax.Updates,
        state: ScaleByShampooState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByShampooState]:
        count = optax.safe_increment(state.step)

        def momentum(g: jax.Array, m: jax.Array) -> tuple[jax.Array, jax.Array]:
            d = trees.average(b3, m, g)
            if bias_correction:
                d = d / _correction(b1, b3, count, g.dtype)
            return d, trees.average(b1, m, g)

        direction, (mu,) = trees.map_leaves(momentum, updates, (state.mu,))
        structure: Any = jax.tree.structure(mu)
        groups = groups_of(mu)
        given = structure.flatten_up_to(updates)
        # Where there is no gradient, blocks of zeros are worked on, and not used.
        full = [
            jnp.zeros_like(m, dtype=trees.accumulator_dtype(m))
            if g is None
            else trees.as_dtype(g, trees.accumulator_dtype(g, m))
            for g, m in zip(given, jax.tree.leaves(mu), strict=True)
        ]

        factors = {}
        for group in groups:
            x, decay = _stack(group, full), _decay(group, b2, given)
            x, decay = (mats.gather_matrices(y, mesh_axis) for y in (x, decay))
            weight = _weight(b2, group.dtype)
            kernel = spread(functools.partial(_accumulated, weight=weight))
            factors[group.name] = kernel(state.factors[group.name], x, decay)

        def refreshed(_: jax.Array, roots: dict[str, Factors]) -> dict[str, Factors]:
            new = {}
            for group in groups:
                scale = _scale(b2, count, group.dtype) if bias_correction else 1
                exponents = _exponents(group, override)
                root = functools.partial(
                    _roots, scale=scale, exponents=exponents, eps=eps, method=root_method
                )
                new[group.name] = spread(root)(roots[group.name], factors[group.name])
            return new

        due = (count == start) | ((count % frequency == 0) & (count > start))
        # A loop rather than a cond, whose results would be one more copy of all roots.
        roots = jax.lax.fori_loop(0, due.astype(jnp.int32), refreshed, state.roots)

        norms, inner = None, state.grafting
        if grafting is not None:
            shown = None if params is None else trees.promote(params)
            grafted, inner = optax.with_extra_args_support(grafting).update(
                structure.unflatten(full), state.grafting, shown, **extra_args
            )
            norms = structure.flatten_up_to(grafted)

        leaves = structure.flatten_up_to(direction)
        sources = [f if x is None else x for f, x in zip(full, leaves, strict=True)]
        made: dict[int, jax.Array] = {}
        for group in groups:
            x = mats.gather_matrices(_stack(group, sources), mesh_axis)
            u = spread(_preconditioned)(x, roots[group.name])
            u = mats.scatter_matrices(u, group.blocks, mesh_axis)
            if norms is not None:
                f = _stack(group, norms)
                u = jnp.where(count < start, f, _grafted(u, f))
            made = _unstack(group, u, made)
        leaves = [
            None if g is None else made.get(i, x)
            for i, (g, x) in enumerate(zip(given, leaves, strict=True))
        ]
        new_state = ScaleByShampooState(count, mu, factors, roots, inner)
        return structure.unflatten(leaves), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def shampoo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    matrices: mats.Matrices = None,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 1.0,
    b3: ArrayLike | None = None,
    eps: ArrayLike = 1e-12,
    frequency: int = 1,
    start: int | None = None,
    max_preconditioner_dim: float = 1024,
    inverse_exponent_override: Exponents | None = None,
    bias_correction: bool = True,
    grafting: optax.GradientTransformation | None = None,
    merge_dims: bool = True,
    root_method: str = "eigh",
    chunk: int | None = None,
    mesh_axis: mats.MeshAxis = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo with decoupled weight decay, which is multiplied by the rate.

    The authors' other decays: L2 is `optax.add_decayed_weights` before this; the corrected one,
    the schedule wd lr(t) / max lr as weight_decay; the independent one, wd / max lr.

    Args:
      learning_rate: the rate lr, 1e-2 by the authors' default, or a schedule of it.
      matrices: as the others up to mesh_axis, see `scale_by_shampoo`.
      b1: decay of the momentum.
      b2: decay of the factors; 1 sums.
      b3: weight of the momentum in the direction; b1 by default.
      eps: added to the diagonal of the factors.
      frequency: steps from one computation of the roots to the next.
      start: step of the first one, by default frequency.
      max_preconditioner_dim: longer sides are cut into blocks.
      inverse_exponent_override: number of sides -> exponent, or side -> exponent.
      bias_correction: whether momentum and factors are debiased.
      grafting: a transformation whose update's norm, block by block, is taken.
      merge_dims: whether the axes of a layout's letter are one side, or a side each.
      root_method: "eigh" or "newton".
      chunk: blocks worked on at a time.
      mesh_axis: mesh axis or axes over which stacks are spread.
      weight_decay: decoupled decay wd, or a schedule of it.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.
      momentum: factor in [0, 1) of a second momentum B = momentum B + U + wd P, which takes the
        place of U + wd P; none by default.
      nesterov: whether U + wd P + momentum B does.

    Raises:
      ValueError: as `scale_by_shampoo`, or momentum is a number outside [0, 1).

    >>> import jax.numpy as jnp, optax, optim
    >>> tx = optim.shampoo(1e-3, b2=0.999, grafting=optax.scale_by_adam(0.9, 0.999))
    >>> params = {"w": jnp.ones((2, 3))}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> print(f"{updates['w'][0, 0]:.4f}")
    -0.0010
    """
    links = [
        scale_by_shampoo(
            matrices,
            b1=b1,
            b2=b2,
            b3=b3,
            eps=eps,
            frequency=frequency,
            start=start,
            max_preconditioner_dim=max_preconditioner_dim,
            inverse_exponent_override=inverse_exponent_override,
            bias_correction=bias_correction,
            grafting=grafting,
            merge_dims=merge_dims,
            root_method=root_method,
            chunk=chunk,
            mesh_axis=mesh_axis,
        ),
        trees.add_decayed_weights(weight_decay, mask),
    ]
    if momentum is not None:
        links.append(_second_momentum(momentum, nesterov))
    return optax.chain(*links, optax.scale_by_learning_rate(learning_rate))


def _second_momentum(momentum: ArrayLike, nesterov: bool) -> optax.GradientTransformationExtraArgs:
    """`optax.trace` in float32 or wider, which leaves what has no gradient as it is."""
    trees.check_fractions("shampoo", momentum=momentum)

    def rule(u: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        keep = trees.as_dtype(momentum, u.dtype)
        b = keep * b + u
        return (u + keep * b if nesterov else b), b

    def update(
        updates: optax.Updates, state: optax.TraceState, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.TraceState]:
        del params, extra_args
        updates, (trace,) = trees.map_leaves(rule, updates, (state.trace,))
        return updates, optax.TraceState(trace)

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.TraceState(trees.zeros_like(params)), update
    )


def _check(
    b1: ArrayLike,
    b2: ArrayLike,
    b3: ArrayLike,
    eps: ArrayLike,
    frequency: int,
    start: int,
    most: float,
) -> None:
    trees.check_fractions("shampoo", b1=b1, b3=b3)
    if isinstance(b2, numbers.Real) and not 0 <= b2 <= 1:
        raise ValueError(f"shampoo: b2 is {b2}; accepted: 0 <= b2 <= 1.")
    trees.check_positive("shampoo", eps=eps)
    trees.check_at_least("shampoo", 1, frequency=frequency)
    if not start >= frequency:
        raise ValueError(f"shampoo: start is {start}; accepted: at least frequency, {frequency}.")
    if not (most >= 1 and (most == math.inf or most == int(most))):
        raise ValueError(
            f"shampoo: max_preconditioner_dim is {most}; accepted: a whole number from 1 on, or "
            f"math.inf."
        )


def _check_exponents(override: Exponents, method: str) -> None:
    for order in {1, 2, *override}:
        chosen = override.get(order, {})
        sides = chosen if isinstance(chosen, Mapping) else {side: chosen for side in range(order)}
        for side, exponent in sides.items():
            if not (0 <= side < order and exponent >= 0):
                raise ValueError(
                    f"shampoo: inverse_exponent_override of {order} sides is {chosen}; accepted: "
                    f"an exponent from 0 on, or such for sides from 0 to {order - 1}."
                )
        for exponent in _exponents_of(order, override):
            inverse_root.check("shampoo: the inverse root", 1 / exponent if exponent else 1, method)


def _exponents_of(order: int, override: Exponents) -> tuple[float, ...]:
    """One for each side."""
    chosen = override.get(order, {})
    if not isinstance(chosen, Mapping):
        return (chosen,) * order
    return tuple(chosen.get(side, 1 / (2 * order)) for side in range(order))


def _exponents(group: Group, override: Exponents) -> tuple[float, ...]:
    return _exponents_of(len(group.sizes), override)


def _groups(
    tree: Any, matrices: mats.Matrices, merge_dims: bool, most: float, override: Exponents
) -> tuple[Group, ...]:
    """The blocks of every float leaf with elements, by their sizes."""
    found: dict[Any, list[Region]] = {}
    layouts = mats.layouts("shampoo", tree, matrices)
    transpose = len(set(_exponents_of(2, override))) == 1  # else rows are not as columns
    for index, leaf in enumerate(jax.tree.leaves(tree)):
        if not leaf.size or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        if (layout := layouts[index]) is None or not merge_dims:
            axes = mats.mode_axes(leaf.shape, layout)
        else:
            axes = mats.matrix_axes(leaf.shape, layout, transpose)
        batch, *sides = axes.shape
        sides = sides[::-1] if axes.transposed else sides
        sides = [side for side in sides if side > 1] or [1]
        for pieces in product(*(_pieces(side, most) for side in sides)):
            starts, sizes, counts = zip(*pieces, strict=True)
            region = Region(index, leaf.shape, axes, (batch, *sides), starts, counts)
            found.setdefault((sizes, trees.accumulator_dtype(leaf)), []).append(region)
    return tuple(Group(tuple(regions), *key) for key, regions in found.items())


def _pieces(side: int, most: float) -> Iterator[tuple[int, int, int]]:
    """Start, size and number of the equal blocks of a side, and of the rest."""
    size = int(min(side, most))
    whole = side // size
    yield 0, size, whole
    if rest := side - whole * size:
        yield whole * size, rest, 1


def _slices(region: Region, sizes: tuple[int, ...]) -> tuple[slice, ...]:
    return (
        slice(None),
        *(
            slice(start, start + size * count)
            for start, size, count in zip(region.starts, sizes, region.counts, strict=True)
        ),
    )


def _stack(group: Group, leaves: list[Any]) -> jax.Array:
    """The group's blocks, (blocks, *sizes)."""
    k = len(group.sizes)
    order = (0, *range(1, 2 * k, 2), *range(2, 2 * k + 1, 2))  # the counts before the sizes
    parts = []
    for region in group.regions:
        leaf = trees.as_dtype(leaves[region.position], group.dtype)
        x = mats.to_matrices(leaf, region.axes).reshape(region.sides)
        x = x[_slices(region, group.sizes)]
        split = (n for pair in zip(region.counts, group.sizes, strict=True) for n in pair)
        x = x.reshape(region.sides[0], *split).transpose(order)
        parts.append(x.reshape(-1, *group.sizes))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _unstack(group: Group, stacked: jax.Array, leaves: dict[int, jax.Array]) -> dict[int, Any]:
    """`leaves`, position -> leaf, with the group's blocks filled in."""
    leaves, first, k = dict(leaves), 0, len(group.sizes)
    order = (0, *(i for side in range(1, k + 1) for i in (side, side + k)))
    for region in group.regions:
        x = stacked[first : first + region.blocks]
        first += region.blocks
        x = x.reshape(region.sides[0], *region.counts, *group.sizes).transpose(order)
        within = _slices(region, group.sizes)
        extent = (n * size for n, size in zip(region.counts, group.sizes, strict=True))
        x = x.reshape(region.sides[0], *extent)
        if x.shape != region.sides:  # not the leaf's only region
            held = leaves.get(region.position, jnp.zeros(region.shape, x.dtype))
            x = mats.to_matrices(held, region.axes).reshape(region.sides).at[within].set(x)
        _, m, *n = region.axes.shape
        matrix = (region.axes.shape[0], *((*n, m) if region.axes.transposed else (m, *n)))
        leaves[region.position] = mats.from_matrices(x.reshape(matrix), region.axes, region.shape)
    return leaves


def _correction(b1: ArrayLike, b3: ArrayLike, count: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """1 - b3 b1^(t-1), by parts, since the difference loses digits."""
    before = trees.bias_correction(b1, jnp.maximum(count - 1, 1), dtype)
    before = jnp.where(count > 1, before, 0)
    return trees.as_dtype(1 - b3, dtype) + trees.as_dtype(b3, dtype) * before


def _weight(b2: ArrayLike, dtype: jnp.dtype) -> jax.Array:
    """w: of the new Gram matrices."""
    return jnp.where(jnp.asarray(b2) == 1, 1, trees.as_dtype(1 - b2, dtype)).astype(dtype)


def _scale(b2: ArrayLike, count: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """1 / c: what makes an average of the factors."""
    total = trees.bias_correction(b2, count, dtype)
    return 1 / jnp.where(jnp.asarray(b2) == 1, 1, total).astype(dtype)


def _decay(group: Group, b2: ArrayLike, given: list[Any]) -> jax.Array:
    """b2 of each block, (blocks, 1), and 1 where there is no gradient."""
    counts = [region.blocks for region in group.regions]
    present = np.repeat([given[region.position] is not None for region in group.regions], counts)
    return jnp.where(present[:, None], trees.as_dtype(b2, group.dtype), 1).astype(group.dtype)


def _gram(x: jax.Array, side: int, sides: int) -> jax.Array:
    """The sum over all other sides of x times x, (..., d, d)."""
    letters = "abcdefgh"[:sides]
    other = letters.replace(letters[side], "z")
    return jnp.einsum(f"...{letters},...{other}->...{letters[side]}z", x, x)


def _along(x: jax.Array, root: jax.Array, side: int, sides: int) -> jax.Array:
    """x with its side multiplied by the symmetric matrix."""
    letters = "abcdefgh"[:sides]
    other = letters.replace(letters[side], "z")
    return jnp.einsum(f"...{letters},...{letters[side]}z->...{other}", x, root)


def _accumulated(factors: Factors, x: jax.Array, decay: jax.Array, *, weight: jax.Array) -> Factors:
    """decay times each factor plus weight times the side's Gram matrix."""
    k = len(factors)
    return tuple(
        None if f is None else decay[..., None] * f + weight * _gram(x, side, k)
        for side, f in enumerate(factors)
    )


def _roots(
    old: Factors,
    factors: Factors,
    *,
    scale: jax.Array | float,
    exponents: tuple[float, ...],
    eps: ArrayLike,
    method: str,
) -> Factors:
    del old
    return tuple(
        None if f is None else inverse_root.inverse_root(f * scale, 1 / e, eps=eps, method=method)
        for f, e in zip(factors, exponents, strict=True)
    )


def _preconditioned(x: jax.Array, roots: Factors) -> jax.Array:
    for side, root in enumerate(roots):
        if root is not None:
            x = _along(x, root, side, len(roots))
    return x


def _grafted(u: jax.Array, f: jax.Array) -> jax.Array:
    """Each block of u with the norm of the block of f."""
    axes = tuple(range(1, u.ndim))
    ours, theirs = (jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True)) for x in (u, f))
    return u * (theirs / (ours + _TINY))
