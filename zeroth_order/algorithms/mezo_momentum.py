"""MeZO with momentum and no buffer: the moment is drawn again from the last steps' seeds.

With the estimates g_s = sum over j of c_{s,j} z_{s,j} of the last `window` steps::

    m_t = sum over s from t - window + 1 to t of momentum^(t - s) g_s
    params = params - rate (m_t + weight_decay params)

which is momentum's m = momentum m + g for the first `window` steps, and afterwards without a rest
of momentum^window.

*Differences.* From the paper, which says that the history can be recomputed and recomputes all of
it: the window ends it, so that a step's cost does not grow. Its code keeps the buffer; that form is
`zeroth_order.zo_optimizer` with `optax.sgd(rate, momentum)`.

*Cost.* The estimator's losses; one pass over the parameters with `window` draws a weight and
sample. State: 4 + 4 samples bytes a step of the window.

*Reference.* Malladi et al., Fine-Tuning Language Models with Just Forward Passes, 2023
(arXiv:2305.17333), Appendix B.2.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.typing import ArrayLike

from optim import trees
from zeroth_order.descent import Algorithm, DescentInfo, after, draw, start
from zeroth_order.directions import Direction
from zeroth_order.estimates import Estimator, scale_dtype
from zeroth_order.gradients import apply
from zeroth_order.window import WindowState, empty_window, weights, with_newest


def mezo_momentum(
    loss_fn: Callable[[optax.Params, Any], jax.Array],
    learning_rate: optax.ScalarOrSchedule,
    estimator: Estimator,
    along: Direction,
    *,
    window: int,
    momentum: ArrayLike = 0.9,
    samples: int = 1,
    weight_decay: float = 0.0,
) -> Algorithm:
    """MeZO with momentum by truncated replay, as a traced algorithm that owns the parameters.

    Args:
      loss_fn: (params, batch) -> losses, as the estimator takes them.
      learning_rate: a number or a schedule.
      estimator: such as `zeroth_order.spsa(along)`.
      along: the direction through which the estimator's gradients are read.
      window: steps that are remembered; momentum^window of the moment is lost.
      momentum: 0 <= momentum < 1.
      samples: of the estimator.
      weight_decay: coefficient of the parameters.

    Raises:
      ValueError: window or samples is below 1, momentum outside [0, 1), weight_decay negative;
        where it steps, the estimator has other samples.

    >>> import jax, jax.numpy as jnp, zeroth_order
    >>> def loss(params, batch):
    ...     return jnp.square(params["w"] - 3)
    >>> along = zeroth_order.direction()
    >>> make = zeroth_order.mezo_momentum
    >>> algorithm = make(loss, 0.1, zeroth_order.spsa(along), along, window=20)
    >>> state = algorithm.init({"w": jnp.zeros(())}, jax.random.key(0))
    >>> state, _ = algorithm.update(*algorithm.update(state, None)[:1], None)
    >>> print(f"{state.params['w']:.2f}")  # 0.6, and then 0.1 (0.9 6 + 4.8) more
    1.62
    """
    trees.check_at_least("mezo_momentum", 1, window=window, samples=samples)
    trees.check_at_least("mezo_momentum", 0, weight_decay=weight_decay)
    trees.check_fractions("mezo_momentum", momentum=momentum)

    def init(params: optax.Params, key: jax.Array) -> WindowState:
        descent = start("mezo_momentum", along, params, key)
        return empty_window(descent, window, samples, scale_dtype(params))

    def update(state: WindowState, batch: Any) -> tuple[WindowState, DescentInfo]:
        params, step = state.params, state.descent.step
        seed = draw("mezo_momentum", state.descent)
        found = estimator(lambda p: loss_fn(p, batch), params, seed, step)
        known = with_newest(state, found.gradient)
        dtype = known.coefficients.dtype
        by = weights(momentum, step, window, dtype)[:, None]
        rate = trees.value_at(learning_rate, step, dtype)
        moment = known._replace(coefficients=by * known.coefficients)
        params = apply(along, moment, params, rate=rate, decay=weight_decay, stochastic=True)
        info = DescentInfo(found.value, found.gradient, rate, found.evaluations)
        return WindowState(after(state.descent, params), *known), info

    return Algorithm(init, update)
