"""MARS: AdamW, a sign step or Newton-Schulz on a gradient whose variance is reduced.

With gradient `g`, previous gradient `h` (0 at the first step), moments `m`, `v` (0 at the start),
parameters `p`, rate `lr`, decay `wd`, for the t-th step, of each matrix::

    c = g + gamma b1 / (1 - b1) (g - h)
    c = c / max(1, |c|_2)
    m = b1 m + (1 - b1) c
    p = p - lr (wd p + u)

    adamw:    v = b2 v + (1 - b2) c^2
              u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)
    lion:     u = sign(m)
    shampoo:  u = NewtonSchulz(m / (1 - b1)) sqrt(max(1, outputs / inputs))

*What h is.* Approximate, the gradient of the step before, on its own batch. Exact, the gradient of
this step's batch at the parameters before the last step: the argument `previous_gradient`, which
`with_previous_gradient` computes.

*What is no matrix* is left to AdamW, with betas, rate and decay of its own, unless `optimize_1d`.
A matrix has exactly two axes, so that a convolution is none, or what `matrices` declares.

*Differences.* From the authors' code: (1) The rate of other leaves is given as `lr_1d_factor`, a
multiple of the rate, so that it follows a schedule; they take it as lr_1d, and fix lr_1d / lr at
construction, 1 for their two defaults (3e-3). Here the rate has to be given. (2) What a form does
not read is not kept: no v for lion and shampoo, no h for AdamW's leaves. (3) A leaf that `matrices`
declares for several matrices is clipped matrix by matrix, as if each were a leaf. From the paper:
lion is the sign of the new m, with one beta, and not Lion's step. `amsgrad` keeps the maximum of v
before bias correction, as theirs does. Levanter's clips all leaves by one norm, and has no AdamW.

*Cost.* m, v and h: 12 bytes a parameter; lion and shampoo 8; exact 4 less, and one more gradient a
step. AdamW's leaves 8. shampoo: 15 matrix products a matrix.

*Reference.* Yuan et al., MARS: Unleashing the Power of Variance Reduction for Training Large
Models, 2024 (arXiv:2411.10438); AGI-Arena/MARS@4831e28eba86, MARS/optimizers/mars.py.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optim import matrices as stacks
from optim import trees
from optim.solvers import newton_schulz

Form = Literal["adamw", "lion", "shampoo"]


class ScaleByMarsState(NamedTuple):
    """State of `scale_by_mars`; a field, or a leaf of it, that the form does not read is None."""

    steps: jax.Array  # (), int32, steps done
    mu: optax.Updates  # like the parameters, float32 or wider: first moment m
    nu: optax.Updates | None  # like mu, second moment v; where the form is adamw's
    nu_max: optax.Updates | None  # like nu, its maximum over the steps; with amsgrad
    previous: optax.Updates | None  # like mu, gradient h of the step before; if approximate


def scale_by_mars(
    b1: ArrayLike = 0.95,
    b2: ArrayLike = 0.99,
    *,
    eps: ArrayLike = 1e-8,
    gamma: ArrayLike = 0.025,
    form: Form = "adamw",
    amsgrad: bool = False,
    approximate: bool = True,
    matrices: stacks.Matrices = None,
    dtype: DTypeLike | None = "bfloat16",
    mesh_axis: stacks.MeshAxis = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction u of MARS for every leaf; shampoo treats what is no matrix as adamw does.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the second moment, and by shampoo to the norm of the matrix.
      gamma: weight of the correction, at least 0; with 0 only the clipping is left.
      form: "adamw", "lion" or "shampoo".
      amsgrad: divide by the largest second moment up to now.
      approximate: keep the gradient for the next step; otherwise `update` needs the argument
        `previous_gradient`, a tree like the parameters, zeros at the first step.
      matrices: pattern for the whole path -> layout or None (see `optim.matrices`); by default what
        has exactly two axes is a matrix in flax's layout.
      dtype: of Newton-Schulz; None means that of the moments.
      mesh_axis: name of the mesh axis, or axes, over which same-shaped matrices are spread.

    Raises:
      ValueError: b1 or b2 is a number outside [0, 1), eps or gamma one below 0, form is none of
        the three, or `previous_gradient` is missing.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_mars(b1=0.5, gamma=1.0, form="lion")
    >>> params = jnp.zeros(2)
    >>> updates, state = tx.update(jnp.array([1.5, -2.0]), tx.init(params))
    >>> print(updates, state.mu)
    [ 1. -1.] [ 0.3 -0.4]
    """
    trees.check_fractions("mars", b1=b1, b2=b2)
    trees.check_at_least("mars", 0, eps=eps, gamma=gamma)
    if form not in get_args(Form):
        raise ValueError(f"mars: form is {form!r}; accepted: {', '.join(get_args(Form))}.")

    def init(params: optax.Params) -> ScaleByMarsState:
        stacks.check_mesh_axis("mars", mesh_axis)
        layouts = _layouts(params, matrices)
        nu = None if form == "lion" else _where(_adam_leaves(form, layouts), params)
        return ScaleByMarsState(
            steps=jnp.zeros((), jnp.int32),
            mu=trees.zeros_like(params),
            nu=trees.zeros_like(nu),
            nu_max=trees.zeros_like(nu) if amsgrad else None,
            previous=trees.zeros_like(params) if approximate else None,
        )

    def update(
        updates: optax.Updates,
        state: ScaleByMarsState,
        params: optax.Params | None = None,
        *,
        previous_gradient: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByMarsState]:
        del params, extra_args
        layouts = _layouts(updates, matrices)

        def corrected(g: jax.Array, h: jax.Array) -> jax.Array:
            return g + trees.as_dtype(gamma * (b1 / (1 - b1)), g.dtype) * (g - h)

        if approximate:
            c, (previous,) = trees.map_leaves(
                lambda g, h: (corrected(g, h), g), updates, (state.previous,)
            )
        else:
            h, previous = _given(previous_gradient), None
            c, _ = trees.map_leaves(lambda g, h: (corrected(g, h),), updates, (), h)
        c = _clipped(c, layouts)
        m, (mu,) = trees.map_leaves(lambda c, m: (trees.average(b1, m, c),) * 2, c, (state.mu,))
        count = optax.safe_increment(state.steps)
        if form == "lion":
            u = jax.tree.map(jnp.sign, m)
            return u, ScaleByMarsState(count, mu, None, None, previous)
        adam = _adam_leaves(form, layouts)
        u, nu, nu_max = _adam_direction(
            _where(adam, c), mu, state.nu, state.nu_max, count, b1, b2, eps
        )
        if form == "shampoo":
            scaled = jax.tree.map(lambda m: m / trees.as_dtype(1 - b1, m.dtype), m)
            others = _where([not x for x in adam], scaled)
            rotated = _orthogonal(others, matrices, eps, dtype, mesh_axis)
            u = _merged(u, rotated)
        return u, ScaleByMarsState(count, mu, nu, nu_max, previous)

    return optax.GradientTransformationExtraArgs(init, update)


