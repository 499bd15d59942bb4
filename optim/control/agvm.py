"""AGVM: the rate of every module set by how much its gradient varies, next to an anchor's.

A gradient is the mean of those of two halves of the batch, `a` and `b`. For the leaves of group `i`
taken as one vector, and the factor `f_i` of the rate of that group (1 at the start)::

    phi_i = 1 - cos(a_i, b_i)
    new_i = sqrt(clip((phi_anchor + 1e-6) / (phi_i + 1e-6), 0.5, 10))
    f_i   = momentum f_i + (1 - momentum) new_i          at steps start, start + every, ...
    update_i = f_i inner_update_i                        at steps from start to stop

so that modules whose gradient varies more than that of the anchor, the backbone of a detector, take
smaller steps. Steps count from 0; those with a new factor are the multiples of `every` from `start`
on. With a second moment `v` (what the inner transformation has before the step), each half is seen
as Adam would see it, `a / (sqrt(b2 v + (1 - b2) a^2) + eps)`.

*Differences.*

1. The authors' half gradients are those of two sets of processes; here they are two trees, since
   who computes them is the caller's affair.
2. For Adam the authors' code squares the half gradients after a division by the number of
   processes, so that the denominator depends on that number. Here they enter as they are.
3. The authors' `warmup_iters` only warns, and `grad_clip` is an optimizer of its own in a chain.

*Cost.* 4 bytes a group. A pass over both halves every `every` steps (three with a second moment);
other steps cost the multiplication.

*Reference.* Xue et al., Large-batch Optimization for Dense Visual Predictions, 2022
(arXiv:2210.11078); Sense-X/AGVM@b60d59813d23, agvm/optim/agvm_optimizer_hook.py.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees

_FLOOR = 1e-6
_LEAST, _MOST = 0.5, 10.0


class AgvmState(NamedTuple):
    """State of `agvm`."""

    steps: jax.Array  # (), int32, steps made
    factors: dict[str, jax.Array]  # (), float32 or wider, f of every group by name
    inner_state: optax.OptState


def agvm(
    inner: optax.GradientTransformation,
    groups: Mapping[str, str] | Iterable[tuple[str, str]],
    *,
    anchor: str,
    momentum: ArrayLike = 0.97,
    every: int = 5,
    start: int = 500,
    stop: int | None = None,
    second_moment: Callable[[optax.OptState], Any] | None = None,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """`inner`, whose updates are scaled by a factor for each group of leaves.

    The update takes `half_gradients`, a pair of trees like the gradient, whose mean the gradient
    is. They are read at the steps that make new factors alone, and may be anything at others.

    Args:
      inner: a whole optimizer, its rate and weight decay included, both of which are scaled.
      groups: names of groups by patterns for the whole path of a leaf; every leaf has a group.
      anchor: the group that the others are compared with, whose own factor stays 1.
      momentum: weight of the old factor, in [0, 1).
      every: steps between new factors, at least 1.
      start: first step, from 0, that is scaled; after the warm-up of the rate.
      stop: last step that is scaled; None for no end.
      second_moment: inner's state -> its mean squares, like the gradient, for an inner that divides
        by their root; None compares the gradients themselves.
      b2: decay of that second moment, in [0, 1).
      eps: added to its root.

    Raises:
      ValueError: momentum or b2 is a number outside [0, 1), every is less than 1, start or stop is
        negative, anchor is no group, or update is called without half_gradients; or, at init, a
        pattern matches nothing or a leaf has no group.

    >>> import jax.numpy as jnp, optax, optim
    >>> tx = optim.agvm(optax.sgd(1.0), {"body": "a", "head": "b"}, anchor="a", start=0)
    >>> params = {"body": jnp.zeros(2), "head": jnp.zeros(2)}
    >>> halves = (  # at 90 degrees in the body and at 180 in the head
    ...     {"body": jnp.array([2.0, 0.0]), "head": jnp.array([3.0, 0.0])},
    ...     {"body": jnp.array([0.0, 2.0]), "head": jnp.array([-1.0, 0.0])},
    ... )
    >>> gradients = {"body": jnp.array([1.0, 1.0]), "head": jnp.array([1.0, 0.0])}
    >>> _, state = tx.update(gradients, tx.init(params), params, half_gradients=halves)
    >>> {name: round(float(f), 4) for name, f in state.factors.items()}  # .97 + .03 sqrt(1 / 2)
    {'a': 1.0, 'b': 0.9912}
    """
    rules = tuple(groups.items() if isinstance(groups, Mapping) else groups)
    names = sorted({name for _, name in rules})
    trees.check_fractions("agvm", momentum=momentum, b2=b2)
    trees.check_at_least("agvm", 1, every=every)
    trees.check_at_least("agvm", 0, start=start, **({} if stop is None else {"stop": stop}))
    if anchor not in names:
        raise ValueError(f"agvm: anchor is {anchor!r}; accepted: one of the groups {names}.")
    inner = optax.with_extra_args_support(inner)

    def labels(tree: Any) -> Any:
        return trees.labels_by_path("agvm: groups", tree, rules)

    def init(params: optax.Params) -> AgvmState:
        labels(params)
        dtype = trees.accumulator_dtype(*jax.tree.leaves(params))
        ones = {name: jnp.ones((), dtype) for name in names}
        return AgvmState(jnp.zeros((), jnp.int32), ones, inner.init(params))

    def dissimilarities(halves: tuple[Any, Any], squares: Any, dtype: jnp.dtype) -> Any:
        """phi of every group."""
        sums = {name: jnp.zeros(3, dtype) for name in names}

        def add(label: str, a: ArrayLike, b: ArrayLike, *v: ArrayLike) -> None:
            a, b = trees.as_dtype(a, dtype), trees.as_dtype(b, dtype)
            if v:
                a, b = (_as_adam(x, trees.as_dtype(v[0], dtype), b2, eps) for x in (a, b))
            sums[label] += jnp.stack([jnp.sum(a * b), jnp.sum(a * a), jnp.sum(b * b)])

        jax.tree.map(add, labels(halves[0]), *halves, *squares)
        return {name: 1 - _cosine(*sums[name]) for name in names}

    def update(
        updates: optax.Updates,
        state: AgvmState,
        params: optax.Params | None = None,
        *,
        half_gradients: tuple[optax.Updates, optax.Updates] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AgvmState]:
        if half_gradients is None:
            raise ValueError(
                "agvm: half_gradients is None; accepted: the gradients of both halves of the "
                "batch, as in update(updates, state, params, half_gradients=(first, second))."
            )
        scaled = state.steps >= start
        if stop is not None:
            scaled &= state.steps <= stop

        def measured() -> dict[str, jax.Array]:
            squares = () if second_moment is None else (second_moment(state.inner_state),)
            dtype = state.factors[anchor].dtype
            phi = dissimilarities(half_gradients, squares, dtype)
            ratio = {name: (phi[anchor] + _FLOOR) / (phi[name] + _FLOOR) for name in names}
            new = {name: jnp.sqrt(jnp.clip(r, _LEAST, _MOST)) for name, r in ratio.items()}
            return {name: trees.average(momentum, state.factors[name], new[name]) for name in names}

        due = scaled & (state.steps % every == 0)
        factors = jax.lax.cond(due, measured, lambda: state.factors)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)

        def scale(label: str, u: jax.Array) -> jax.Array:
            return u * jnp.where(scaled, factors[label], 1).astype(u.dtype)

        updates = jax.tree.map(scale, labels(updates), updates)
        return updates, AgvmState(optax.safe_increment(state.steps), factors, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _as_adam(g: jax.Array, v: jax.Array, b2: ArrayLike, eps: ArrayLike) -> jax.Array:
    """The gradient over the root of the second moment that it makes."""
    return g / (jnp.sqrt(trees.average(b2, v, jnp.square(g))) + trees.as_dtype(eps, g.dtype))


def _cosine(product: jax.Array, square: jax.Array, other: jax.Array) -> jax.Array:
    least = jnp.asarray(1e-8, product.dtype)  # the norm below which a gradient counts as zero
    norms = jnp.maximum(jnp.sqrt(square), least), jnp.maximum(jnp.sqrt(other), least)
    return product / (norms[0] * norms[1])
