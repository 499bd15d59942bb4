"""Block-wise MeZO: an estimate for each group of parameters, by probing that group alone.

For the groups g = 0, 1, ..., all with the seed of the step::

    c_g = slope of the loss along z [group = g]
    Gauss-Seidel: params = params - rate c_g z [group = g], before the next group is probed
    Jacobi:       params = params - rate sum_g c_g z [group = g], all c_g at the same parameters
    cyclic:       step t probes and moves the group t mod groups alone

An estimate's variance grows with the number of parameters that it probes at once; here it is that
of each group, for as many losses as there are groups.

*Differences.* (1) From ZO-Bench's code: groups are any; there, transformer blocks, their halves or
linear layers of OPT. As there, all groups of a step share a seed. (2) From MeZO's code, whose
random choice of one layer is computed and then not used: that is left out; its `zo_by_layer` is
Jacobi.

*Cost.* The estimator's losses, with a draw of every weight, and one pass over the parameters: for
each group, or for one if cyclic; one pass in all for Jacobi. One program is compiled for all
groups.

*Reference.* Zhang et al., Revisiting Zeroth-Order Optimization for Memory-Efficient LLM
Fine-Tuning, 2024 (arXiv:2402.11592), ZO-Bench/ZO-LLM@bf210fa, zo-bench/trainer.py; Malladi et al.,
2023 (arXiv:2305.17333), princeton-nlp/MeZO@552cb1b, medium_models/src/trainer.py.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim import trees
from zeroth_order.descent import Algorithm, DescentInfo, DescentState, after, draw, start
from zeroth_order.directions import Direction, scaled
from zeroth_order.estimates import Estimator
from zeroth_order.gradients import SeededGradient, apply
from zeroth_order.groups import by_group, number_of, only

ORDERS = ("gauss-seidel", "jacobi", "cyclic")


def mezo_blockwise(
    loss_fn: Callable[[optax.Params, Any], jax.Array],
    learning_rate: optax.ScalarOrSchedule,
    make: Callable[[Direction], Estimator],
    along: Direction,
    groups: Any,
    *,
    order: str = "gauss-seidel",
) -> Algorithm:
    """Block-wise MeZO as a traced algorithm, which owns the parameters.

    Its info holds the mean of the groups' losses, and their coefficients, (groups, samples), each
    of a direction restricted to the group; (1, samples) where the order is cyclic.

    Args:
      loss_fn: (params, batch) -> losses, as the estimator takes them.
      learning_rate: a number or a schedule.
      make: the estimator of a direction, such as `zeroth_order.spsa`.
      along: the direction.
      groups: a tree of numbers such as `zeroth_order.layer_groups(along, params)`.
      order: "gauss-seidel", "jacobi" (one sample only) or "cyclic".

    Raises:
      ValueError: the order is none of these; where it steps, jacobi with more samples than one.

    >>> import jax, jax.numpy as jnp, zeroth_order
    >>> def loss(params, batch):
    ...     return jnp.square(params["v"] - 2) + 9 * jnp.square(params["w"] + 1)
    >>> params, along = {"v": jnp.zeros(()), "w": jnp.zeros(())}, zeroth_order.direction()
    >>> groups = zeroth_order.layer_groups(along, params)
    >>> algorithm = zeroth_order.mezo_blockwise(loss, 0.1, zeroth_order.spsa, along, groups)
    >>> state, info = algorithm.update(algorithm.init(params, jax.random.key(0)), None)
    >>> print(f"{state.params['v']:.2f} {state.params['w']:.2f} {info.evaluations}")
    0.40 -1.80 4
    """
    if order not in ORDERS:
        raise ValueError(
            f"mezo_blockwise: order is {order!r}; accepted: {', '.join(map(repr, ORDERS))}."
        )
    count = number_of(groups)

    def update(state: DescentState, batch: Any) -> tuple[DescentState, DescentInfo]:
        seed = draw("mezo_blockwise", state)

        def estimate(params: optax.Params, group: jax.Array) -> Any:
            inside = only(along, groups, group)
            return inside, make(inside)(lambda p: loss_fn(p, batch), params, seed, state.step)

        def visit(params: optax.Params, group: jax.Array) -> tuple[optax.Params, Any]:
            inside, found = estimate(params, group)
            rate = trees.value_at(learning_rate, state.step, found.gradient.coefficients.dtype)
            if order != "jacobi":
                params = apply(inside, found.gradient, params, rate=rate, stochastic=True)
            return params, (found, rate)

        visited = jnp.arange(count, dtype=jnp.int32)
        if order == "cyclic":
            visited = (state.step % count).astype(jnp.int32)[None]
        params, (found, rates) = jax.lax.scan(visit, state.params, visited)
        if order == "jacobi":
            params = _all_moved(along, found.gradient.coefficients, groups, params, seed, rates[0])
        gradient = SeededGradient(seed, found.gradient.coefficients)
        evaluations = jnp.sum(found.evaluations)
        info = DescentInfo(jnp.mean(found.value), gradient, rates[0], evaluations)
        return after(state, params), info

    return Algorithm(functools.partial(start, "mezo_blockwise", along), update)


def _all_moved(
    along: Direction,
    coefficients: jax.Array,
    groups: Any,
    params: optax.Params,
    seed: jax.Array,
    rate: jax.Array,
) -> optax.Params:
    """The parameters after one pass, each group by its own coefficient."""
    if coefficients.shape[1] != 1:
        raise ValueError(
            f"mezo_blockwise: the estimator has {coefficients.shape[1]} samples; accepted with "
            f"order 'jacobi': 1."
        )
    weighted = scaled(along, by_group(coefficients[:, 0], groups))
    one = SeededGradient(seed, jnp.ones(1, coefficients.dtype))
    return apply(weighted, one, params, rate=rate, stochastic=True)