def mars(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: ArrayLike = 0.95,
    b2: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
    gamma: ArrayLike = 0.025,
    form: Form = "adamw",
    amsgrad: bool = False,
    approximate: bool = True,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    optimize_1d: bool = False,
    lr_1d_factor: ArrayLike = 1.0,
    b1_1d: ArrayLike = 0.9,
    b2_1d: ArrayLike = 0.95,
    weight_decay_1d: optax.ScalarOrSchedule = 0.1,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
    matrices: stacks.Matrices = None,
    dtype: DTypeLike | None = "bfloat16",
    mesh_axis: stacks.MeshAxis = None,
) -> optax.GradientTransformationExtraArgs:
    """MARS for matrices, AdamW for the other leaves; decay is multiplied by the rate.

    Args:
      learning_rate: lr of the matrices, or a schedule of it.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the second moment, of either kind of leaf, and by shampoo to the
        norm of the matrix.
      gamma: weight of the correction, at least 0; with 0 only the clipping is left.
      form: "adamw", "lion" or "shampoo".
      amsgrad: divide by the largest second moment up to now, of either kind of leaf.
      approximate: take the gradient of the step before; otherwise `update` needs the argument
        `previous_gradient`, or `with_previous_gradient` around this.
      weight_decay: decoupled decay wd, or a schedule of it.
      optimize_1d: MARS for all leaves, without the four arguments that follow.
      lr_1d_factor: rate of the other leaves, in units of the learning rate.
      b1_1d: decay of their first moment, in [0, 1).
      b2_1d: decay of their second moment, in [0, 1).
      weight_decay_1d: their decoupled decay, or a schedule of it.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.
      matrices: pattern for the whole path -> layout or None (see `optim.matrices`); by default what
        has exactly two axes is a matrix in flax's layout.
      dtype: of Newton-Schulz; None means that of the moments.
      mesh_axis: name of the mesh axis, or axes, over which same-shaped matrices are spread.

    Raises:
      ValueError: as `scale_by_mars`, or b1_1d or b2_1d is a number outside [0, 1).

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.mars(0.01, form="lion", weight_decay_1d=0.0)
    >>> params = {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}
    >>> gradient = {"kernel": jnp.array([[3.0, -4.0]]), "bias": jnp.array([1.0, 0.0])}
    >>> updates, state = tx.update(gradient, tx.init(params), params)
    >>> print(*optim.apply_updates(params, updates).values())
    [0.99 1.  ] [[0.99 1.01]]
    """
    trees.check_fractions("mars", b1_1d=b1_1d, b2_1d=b2_1d)

    def decayed(direction: Any, decay: optax.ScalarOrSchedule) -> Any:
        return optax.chain(direction, trees.add_decayed_weights(decay, mask))

    reduced = scale_by_mars(
        b1,
        b2,
        eps=eps,
        gamma=gamma,
        form=form,
        amsgrad=amsgrad,
        approximate=approximate,
        matrices=matrices,
        dtype=dtype,
        mesh_axis=mesh_axis,
    )
    step = decayed(reduced, weight_decay)
    if not optimize_1d:
        adamw = decayed(_scale_by_adam(b1_1d, b2_1d, eps, amsgrad), weight_decay_1d)
        groups = {"mars": step, "adamw": optax.chain(adamw, optax.scale(lr_1d_factor))}
        step = stacks.partition_leaves(groups, functools.partial(_kinds, matrices=matrices))
    return optax.chain(step, optax.scale_by_learning_rate(learning_rate))


