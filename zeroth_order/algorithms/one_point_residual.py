"""One-point residual feedback: one loss a step, and that of the step before.

    l_t = mean loss(params_t + eps z_t; batch_t)
    c_t = (l_t - l_{t-1}) / eps
    params_{t+1} = params_t - rate_t c_t z_t

The first step has no loss before it and only finds one: c_0 = 0.

*Differences.* From MeZO's Definition 8, whose printed estimate leaves out the factor z_t: it is
here.

*Cost.* One loss a step, at the price of a variance that does not vanish with eps: l_t - l_{t-1} is
of other noise, of other batches, and of the step between.

*Reference.* Zhang et al., A New One-Point Residual-Feedback Oracle For Black-Box Learning and
Control, 2020 (arXiv:2006.10820); Malladi et al., Fine-Tuning Language Models with Just Forward
Passes, 2023 (arXiv:2305.17333), Definition 8 and Table 11.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from zeroth_order.descent import Algorithm, DescentInfo, DescentState, after, draw, start
from zeroth_order.directions import Direction, perturb
from zeroth_order.estimates import promoted, scale_dtype
from zeroth_order.gradients import SeededGradient, apply
from zeroth_order.streaming import stream


class OnePointState(NamedTuple):
    """Parameters and the loss that the next one is compared with."""

    descent: DescentState
    previous_loss: jax.Array  # (), float32 or wider

    @property
    def params(self) -> optax.Params:
        """The parameters."""
        return self.descent.params


def one_point_residual(
    loss_fn: Callable[[optax.Params, Any], jax.Array],
    learning_rate: optax.ScalarOrSchedule,
    along: Direction,
    *,
    epsilon: ArrayLike = 1e-3,
    streamed: bool = False,
) -> Algorithm:
    """One-point residual feedback as a traced algorithm, which owns the parameters.

    Its info holds l_t as the loss.

    Args:
      loss_fn: (params, batch) -> losses, as `zeroth_order.spsa` takes them.
      learning_rate: a number or a schedule.
      along: the direction.
      epsilon: size of the probe.
      streamed: as `zeroth_order.spsa` takes it.

    Raises:
      ValueError: epsilon is not positive.

    >>> import jax, jax.numpy as jnp, zeroth_order
    >>> def loss(params, batch):
    ...     return jnp.square(params["w"] - 3)
    >>> along = zeroth_order.direction()
    >>> algorithm = zeroth_order.one_point_residual(loss, 0.02, along, epsilon=0.5)
    >>> state = algorithm.init({"w": jnp.zeros(())}, jax.random.key(0))
    >>> steps = jax.jit(lambda s: jax.lax.scan(algorithm.update, s, jnp.arange(200)))
    >>> print(abs(steps(state)[0].params["w"] - 3) < 0.5)
    True
    """
    trees.check_positive("one_point_residual", epsilon=epsilon)
    probe = stream if streamed else perturb

    def init(params: optax.Params, key: jax.Array) -> OnePointState:
        descent = start("one_point_residual", along, params, key)
        return OnePointState(descent, jnp.zeros((), scale_dtype(params)))

    def update(state: OnePointState, batch: Any) -> tuple[OnePointState, DescentInfo]:
        params, step = state.params, state.descent.step
        seed = draw("one_point_residual", state.descent)
        eps = jnp.asarray(epsilon, scale_dtype(params))
        losses = promoted("one_point_residual", loss_fn(probe(along, params, seed, eps), batch))
        loss = jnp.mean(losses).astype(eps.dtype)
        slope = jnp.where(step == 0, 0, (loss - state.previous_loss) / eps)
        gradient = SeededGradient(seed, slope[None])
        rate = trees.value_at(learning_rate, step, slope.dtype)
        params = apply(along, gradient, params, rate=rate, stochastic=True)
        info = DescentInfo(loss, gradient, rate, jnp.int32(1))
        return OnePointState(after(state.descent, params), loss), info

    return Algorithm(init, update)
