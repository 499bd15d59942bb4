"""MeZO with Adam and no moments: both are drawn again from the last steps' seeds.

With the estimates g_s of the last `window` steps, w_a = b1^a and u_a = b2^a of their age a::

    m = (sum over s of w g_s) / (sum of w),   v = (sum over s of u g_s^2) / (sum of u)
    params = params - rate (m / (sqrt(v) + eps) + weight_decay params)

which is Adam with its corrections of bias for the first `window` steps.

*Differences.* From the paper, which recomputes the whole history: the window ends it. Its code
keeps the moments; that form is `zeroth_order.zo_optimizer` with `optax.adamw`.

*Cost.* The estimator's losses; one pass over the parameters with `window` draws a weight and
sample, and the two moments of one leaf in memory. State: 4 + 4 samples bytes a step of the window.

*Reference.* Malladi et al., Fine-Tuning Language Models with Just Forward Passes, 2023
(arXiv:2305.17333), Appendix B.2; princeton-nlp/MeZO@552cb1b, medium_models/src/trainer.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from zeroth_order.descent import Algorithm, DescentInfo, after, draw, start
from zeroth_order.directions import Direction, Leaf, map_directed
from zeroth_order.estimates import Estimator, scale_dtype
from zeroth_order.gradients import SeededGradient, rounded, written
from zeroth_order.window import WindowState, empty_window, weights, with_newest


def mezo_adam(
    loss_fn: Callable[[optax.Params, Any], jax.Array],
    learning_rate: optax.ScalarOrSchedule,
    estimator: Estimator,
    along: Direction,
    *,
    window: int,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    samples: int = 1,
    weight_decay: float = 0.0,
) -> Algorithm:
    """MeZO with Adam by truncated replay, as a traced algorithm that owns the parameters.

    Args:
      loss_fn: (params, batch) -> losses, as the estimator takes them.
      learning_rate: a number or a schedule.
      estimator: such as `zeroth_order.spsa(along)`.
      along: the direction through which the estimator's gradients are read.
      window: steps that are remembered.
      b1, b2: decay of the first and second moment.
      eps: added to the root of the second moment.
      samples: of the estimator.
      weight_decay: coefficient of the parameters.

    Raises:
      ValueError: window or samples is below 1, a decay outside [0, 1), weight_decay negative; where
        it steps, the estimator has other samples.

    >>> import jax, jax.numpy as jnp, zeroth_order
    >>> def loss(params, batch):
    ...     return jnp.square(params["w"] - 3)
    >>> along = zeroth_order.direction()
    >>> make = zeroth_order.mezo_adam
    >>> algorithm = make(loss, 0.1, zeroth_order.spsa(along), along, window=20)
    >>> state = algorithm.init({"w": jnp.zeros(())}, jax.random.key(0))
    >>> state, info = algorithm.update(state, None)
    >>> print(f"{state.params['w']:.2f}")
    0.10
    """
    trees.check_at_least("mezo_adam", 1, window=window, samples=samples)
    trees.check_at_least("mezo_adam", 0, weight_decay=weight_decay)
    trees.check_fractions("mezo_adam", b1=b1, b2=b2)

    def init(params: optax.Params, key: jax.Array) -> WindowState:
        descent = start("mezo_adam", along, params, key)
        return empty_window(descent, window, samples, scale_dtype(params))

    def update(state: WindowState, batch: Any) -> tuple[WindowState, DescentInfo]:
        params, step = state.params, state.descent.step
        seed = draw("mezo_adam", state.descent)
        found = estimator(lambda p: loss_fn(p, batch), params, seed, step)
        known = with_newest(state, found.gradient)
        dtype = known.coefficients.dtype
        by = [weights(decay, step, window, dtype) for decay in (b1, b2)]
        rate = trees.value_at(learning_rate, step, dtype)

        def one(leaf: Leaf | None, value: Any) -> Any:
            if leaf is None:
                return value
            m, v = _moments(leaf, value, known, *(w / w.sum() for w in by))
            wide = value.astype(m.dtype)
            step = m / (jnp.sqrt(v) + eps) + weight_decay * wide
            return rounded(leaf, value, wide - rate.astype(m.dtype) * step, seed)

        params = map_directed(one, along(params), params)
        info = DescentInfo(found.value, found.gradient, rate, found.evaluations)
        return WindowState(after(state.descent, params), *known), info

    return Algorithm(init, update)


def _moments(
    leaf: Leaf, value: jax.Array, known: SeededGradient, first: jax.Array, second: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The weighted means of the estimates and of their squares, like the value."""

    def add(s: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        g = written(leaf, value, SeededGradient(known.seed[s], known.coefficients[s]))
        weight, weight_of_square = first[s].astype(g.dtype), second[s].astype(g.dtype)
        return sums[0] + weight * g, sums[1] + weight_of_square * jnp.square(g)

    zeros = jnp.zeros(value.shape, trees.accumulator_dtype(value))
    return jax.lax.fori_loop(0, first.size, add, (zeros, zeros))