def _kinds(tree: Any, matrices: stacks.Matrices) -> list[str]:
    return ["adamw" if layout is None else "mars" for layout in _layouts(tree, matrices)]


def _layouts(tree: Any, matrices: stacks.Matrices) -> list[str | None]:
    """The layout of every leaf; None for what is no matrix."""
    found = stacks.layouts("mars", tree, matrices)
    if matrices is not None:
        return found
    leaves = jax.tree.leaves(tree)
    return [x if jnp.ndim(leaf) == 2 else None for x, leaf in zip(found, leaves, strict=True)]


def _adam_leaves(form: Form, layouts: list[str | None]) -> list[bool]:
    """Which leaves have a second moment, of a form that has any."""
    return [form == "adamw" or layout is None for layout in layouts]


def _where(chosen: list[bool], tree: Any) -> Any:
    """The tree with None for leaves that are not chosen."""
    leaves, structure = jax.tree.flatten(tree)
    kept = [leaf if keep else None for keep, leaf in zip(chosen, leaves, strict=True)]
    return jax.tree.unflatten(structure, kept)


def _merged(tree: Any, other: Any) -> Any:
    """The first tree with the leaves of the second where it has None."""
    return jax.tree.map(lambda a, b: b if a is None else a, tree, other, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None


def _given(previous_gradient: optax.Updates | None) -> optax.Updates:
    if previous_gradient is None:
        raise ValueError(
            "mars: approximate is False, and previous_gradient is missing; pass "
            "tx.update(gradient, state, params, previous_gradient=...), or wrap the optimizer, "
            "optim.with_previous_gradient(optim.mars(..., approximate=False))."
        )
    return previous_gradient


def _clipped(tree: Any, layouts: list[str | None]) -> Any:
    """Each leaf, or each matrix of a leaf that holds several, with a norm of at most 1."""

    def clipped(x: jax.Array, layout: str | None) -> jax.Array:
        if layout is None:
            return x / jnp.maximum(1, jnp.linalg.norm(x.ravel()))
        axes = stacks.matrix_axes(x.shape, layout, transpose=False)
        each = stacks.to_matrices(x, axes)
        each = each / jnp.maximum(1, jnp.linalg.norm(each, axis=(1, 2), keepdims=True))
        return stacks.from_matrices(each, axes, x.shape)

    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, list(map(clipped, leaves, layouts)))


