"""Directional attacks with covering direct search: a trained network optimized through its inputs.

Experimental, and driven from the host. For a network Phi, a smooth loss and constraints, minimise
loss(Phi(x)) where constraint(Phi(x)) <= 0, every entry. A step tries, in this order::

    attack    x + u with |u|_inf <= attack_radius, at which Phi moves along -grad loss(Phi(x)): ten
              signed steps on u . grad (Phi(x + u) . -grad loss), at 1.2, 1 and 0.8 of the radius
    covering  a point drawn uniformly in the ball of the first radius around x
    search    a point drawn at that radius times sqrt(searches + 1)
    poll      x +- radius h, h the columns of a Householder reflection of a random direction, scaled
              to |h|_inf = 1: a positive basis

The attack and what follows it are both tried; of covering, search and poll each only if the one
before failed. A point is kept if it is feasible and its loss is lower. Radii::

    attack kept: attack_radius 1.3 times, radius 1.1 times; else attack_radius / 1.3
    search or poll kept: radius doubled; poll not: radius halved

Covering makes the points that are tried dense around any point where the method stays, so that it
stays at local solutions alone, of discontinuous problems too.

*Differences.* From the authors' code: (1) it minimises. (2) The attack is written out here, for
networks that can be differentiated; there, it is one of several of a library, such as FGSM and
PGD. (3) A poll takes the best of its 2 n points; there, the first that is better of n + 1, each
rotated by up to 30 degrees. (4) The ball's radius is scaled after the root of the uniform number;
there, before. (5) Constraints are a barrier: what breaks one is never kept; the code that was read
has none. (6) The search's point is at random as there, but tried always; there, by default never.
(7) Radii have no upper bound; there, attacks have 1. The papers were not read beyond their
abstracts: what the covering is for is theirs, and its proof was not checked.

*Cost.* A step: at most 3 (10 gradients and one loss) + 2 + 2 n losses for n inputs, those of a poll
together (vmap).

*Reference.* Bouchet and Vidal, Optimization by Directional Attacks: Solving Problems with Neural
Network Surrogates, 2025 (arXiv:2510.01461); Audet, Bouchet and Bourdin, Convergence towards a local
minimum by direct search methods with a covering step, 2024 (arXiv:2401.07097);
PierreYvesBouchet/Optimization-by-Directional-Attacks@fa264a1,
src/optimization_algorithms/hybrid_method.py and tools.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim import trees
from zeroth_order.descent import Algorithm

LEAST, ATTACK_STEPS, ATTACK_SCALES = 1e-5, 10, (1.2, 1.0, 0.8)


class DirectionalAttackState(NamedTuple):
    """The point that is kept, and the radii."""

    x: jax.Array  # (n,)
    value: float  # its loss
    radius: float  # of the next poll
    attack_radius: float
    searches: int
    key: jax.Array  # (), typed key: of the run
    step: int


class DirectionalAttackInfo(NamedTuple):
    """What a step tells."""

    loss: float  # of the point that is kept
    kept: tuple[str, ...]  # which of attack, covering, search and poll found a better point
    evaluations: int  # losses of this step


def directional_attack(
    model: Callable[[jax.Array], jax.Array],
    loss_fn: Callable[[jax.Array], jax.Array],
    constraint_fn: Callable[[jax.Array], jax.Array] | None = None,
    *,
    radius: float = 1.0,
    attack: bool = True,
) -> Algorithm:
    """The hybrid method as `init(x, key)` and `update(state)`, which is not traced.

    Args:
      model: Phi, a vector -> a vector, differentiable.
      loss_fn: outputs -> a loss, smooth.
      constraint_fn: outputs -> numbers none of which may be positive.
      radius: the first radius, of polls, attacks and the covering.
      attack: False leaves covering direct search alone.

    Raises:
      ValueError: radius is not positive; in `init`, x is no vector of floats or is not feasible.

    >>> import jax, jax.numpy as jnp, zeroth_order
    >>> method = zeroth_order.directional_attack(jnp.tanh, lambda y: jnp.sum((y - 0.5) ** 2))
    >>> state = method.init(jnp.zeros(3), jax.random.key(0))
    >>> for _ in range(30):
    ...     state, info = method.update(state)
    >>> print(info.loss < 1e-3)
    True
    """
    trees.check_positive("directional_attack", radius=radius)

    def value(x: jax.Array) -> jax.Array:
        outputs = model(x)
        found = loss_fn(outputs)
        if constraint_fn is not None:
            found = jnp.where(jnp.all(constraint_fn(outputs) <= 0), found, jnp.inf)
        return jnp.where(jnp.isnan(found), jnp.inf, found)

    values = jax.jit(jax.vmap(value))

    @jax.jit
    def attacked(x: jax.Array, radius: jax.Array) -> jax.Array:
        along = -jax.grad(loss_fn)(model(x))
        slope = jax.grad(lambda u: along @ model(x + u))

        def step(_: Any, u: jax.Array) -> jax.Array:
            return jnp.clip(u + 2 * radius / ATTACK_STEPS * jnp.sign(slope(u)), -radius, radius)

        return x + jax.lax.fori_loop(0, ATTACK_STEPS, step, jnp.zeros_like(x))

    def init(x: jax.Array, key: jax.Array) -> DirectionalAttackState:
        _check_vector(x)
        first = float(values(jnp.asarray(x)[None])[0])
        if not math.isfinite(first):
            raise ValueError(
                "directional_attack: x breaks a constraint or its loss is no number; accepted: a "
                "feasible start."
            )
        return DirectionalAttackState(jnp.array(x), first, radius, radius, 0, jnp.array(key), 0)

    def update(
        state: DirectionalAttackState, batch: None = None
    ) -> tuple[DirectionalAttackState, DirectionalAttackInfo]:
        kept: list[str] = []
        asked = 0
        if attack:
            state, found, asked = _attack_step(values, attacked, state)
            kept += found
        state, found, tried = _direct_search_step(values, state, radius)
        kept += found
        state = state._replace(step=state.step + 1)
        return state, DirectionalAttackInfo(state.value, tuple(kept), asked + tried)

    return Algorithm(init, update)


Values = Callable[[jax.Array], jax.Array]


def _better(values: Values, state: DirectionalAttackState, xs: jax.Array) -> Any:
    """The state at the best of the points, and whether it is better."""
    found = values(xs)
    best = int(jnp.argmin(found))
    if not float(found[best]) < state.value:
        return state, False
    return state._replace(x=xs[best], value=float(found[best])), True


def _attack_step(
    values: Values, attacked: Callable[..., jax.Array], state: DirectionalAttackState
) -> tuple[DirectionalAttackState, list[str], int]:
    """The state after attacks, what was kept, and how many losses it took."""
    for asked, scale in enumerate(ATTACK_SCALES, start=1):
        found, kept = _better(values, state, attacked(state.x, state.attack_radius * scale)[None])
        if kept:
            larger = {"attack_radius": 1.3 * state.attack_radius, "radius": 1.1 * state.radius}
            return found._replace(**larger), ["attack"], asked
    smaller = max(LEAST, state.attack_radius / 1.3)
    return state._replace(attack_radius=smaller), [], len(ATTACK_SCALES)


def _direct_search_step(
    values: Values, state: DirectionalAttackState, first: float
) -> tuple[DirectionalAttackState, list[str], int]:
    """The same for covering, search and poll, up to the first that is kept."""
    key = jax.random.fold_in(trees.named_key(state.key, "directional_attack"), state.step)
    asked = 0
    for name in ("covering", "search", "poll"):
        xs = _trials(name, trees.named_key(key, name), state, first)
        asked += len(xs)
        state, kept = _better(values, state, xs)
        if name == "search":
            state = state._replace(searches=state.searches + 1)
        if kept:
            factor = 1 if name == "covering" else 2
            return state._replace(radius=factor * state.radius), [name], asked
    return state._replace(radius=max(LEAST, state.radius / 2)), [], asked


def _trials(name: str, key: jax.Array, state: DirectionalAttackState, first: float) -> jax.Array:
    """The points of one of covering, search and poll: (points, n)."""
    x, (length, turn) = state.x, jax.random.split(key)
    unit = jax.random.normal(turn, x.shape, x.dtype)
    unit = unit / jnp.linalg.norm(unit)
    if name == "covering":
        return (x + first * jax.random.uniform(length, (), x.dtype) ** (1 / x.size) * unit)[None]
    if name == "search":
        return (x + first * math.sqrt(state.searches + 1) * unit)[None]
    columns = jnp.eye(x.size, dtype=x.dtype) - 2 * jnp.outer(unit, unit)
    columns = columns / jnp.max(jnp.abs(columns), axis=1, keepdims=True)
    return x + state.radius * jnp.concatenate([columns, -columns])


def _check_vector(x: Any) -> None:
    shape, dtype = jnp.shape(x), jnp.result_type(x)
    if len(shape) != 1 or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"directional_attack: x has the shape {shape} and the dtype {dtype}; accepted: a "
            f"vector of floats."
        )
