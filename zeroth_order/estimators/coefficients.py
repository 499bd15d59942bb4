"""Estimates whose coefficients are changed: their signs, clipped, or dropped where not finite.

    signed:   c_j -> sign(c_j)
    clipped:  c_j -> min(max(c_j, -limit), limit)
    finite:   c_j -> c_j where all are finite, else 0 for all: the step is skipped

*Differences.* The clipped estimate is biased wherever it clips; QZO's Theorem 1 says otherwise. It
is the derivatives that are clipped and hence n c_j, so that the limit does not depend on n.

*Cost.* None.

*Reference.* Signs: Zhang et al., Revisiting Zeroth-Order Optimization for Memory-Efficient LLM
Fine-Tuning, 2024 (arXiv:2402.11592), ZO-Bench/ZO-LLM@bf210fa, zo-bench/trainer.py, whose update is
sign(c) z; sign(c z) of the paper is `zeroth_order.zo_optimizer` with `optax.sign_sgd`. Clipping:
Shang et al., Fine-tuning Quantized Neural Networks with Zeroth-order Optimization, 2025
(arXiv:2505.13430).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from zeroth_order.estimates import Estimate, Estimator, LossFn


def signed(estimator: Estimator) -> Estimator:
    """The estimator with the signs of its coefficients.

    >>> import jax.numpy as jnp, zeroth_order
    >>> estimator = zeroth_order.signed(zeroth_order.spsa(zeroth_order.direction()))
    >>> found = estimator(lambda p: 7 * p["w"][0], {"w": jnp.zeros(1)}, 3)
    >>> print(abs(found.gradient.coefficients))
    [1.]
    """
    return _changed(estimator, jnp.sign)


def clipped(estimator: Estimator, limit: ArrayLike) -> Estimator:
    """The estimator with its directional derivatives between -limit and limit.

    Args:
      estimator: such as `zeroth_order.spsa(along)`.
      limit: QZO's is 100.

    Raises:
      ValueError: limit is not positive.

    >>> import jax.numpy as jnp, zeroth_order
    >>> estimator = zeroth_order.clipped(zeroth_order.spsa(zeroth_order.direction()), 2.0)
    >>> found = estimator(lambda p: 7 * p["w"][0], {"w": jnp.zeros(1)}, 3)
    >>> print(abs(found.gradient.coefficients))
    [2.]
    """
    trees.check_positive("clipped", limit=limit)

    def rule(coefficients: jax.Array) -> jax.Array:
        most = jnp.asarray(limit, coefficients.dtype) / coefficients.size
        return jnp.clip(coefficients, -most, most)

    return _changed(estimator, rule)


def finite(estimator: Estimator) -> Estimator:
    """The estimator whose gradient is 0 where a loss was infinite or not a number.

    >>> import jax.numpy as jnp, zeroth_order
    >>> estimator = zeroth_order.finite(zeroth_order.spsa(zeroth_order.direction()))
    >>> found = estimator(lambda p: jnp.log(p["w"][0]), {"w": -jnp.ones(1)}, 3)
    >>> print(found.value, found.gradient.coefficients)
    nan [0.]
    """

    def rule(coefficients: jax.Array) -> jax.Array:
        return jnp.where(jnp.isfinite(coefficients).all(), coefficients, 0)

    return _changed(estimator, rule)


def _changed(estimator: Estimator, rule: Callable[[jax.Array], jax.Array]) -> Estimator:
    def estimate(
        loss_fn: LossFn, params: optax.Params, seed: ArrayLike, step: ArrayLike = 0
    ) -> Estimate:
        found = estimator(loss_fn, params, seed, step)
        coefficients = rule(found.gradient.coefficients)
        return found._replace(gradient=found.gradient._replace(coefficients=coefficients))

    return estimate
