r"""An exponential moving average of the parameters, to be evaluated in their place.

With parameters :math:`p_t` after step t and decay :math:`d`::

    a_t = d a_{t-1} + (1 - d) p_t,    a_0 = 0
    served: a_t / (1 - d^t), and p_0 before the first step

The division makes it a weighted mean of :math:`p_1 .. p_t` from the first step on: without it, or
with :math:`a_0 = p_0`, the start would weigh :math:`d^t`.

*Differences.* The average takes the parameters as the update would leave them, in float32 at the
least: for bfloat16 parameters it is free of the rounding that `optim.apply_updates` does.

*Cost.* 4 bytes a parameter and one pass over the parameters a step.

*Reference.* Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992, for
averages; Kingma and Ba, Adam, 2015 (arXiv:1412.6980), section 3, for the division.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim import trees


class ParamsEmaState(NamedTuple):
    """State of `params_ema`."""

    steps: jax.Array  # (), int32, steps averaged
    decay: jax.Array  # (), float32 (float64 in x64 mode): d
    average: optax.Params  # like the parameters, float32 or wider: a

    def evaluation_params(self, params: optax.Params) -> optax.Params:
        """The average; `params`, the current parameters, before the first step."""
        weight = 1 - self.decay ** jnp.maximum(self.steps, 1).astype(self.decay.dtype)

        def serve(a: jax.Array, p: jax.Array) -> jax.Array:
            if isinstance(a, optax.MaskedNode):
                return a
            return jnp.where(self.steps > 0, a / weight.astype(a.dtype), p.astype(a.dtype))

        return jax.tree.map(
            serve, self.average, params, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
        )


def params_ema(decay: jax.typing.ArrayLike) -> optax.GradientTransformationExtraArgs:
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
    if isinstance(decay, (int, float)) and not 0 <= decay < 1:
        raise ValueError(f"params_ema: decay is {decay}; accepted: 0 <= decay < 1.")

    def init(params: optax.Params) -> ParamsEmaState:
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=trees.accumulator_dtype(p)), params)
        return ParamsEmaState(
            jnp.zeros((), jnp.int32), jnp.asarray(decay, jnp.result_type(float)), zeros
        )

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

        def average(a: jax.Array, p: jax.Array, u: jax.Array | None) -> jax.Array:
            moved = p.astype(a.dtype) if u is None else p.astype(a.dtype) + u.astype(a.dtype)
            weight = jnp.asarray(decay, a.dtype)
            return weight * a + (1 - weight) * moved

        averaged = jax.tree.map(average, state.average, params, updates)
        steps = optax.safe_increment(state.steps)
        return updates, ParamsEmaState(steps, state.decay, averaged)

    return optax.GradientTransformationExtraArgs(init, update)
