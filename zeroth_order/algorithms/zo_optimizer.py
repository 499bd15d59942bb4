"""Any optax transformation, stepped by estimates: ZO-Bench's optimizers by composition.

The estimate is written out and handed to the transformation, as a gradient is::

    g = sum over j of c_j z_j
    u, opt = tx.update(g, opt, params)
    params = params + u

================== ==================================================================
ZO-SGD             `zeroth_order.mezo`, which needs no gradient written out
ZO-SGD-MMT         `optax.sgd(rate, momentum=0.9)`
ZO-SGD-Sign, paper `optax.sign_sgd(rate)`: sign(c z)
ZO-SGD-Sign, code  `zeroth_order.mezo` with `zeroth_order.signed(estimator)`: sign(c) z
ZO-Adam            `optax.adam(rate)`
MeZO-Adam          `optax.adamw(rate, weight_decay=...)`
================== ==================================================================

*Differences.* From ZO-Bench's code: (1) its runs of Sign and Cons leave the optimizer at its
default, AdamW; here it is what is said. (2) Moments are in the dtype that tx keeps them in, float32
for float32 gradients, which these are; there, of half precision for such parameters, where Adam's
epsilon of 1e-8 is 0.

*Cost.* The estimator's losses; a gradient and the state of tx, in memory.

*Reference.* Zhang et al., Revisiting Zeroth-Order Optimization for Memory-Efficient LLM
Fine-Tuning, 2024 (arXiv:2402.11592), ZO-Bench/ZO-LLM@bf210fa, zo-bench/trainer.py; Malladi et al.,
Fine-Tuning Language Models with Just Forward Passes, 2023 (arXiv:2305.17333), Appendix B.2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim.quantized.stochastic_rounding import apply_updates
from zeroth_order import noise
from zeroth_order.descent import Algorithm, DescentInfo, DescentState, after, draw, start
from zeroth_order.directions import Direction
from zeroth_order.estimates import Estimator
from zeroth_order.gradients import materialize


class ZoOptimizerState(NamedTuple):
    """Parameters and the state of the transformation."""

    descent: DescentState
    optimizer: optax.OptState

    @property
    def params(self) -> optax.Params:
        """The parameters."""
        return self.descent.params


def zo_optimizer(
    loss_fn: Callable[[optax.Params, Any], jax.Array],
    tx: optax.GradientTransformation,
    estimator: Estimator,
    along: Direction,
) -> Algorithm:
    """A transformation stepped by estimates, as a traced algorithm that owns the parameters.

    bfloat16 parameters are rounded stochastically. Its info has the learning rate 1, since that is
    inside of tx.

    Args:
      loss_fn: (params, batch) -> losses, as the estimator takes them.
      tx: such as `optax.adam(1e-3)`.
      estimator: such as `zeroth_order.spsa(along)`.
      along: the direction through which the estimator's gradients are read.

    >>> import jax, jax.numpy as jnp, optax, zeroth_order
    >>> def loss(params, batch):
    ...     return jnp.square(params["w"] - batch)
    >>> along = zeroth_order.direction()
    >>> tx = optax.sign_sgd(0.25)
    >>> algorithm = zeroth_order.zo_optimizer(loss, tx, zeroth_order.spsa(along), along)
    >>> state = algorithm.init({"w": jnp.ones(())}, jax.random.key(0))
    >>> state, info = jax.jit(algorithm.update)(state, jnp.array([0.0, 2.0, 3.5]))
    >>> print(state.params["w"], info.evaluations)
    1.25 2
    """

    def init(params: optax.Params, key: jax.Array) -> ZoOptimizerState:
        descent = start("zo_optimizer", along, params, key)
        return ZoOptimizerState(descent, tx.init(descent.params))

    def update(state: ZoOptimizerState, batch: Any) -> tuple[ZoOptimizerState, DescentInfo]:
        params = state.params
        seed = draw("zo_optimizer", state.descent)
        found = estimator(lambda p: loss_fn(p, batch), params, seed, state.descent.step)
        gradient = materialize(along, found.gradient, params)
        updates, optimizer = tx.update(gradient, state.optimizer, params)
        key = jax.random.key(noise.purpose(seed, "rounding"))
        params = apply_updates(params, updates, key=key)
        rate = jnp.ones_like(found.value)
        info = DescentInfo(found.value, found.gradient, rate, found.evaluations)
        return ZoOptimizerState(after(state.descent, params), optimizer), info

    return Algorithm(init, update)
