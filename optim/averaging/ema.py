"""An exponential moving average of the parameters, to be evaluated in their place.

With parameters `p` after step t = 1, 2, ... and decay `d`, the average `a` moves by::

    w = (1 - d) / (1 - d^t)
    a = (1 - w) a + w p

The first step has w = 1, so that `a` is the mean of the parameters after steps 1 to t with weights
in the proportion d^(t-1) : ... : d : 1. It equals the average that starts at 0 and is divided by
1 - d^t when it is served, but is itself in the state, and in float32 it keeps its digits where d is
close to 1. Before the first step `a` is a copy of the parameters.

*Differences.* Averages that start at the first parameters and have w = 1 - d throughout weigh those
parameters d^t. The average takes the parameters as the update would leave them, in float32 at the
least: for bfloat16 parameters it is free of the rounding that `optim.apply_updates` does. Integer
parameters are not averaged but served as they are.

*Cost.* 4 bytes a parameter and one pass over the parameters a step.

*Reference.* Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992, for
averages; Kingma and Ba, Adam, 2015 (arXiv:1412.6980), section 3, for the division.
"""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


class ParamsEmaState(NamedTuple):
    """State of `params_ema`."""

    steps: jax.Array  # (), int32, steps averaged: t
    average: optax.Params  # like the parameters, float32 or wider, without integer leaves: a

    def evaluation_params(self, params: optax.Params) -> optax.Params:
        """The average."""
        del params
        return self.average


def params_ema(decay: ArrayLike) -> optax.GradientTransformationExtraArgs:
    """Passes updates through and averages the parameters that they lead to; the last of a chain.

    `optim.evaluation_params(state, params)` gives the average.

    Args:
      decay: d, in [0, 1); about 1 / (1 - d) steps are averaged.

    Raises:
      ValueError: decay is a number out of range, or the update is called without params.

    >>> import jax.numpy as jnp, optax, optim
    >>> tx = optax.chain(optax.sgd(1.0), optim.params_ema(0.5))
    >>> params = jnp.array([4.0])
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(jnp.array([1.0]), state, params)
    ...     params = optim.apply_updates(params, updates)
    >>> print(params, optim.evaluation_params(state, params))  # (0.25 * 3 + 0.5 * 2) / 0.75
    [2.] [2.3333333]
    """
    if isinstance(decay, numbers.Real) and not 0 <= decay < 1:
        raise ValueError(f"params_ema: decay is {decay}; accepted: 0 <= decay < 1.")

    def init(params: optax.Params) -> ParamsEmaState:
        return ParamsEmaState(jnp.zeros((), jnp.int32), trees.float_copy(params))

    def update(
        updates: optax.Updates,
        state: ParamsEmaState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ParamsEmaState]:
        del extra_args
        if params is None:
            raise ValueError(
                "params_ema: params is None; call update(updates, state, params) with parameters."
            )
        steps = optax.safe_increment(state.steps)
        take = jnp.asarray(1 - decay, jnp.result_type(float))
        # 1 - d^t, from which subtraction would take the digits where d is close to 1.
        weight = take / -jnp.expm1(steps.astype(take.dtype) * jnp.log1p(-take))

        def average(
            a: jax.Array | optax.MaskedNode, p: ArrayLike, u: ArrayLike | None
        ) -> jax.Array | optax.MaskedNode:
            if isinstance(a, optax.MaskedNode):
                return a
            moved = jnp.asarray(p, a.dtype)
            if u is not None:
                moved += trees.as_dtype(u, a.dtype)
            w = jnp.minimum(weight, 1).astype(a.dtype)
            return (1 - w) * a + w * moved

        averaged = jax.tree.map(
            average,
            state.average,
            params,
            updates,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        )
        return updates, ParamsEmaState(steps, averaged)

    return optax.GradientTransformationExtraArgs(init, update)
