"""MeZO: stochastic gradient descent by forward passes, at the memory of inference.

With the estimate c_j, z_j of `zeroth_order.spsa` at the seed of the step::

    params = params - rate (sum over j of c_j z_j + weight_decay params)

*Differences.* From the authors' code: (1) perturbations are not undone but never made to the
parameters that are kept; there, the restored ones are off by rounding. (2) z is +-1 by default;
there, normal: `along=zeroth_order.direction(zeroth_order.box_muller_normal)`. (3) bfloat16
parameters are rounded stochastically. (4) Which leaves decay is the `mask`; there, all whose names
hold neither bias nor layer_norm.

*Cost.* 2 n losses and one pass over the parameters, in place where the state is donated. State: a
key and a count.

*Reference.* Malladi et al., Fine-Tuning Language Models with Just Forward Passes, 2023
(arXiv:2305.17333), Algorithm 1; princeton-nlp/MeZO@552cb1b, large_models/trainer.py.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from optim import trees
from zeroth_order.descent import Algorithm, DescentInfo, DescentState, after, draw, start
from zeroth_order.directions import Direction
from zeroth_order.estimates import Estimator
from zeroth_order.gradients import apply


def mezo(
    loss_fn: Callable[[optax.Params, Any], jax.Array],
    learning_rate: optax.ScalarOrSchedule,
    estimator: Estimator,
    along: Direction,
    *,
    weight_decay: float = 0.0,
    mask: Any = None,
) -> Algorithm:
    """MeZO as a traced algorithm, which owns the parameters.

    Args:
      loss_fn: (params, batch) -> losses, as the estimator takes them.
      learning_rate: a number or a schedule.
      estimator: `zeroth_order.spsa(along)` or `zeroth_order.forward_gradient(along)`.
      along: the direction through which the estimator's gradients are read.
      weight_decay: coefficient of the parameters.
      mask: which leaves decay, as `optax.add_decayed_weights` takes it; all by default.

    Raises:
      ValueError: weight_decay is negative.

    >>> import jax, jax.numpy as jnp, zeroth_order
    >>> def loss(params, batch):
    ...     return jnp.square(params["w"] - batch)
    >>> along = zeroth_order.direction()
    >>> algorithm = zeroth_order.mezo(loss, 0.1, zeroth_order.spsa(along), along)
    >>> state = algorithm.init({"w": jnp.ones(())}, jax.random.key(0))
    >>> state, info = jax.jit(algorithm.update)(state, jnp.array([0.0, 2.0, 3.5]))
    >>> print(state.params["w"].round(3), info.evaluations)
    1.167 2
    """
    trees.check_at_least("mezo", 0, weight_decay=weight_decay)

    def update(state: DescentState, batch: Any) -> tuple[DescentState, DescentInfo]:
        params = state.params
        seed = draw("mezo", state)
        found = estimator(lambda p: loss_fn(p, batch), params, seed, state.step)
        rate = trees.value_at(learning_rate, state.step, found.gradient.coefficients.dtype)
        decays = trees.mask_like(params, mask)
        decay = jax.tree.map(lambda decays: weight_decay if decays else 0.0, decays)
        params = apply(along, found.gradient, params, rate=rate, decay=decay, stochastic=True)
        info = DescentInfo(found.value, found.gradient, rate, found.evaluations)
        return after(state, params), info

    return Algorithm(functools.partial(start, "mezo", along), update)
