"""Consensus hopping: the next point is the weighted mean of normal samples around this one.

With z_j = z(seed + j) along a normal direction, n samples and the seed of the step::

    w_j = exp(-alpha f(x + sigma z_j)) / sum over k of exp(-alpha f(x + sigma z_k))
    x = sum over j of w_j (x + sigma z_j)  =  x - sum over j of (-sigma w_j) z_j

which is a seeded gradient of coefficients -sigma w_j, taken at the rate 1: an evolution strategy
with softmax weights. It is consensus-based optimization whose particles forget where they were. On
a linear loss of gradient g the mean step tends to -alpha sigma^2 g as n grows; with large alpha the
best sample is taken.

*Differences.* From the authors' code: (1) samples are never stored: each is made from its seed, for
its loss and again for the step. (2) A loss that is no number weighs nothing. (3) sigma and alpha
are numbers or schedules; there, sigma may shrink by 0.98 every hundred steps.

*Cost.* n losses, one after the other in a loop that is compiled once, the temporaries of one loss
and of a copy of the parameters or, streamed, of one layer; one pass over the parameters that draws
n z. The pass is unrolled over samples: compilation grows with them. State: a key and a count.

*Reference.* Riedl et al., Gradient is All You Need? How Consensus-Based Optimization can be
Interpreted as a Stochastic Relaxation of Gradient Descent, 2023 (arXiv:2306.09778);
KonstantinRiedl/CBOGlobalConvergenceAnalysis@c8ba02d, CBOstochasticGD/algorithms/CH.m.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim import trees
from zeroth_order.consensus import gibbs_weights
from zeroth_order.descent import Algorithm, DescentInfo, DescentState, after, draw, start
from zeroth_order.directions import Direction, perturb
from zeroth_order.gradients import SeededGradient, apply
from zeroth_order.streaming import stream


def consensus_hopping(
    loss_fn: Callable[[optax.Params, Any], jax.Array],
    along: Direction,
    *,
    sigma: optax.ScalarOrSchedule,
    alpha: optax.ScalarOrSchedule,
    samples: int = 100,
    streamed: bool = False,
) -> Algorithm:
    """Consensus hopping as a traced algorithm, which owns the parameters.

    Its info holds the mean loss of the samples, and 1 as the learning rate.

    Args:
      loss_fn: (params, batch) -> a loss, or those of all examples, whose mean is taken.
      along: the direction of the samples, such as
        `zeroth_order.direction(zeroth_order.box_muller_normal)`.
      sigma: standard deviation of the samples, a number or a schedule.
      alpha: inverse temperature of the weights, a number or a schedule.
      samples: points a step, n.
      streamed: hand the loss `zeroth_order.stream`ed parameters, for models that read them.

    Raises:
      ValueError: sigma or alpha is negative, or samples is below 1.

    >>> import jax, jax.numpy as jnp, zeroth_order
    >>> along = zeroth_order.direction(zeroth_order.popcount_normal)
    >>> make = zeroth_order.consensus_hopping
    >>> hopping = make(lambda x, batch: jnp.sum(x**2), along, sigma=0.3, alpha=10.0, samples=30)
    >>> state = hopping.init(jnp.ones(3), jax.random.key(0))
    >>> state, info = jax.lax.scan(lambda s, _: hopping.update(s, None), state, length=30)
    >>> print(bool(jnp.abs(state.params).max() < 0.3), info.evaluations[-1])
    True 30
    """
    trees.check_at_least("consensus_hopping", 0, sigma=sigma, alpha=alpha)
    trees.check_at_least("consensus_hopping", 1, samples=samples)
    probe = stream if streamed else perturb

    def update(state: DescentState, batch: Any) -> tuple[DescentState, DescentInfo]:
        params = state.params
        seed = draw("consensus_hopping", state)
        dtype = trees.accumulator_dtype(*jax.tree.leaves(params))
        width = trees.value_at(sigma, state.step, dtype)

        def loss(j: jax.Array) -> jax.Array:
            return jnp.mean(trees.promote(loss_fn(probe(along, params, seed + j, width), batch)))

        losses = jax.lax.map(loss, jnp.arange(samples, dtype=jnp.uint32))
        weights = gibbs_weights(losses, trees.value_at(alpha, state.step, losses.dtype))
        gradient = SeededGradient(seed, -width * weights.astype(dtype))
        params = apply(along, gradient, params, stochastic=True)
        info = DescentInfo(jnp.mean(losses), gradient, jnp.ones((), dtype), jnp.int32(samples))
        return after(state, params), info

    return Algorithm(functools.partial(start, "consensus_hopping", along), update)
