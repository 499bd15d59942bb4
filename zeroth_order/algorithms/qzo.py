"""QZO: a quantised model, tuned by the scales of its groups alone.

With W = scale * code for integer codes that stay, and the scales the only parameters::

    c = (loss(scale + eps z) - loss(scale - eps z)) / (2 eps)
    c = min(max(c, -C), C)
    scale = max(scale - rate c z, least)

A scale may be about as large as the probe's eps of 1e-3; a probe in proportion to the scales is
`along=zeroth_order.scaled(along, sizes)`, with their mean size for each leaf or layer.

*Differences.* (1) The clipped estimate is biased where it clips, which the paper's Theorem 1
denies. (2) `least` is the code's 1e-7; the paper's is 0, a scale at which a group is lost to the
codes. (3) z is
+-1 by default; there, normal.

*Cost.* MeZO's, for the scales alone: 1/group of the weights.

*Reference.* Shang et al., Fine-tuning Quantized Neural Networks with Zeroth-order Optimization,
2025 (arXiv:2505.13430), Algorithm 1; maifoundations/QZO@f843ddc, large_language_models/trainer.py.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from zeroth_order.descent import Algorithm, DescentInfo, DescentState, after, draw, start
from zeroth_order.directions import Direction, map_directed
from zeroth_order.estimates import Estimator
from zeroth_order.estimators.coefficients import clipped
from zeroth_order.gradients import apply


def qzo(
    loss_fn: Callable[[optax.Params, Any], jax.Array],
    learning_rate: optax.ScalarOrSchedule,
    estimator: Estimator,
    along: Direction,
    *,
    clip: ArrayLike = 100.0,
    least: float = 1e-7,
) -> Algorithm:
    """QZO as a traced algorithm, which owns the parameters, codes included.

    Args:
      loss_fn: (params, batch) -> losses, as the estimator takes them.
      learning_rate: a number or a schedule.
      estimator: such as `zeroth_order.spsa(along)`, whose derivatives are clipped here.
      along: a direction of the scales alone, such as
        `zeroth_order.direction(select={".*/scale": True})`. Integer codes stay in any case.
      clip: bound C of the directional derivative.
      least: bound of the scales from below.

    Raises:
      ValueError: clip or least is not positive.

    >>> import jax, jax.numpy as jnp, zeroth_order
    >>> def loss(params, batch):
    ...     return jnp.square(params["scale"] * params["code"] - batch)
    >>> along = zeroth_order.direction(select={"scale": True})
    >>> algorithm = zeroth_order.qzo(loss, 0.01, zeroth_order.spsa(along), along)
    >>> params = {"code": jnp.int8(4), "scale": jnp.float32(0.5)}
    >>> state, info = algorithm.update(algorithm.init(params, jax.random.key(0)), jnp.array([3.0]))
    >>> print(f"{state.params['scale']:.2f}", state.params["code"])
    0.58 4
    """
    trees.check_positive("qzo", clip=clip, least=least)
    bounded = clipped(estimator, clip)

    def update(state: DescentState, batch: Any) -> tuple[DescentState, DescentInfo]:
        found = bounded(lambda p: loss_fn(p, batch), state.params, draw("qzo", state), state.step)
        rate = trees.value_at(learning_rate, state.step, found.gradient.coefficients.dtype)
        moved = apply(along, found.gradient, state.params, rate=rate, stochastic=True)

        def above(leaf: Any, value: Any) -> Any:
            return value if leaf is None else jnp.maximum(value, jnp.asarray(least, value.dtype))

        params = map_directed(above, along(moved), moved)
        info = DescentInfo(found.value, found.gradient, rate, found.evaluations)
        return after(state, params), info

    return Algorithm(functools.partial(start, "qzo", along), update)
