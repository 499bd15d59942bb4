"""ZO-SGD-Cons: a step of an estimate, taken forwards, backwards or not at all, by its losses.

With the estimate g of `zeroth_order.spsa` and the losses of one batch::

    l0 = loss(params),  l1 = loss(params - rate g),  l2 = loss(params + rate g)
    params = params - rate g  if l1 <= l0 and l1 < l2
             params           if l1 > l0 and l0 < l2
             params + rate g  otherwise

so that the loss of the batch never rises.

*Differences.* From the authors' code: (1) the three are made from the parameters that are kept;
there, by adding and subtracting steps, whose roundings stay. (2) The step is that of SGD; there,
their runs leave the optimizer at its default, which is AdamW.

*Cost.* The estimate's losses and three more, one after the other; the temporaries of a copy of the
parameters.

*Reference.* Zhang et al., Revisiting Zeroth-Order Optimization for Memory-Efficient LLM
Fine-Tuning, 2024 (arXiv:2402.11592); ZO-Bench/ZO-LLM@bf210fa, zo-bench/trainer.py.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim import trees
from zeroth_order.descent import Algorithm, DescentInfo, DescentState, after, draw, start
from zeroth_order.directions import Direction
from zeroth_order.estimates import Estimator, promoted
from zeroth_order.gradients import apply


def zo_sgd_conservative(
    loss_fn: Callable[[optax.Params, Any], jax.Array],
    learning_rate: optax.ScalarOrSchedule,
    estimator: Estimator,
    along: Direction,
) -> Algorithm:
    """Conservative zeroth-order SGD as a traced algorithm, which owns the parameters.

    Its info holds l0 as the loss, and as the rate that of the step that was taken: the learning
    rate, its negative, or zero.

    Args:
      loss_fn: (params, batch) -> losses, as the estimator takes them.
      learning_rate: a number or a schedule.
      estimator: such as `zeroth_order.spsa(along)`.
      along: the direction through which the estimator's gradients are read.

    >>> import jax, jax.numpy as jnp, zeroth_order
    >>> def loss(params, batch):
    ...     return jnp.square(params["w"] - batch)
    >>> along = zeroth_order.direction()
    >>> make = zeroth_order.zo_sgd_conservative
    >>> algorithm = make(loss, 10.0, zeroth_order.spsa(along), along)
    >>> state = algorithm.init({"w": jnp.ones(())}, jax.random.key(0))
    >>> state, info = jax.jit(algorithm.update)(state, jnp.array([0.0, 2.5]))
    >>> print(state.params["w"], info.learning_rate, info.evaluations)
    1.0 0.0 5
    """

    def update(state: DescentState, batch: Any) -> tuple[DescentState, DescentInfo]:
        params = state.params
        seed = draw("zo_sgd_conservative", state)
        found = estimator(lambda p: loss_fn(p, batch), params, seed, state.step)
        rate = trees.value_at(learning_rate, state.step, found.gradient.coefficients.dtype)

        def moved(rate: jax.Array) -> optax.Params:
            return apply(along, found.gradient, params, rate=rate, stochastic=True)

        def loss(rate: jax.Array) -> jax.Array:
            return jnp.mean(promoted("zo_sgd_conservative", loss_fn(moved(rate), batch)))

        rates = jnp.stack([jnp.zeros_like(rate), rate, -rate])
        here, forwards, backwards = jax.lax.map(loss, rates)
        chosen = jnp.where(
            forwards > here,
            jnp.where(here < backwards, rates[0], rates[2]),
            jnp.where(forwards < backwards, rates[1], rates[2]),
        )
        info = DescentInfo(here, found.gradient, chosen, found.evaluations + 3)
        return after(state, moved(chosen)), info

    return Algorithm(functools.partial(start, "zo_sgd_conservative", along), update)