def _adam_direction(
    gradient: Any,
    mu: Any,
    nu: Any,
    nu_max: Any,
    count: jax.Array,
    b1: ArrayLike,
    b2: ArrayLike,
    eps: ArrayLike,
) -> tuple[Any, Any, Any]:
    """Adam's direction, and the new second moment and maximum, from a new first moment."""

    def rule(g: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
        v, *largest, m = others
        v = trees.average(b2, v, jnp.square(g))
        largest = [jnp.maximum(x, v) for x in largest]
        root = jnp.sqrt((largest or [v])[0] / trees.bias_correction(b2, count, g.dtype))
        u = m / trees.bias_correction(b1, count, g.dtype) / (root + trees.as_dtype(eps, g.dtype))
        return u, v, *largest

    old = (nu,) if nu_max is None else (nu, nu_max)
    u, new = trees.map_leaves(rule, gradient, old, mu)
    return u, new[0], None if nu_max is None else new[1]


def _scale_by_adam(
    b1: ArrayLike, b2: ArrayLike, eps: ArrayLike, amsgrad: bool
) -> optax.GradientTransformationExtraArgs:
    """Adam, for what is no matrix; optax's keeps bfloat16 moments for bfloat16 leaves."""

    def init(params: optax.Params) -> optax.ScaleByAmsgradState:
        zeros = trees.zeros_like
        largest = zeros(params) if amsgrad else None
        count = jnp.zeros((), jnp.int32)
        return optax.ScaleByAmsgradState(count, zeros(params), zeros(params), largest)

    def update(
        updates: optax.Updates,
        state: optax.ScaleByAmsgradState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.ScaleByAmsgradState]:
        del params, extra_args
        count = optax.safe_increment(state.count)
        _, (mu,) = trees.map_leaves(lambda g, m: (g, trees.average(b1, m, g)), updates, (state.mu,))
        u, nu, nu_max = _adam_direction(updates, mu, state.nu, state.nu_max, count, b1, b2, eps)
        return u, optax.ScaleByAmsgradState(count, mu, nu, nu_max)

    return optax.GradientTransformationExtraArgs(init, update)


def _orthogonal(
    tree: Any,
    matrices: stacks.Matrices,
    eps: ArrayLike,
    dtype: DTypeLike | None,
    mesh_axis: stacks.MeshAxis,
) -> Any:
    """Newton-Schulz of every leaf of the tree, all of them matrices, scaled for tall outputs."""
    leaves, structure = jax.tree.flatten(tree)
    for group in stacks.group_matrices("mars", tree, matrices):
        kernel = functools.partial(newton_schulz.newton_schulz, eps=eps)
        x = stacks.stack(group, leaves, dtype)
        x = stacks.distributed(stacks.in_chunks(kernel), x, mesh_axis).astype(group.dtype)
        leaves = stacks.unstack(group, x, leaves)
        for member in group.members:
            _, inputs, outputs = member.axes.shape
            leaves[member.position] *= math.sqrt(max(1, outputs / inputs))
    return jax.tree.unflatten(structure, leaves)
