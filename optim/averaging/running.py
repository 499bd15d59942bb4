"""Running averages of the parameters, to be evaluated in their place: exponential, and of a tail.

With parameters `p` after step t = 1, 2, ... the average `a` moves by::

    a = (1 - w) a + w p
    w = (1 - d) / (1 - d^t)         params_ema, of decay d
    w = 1 / max(t - start, 1)       params_tail_average

The first exponential step has w = 1, so that `a` is the mean of the parameters after steps 1 to t
with weights in the proportion d^(t-1) : ... : d : 1. It equals the average that starts at 0 and is
divided by 1 - d^t when it is served, but is itself in the state, and in float32 it keeps its digits
where d is close to 1. The average of a tail is the plain mean of the parameters after steps
start + 1 to t, and up to there the last parameters themselves; start = 0 averages all of them.
Before the first step `a` is a copy of the parameters.

*Differences.* Averages that start at the first parameters and have w = 1 - d throughout weigh those
parameters d^t. The average takes the parameters as the update would leave them, in float32 at the
least: for bfloat16 parameters it is free of the rounding that `optim.apply_updates` does. Integer
parameters are not averaged but served as they are.

*Cost.* 4 bytes a parameter and one pass over the parameters a step.

*Reference.* Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992, and
Ruppert, Efficient Estimations from a Slowly Convergent Robbins-Monro Process, 1988, for averages;
Kingma and Ba, Adam, 2015 (arXiv:1412.6980), section 3, for the division.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


class ParamsEmaState(NamedTuple):
    """State of `params_ema`."""

    steps: jax.Array  # (), int32, steps made: t
    average: optax.Params  # like the parameters, float32 or wider, without integer leaves: a

    def evaluation_params(self, params: optax.Params) -> optax.Params:
        """The average."""
        del params
        return self.average


class ParamsTailAverageState(NamedTuple):
    """State of `params_tail_average`, a type of its own: `optim.describe` names methods by it."""

    steps: jax.Array  # (), int32, steps made: t
    average: optax.Params  # like the parameters, float32 or wider, without integer leaves: a

    def evaluation_params(self, params: optax.Params) -> optax.Params:
        """The average."""
        del params
        return self.average


_State = ParamsEmaState | ParamsTailAverageState


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

    def weight(steps: jax.Array) -> jax.Array:
        take = jnp.asarray(1 - decay, jnp.result_type(float))
        # 1 - d^t, from which subtraction would take the digits where d is close to 1.
        return jnp.minimum(take / -jnp.expm1(steps.astype(take.dtype) * jnp.log1p(-take)), 1)

    return _running_average("params_ema", ParamsEmaState, weight)


def params_tail_average(start: ArrayLike) -> optax.GradientTransformationExtraArgs:
    """Passes updates through and averages the parameters after step `start`; the last of a chain.

    `optim.evaluation_params(state, params)` gives the average, and up to step `start`, and one
    step after it, the parameters.

    Args:
      start: steps that are left out, at least 0; half of the run is usual, 0 is Polyak's and
        Ruppert's average of all.

    Raises:
      ValueError: start is a negative number, or the update is called without params.

    >>> import jax.numpy as jnp, optax, optim
    >>> tx = optax.chain(optax.sgd(1.0), optim.params_tail_average(1))
    >>> params = jnp.array([4.0])
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...     updates, state = tx.update(jnp.array([1.0]), state, params)
    ...     params = optim.apply_updates(params, updates)
    >>> print(params, optim.evaluation_params(state, params))  # (2 + 1) / 2
    [1.] [1.5]
    """
    trees.check_at_least("params_tail_average", 0, start=start)

    def weight(steps: jax.Array) -> jax.Array:
        return 1 / jnp.maximum(steps - start, 1).astype(jnp.result_type(float))

    return _running_average("params_tail_average", ParamsTailAverageState, weight)


def _running_average(
    method: str, state_of: type[_State], weight: Callable[[jax.Array], jax.Array]
) -> optax.GradientTransformationExtraArgs:
    """`weight` gives the w of step t."""

    def init(params: optax.Params) -> _State:
        return state_of(jnp.zeros((), jnp.int32), trees.float_copy(params))

    def update(
        updates: optax.Updates,
        state: _State,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, _State]:
        del extra_args
        steps = optax.safe_increment(state.steps)
        taken = weight(steps)

        def average(a: jax.Array, moved: jax.Array) -> jax.Array:
            w = taken.astype(a.dtype)
            return (1 - w) * a + w * moved

        moved = trees.moved_floats(method, params, updates)
        averaged = jax.tree.map(average, state.average, moved)
        return updates, state_of(steps, averaged)

    return optax.GradientTransformationExtraArgs(init, update)
