"""Optimistic mirror descent: every step bets that the next gradient will be like the last.

With gradient `g` at the parameters `x`, a second iterate `y` (y = x at the start), the Bregman
divergence B of a mirror map, and rates `r` and `r'` of this step and the next::

    y = argmin over v of  r <g, v> + B(v, y)
    x = argmin over v of  r' <g, v> + B(v, y)

The gradient is used twice, first as what was met, then as the guess of what comes. With the
Euclidean map both are y - r g, or its projection; with the entropic map, on the simplex of the last
axis, y exp(-r g) divided by its sum. The rate is `learning_rate` or, with `offset`::

    r = learning_rate / sqrt(offset + V)
    V = sum of |g - g'|^2 over the steps before, g' being the gradient one step earlier, first 0

*Differences.* The paper's rate is D / sqrt(delta + 4 G^2 + V) with a diameter D, a bound G on the
gradients and delta > 0: `learning_rate` is D and `offset` the constant. |.| is the Euclidean norm
over all leaves for every mirror map. From `optax.optimistic_gradient_descent`, which is the
Euclidean map with a constant rate: its first step is a plain one of length r |g|, here g is
also the guess and the length 2 r |g|; a rate that changes from step to step is a step of another
kind there.

*Cost.* The second iterate: 4 bytes a parameter, 8 with `offset`, which needs the last gradient. The
entropic map keeps the logarithm of y, so that no weight is lost by underflow.

*Reference.* Chen et al., Optimistic Online Mirror Descent for Bridging Stochastic and Adversarial
Online Convex Optimization, 2023 (arXiv:2302.04552); Rakhlin and Sridharan, Online Learning with
Predictable Sequences, 2013 (arXiv:1208.3728). There is no official code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


class MirrorMap(NamedTuple):
    """How a leaf moves: three functions of arrays of one dtype."""

    to_mirror: Callable[[jax.Array], jax.Array]  # a leaf of the parameters, in mirror coordinates
    step: Callable[[jax.Array, jax.Array], jax.Array]  # (y, r g) -> argmin, in mirror coordinates
    from_mirror: Callable[[jax.Array], jax.Array]  # back to the leaf


class OptimisticState(NamedTuple):
    """State of `optimistic`."""

    steps: jax.Array  # (), int32, steps made
    anchor: optax.Params  # like the parameters, float32 or wider: y in mirror coordinates
    previous: optax.Updates | None  # like the parameters, float32 or wider: g'; None without offset
    variation: jax.Array | None  # (), float32 or wider: V; None without offset


def euclidean_mirror_map(
    projection: Callable[[jax.Array], jax.Array] | None = None,
) -> MirrorMap:
    """B(v, y) = |v - y|^2 / 2, on all vectors or on a convex set of them.

    Args:
      projection: a leaf -> the nearest point of the set; None for no constraint.

    >>> import jax.numpy as jnp, optim
    >>> box = optim.euclidean_mirror_map(lambda x: jnp.clip(x, -1.0, 1.0))
    >>> print(box.step(jnp.array([0.5, 0.0]), jnp.array([-2.0, 0.5])))
    [ 1.  -0.5]
    """
    project = projection or _same
    return MirrorMap(_same, lambda y, s: project(y - s), _same)


def entropic_mirror_map() -> MirrorMap:
    """B(v, y) = sum of v log(v / y) on the probability simplex of the last axis of every leaf.

    >>> import jax.numpy as jnp, optim
    >>> simplex = optim.entropic_mirror_map()
    >>> y = simplex.to_mirror(jnp.array([0.5, 0.25, 0.25]))
    >>> x = simplex.from_mirror(simplex.step(y, jnp.log(jnp.array([2.0, 1.0, 0.5]))))
    >>> [round(float(weight), 3) for weight in x]
    [0.25, 0.25, 0.5]
    """

    def to_mirror(x: jax.Array) -> jax.Array:
        if not x.ndim:
            raise ValueError(
                "optimistic: a leaf of params is a scalar; accepted by entropic_mirror_map: leaves "
                "that sum to 1 over their last axis."
            )
        return jnp.log(x)

    return MirrorMap(to_mirror, lambda y, s: jax.nn.log_softmax(y - s, axis=-1), jnp.exp)


def optimistic(
    learning_rate: optax.ScalarOrSchedule,
    *,
    mirror_map: MirrorMap | None = None,
    offset: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Optimistic mirror descent; its updates already hold the rate, so it is a whole optimizer.

    In a game, every player descends its own loss: negate the gradients of one that maximizes.

    Args:
      learning_rate: rate r, or a schedule of it; with offset the diameter D, or a schedule of it.
      mirror_map: `optim.euclidean_mirror_map()`, the default, or `optim.entropic_mirror_map()`,
        for parameters that are positive and sum to 1 over their last axis, or one's own.
      offset: delta + 4 G^2, positive, for a rate that falls with the variation of the gradients.

    Raises:
      ValueError: offset is a number that is not positive, or the update is called without params.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.optimistic(0.5)
    >>> game = {"x": jnp.array([1.0]), "y": jnp.array([1.0])}  # the loss of x is x y, of y -x y
    >>> state = tx.init(game)
    >>> for _ in range(40):
    ...     updates, state = tx.update({"x": game["y"], "y": -game["x"]}, state, game)
    ...     game = optim.apply_updates(game, updates)
    >>> print(game["x"].round(2) + 0, game["y"].round(2) + 0)
    [0.] [0.]
    """
    mirror = mirror_map or euclidean_mirror_map()
    if isinstance(offset, int | float) and not offset > 0:
        raise ValueError(f"optimistic: offset is {offset}; accepted: offset > 0, or None.")

    def rate(steps: jax.Array, variation: jax.Array | None) -> ArrayLike:
        base = learning_rate(steps) if callable(learning_rate) else learning_rate
        if variation is None or offset is None:
            return base
        return trees.as_dtype(base, variation.dtype) / jnp.sqrt(
            trees.as_dtype(offset, variation.dtype) + variation
        )

    def init(params: optax.Params) -> OptimisticState:
        promoted = trees.promote(params)
        anchor = jax.tree.map(lambda p: jnp.array(mirror.to_mirror(p), copy=True), promoted)
        steps = jnp.zeros((), jnp.int32)
        if offset is None:
            return OptimisticState(steps, anchor, None, None)
        return OptimisticState(
            steps, anchor, trees.zeros_like(params), jnp.zeros_like(trees.norm(params))
        )

    def update(
        updates: optax.Updates,
        state: OptimisticState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, OptimisticState]:
        del extra_args
        if params is None:
            raise ValueError(
                "optimistic: params is None; call update(updates, state, params) with parameters."
            )
        steps = optax.safe_increment(state.steps)
        previous, variation = state.previous, state.variation
        if variation is not None:
            difference, (previous,) = trees.map_leaves(_difference, updates, (previous,))
            variation += jnp.square(trees.norm(difference)).astype(variation.dtype)
        now, then = rate(state.steps, state.variation), rate(steps, variation)

        def move(g: jax.Array, y: jax.Array, p: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = mirror.step(y, trees.as_dtype(now, g.dtype) * g)
            guessed = mirror.step(y, trees.as_dtype(then, g.dtype) * g)
            return mirror.from_mirror(guessed) - p, y

        updates, (anchor,) = trees.map_leaves(move, updates, (state.anchor,), params)
        return updates, OptimisticState(steps, anchor, previous, variation)

    return optax.GradientTransformationExtraArgs(init, update)


def _difference(g: jax.Array, previous: jax.Array) -> tuple[jax.Array, jax.Array]:
    return g - previous, g


def _same(x: jax.Array) -> jax.Array:
    return x
