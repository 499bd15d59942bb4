"""Forward gradients: exact directional derivatives, times the direction.

The loss is differentiated with respect to the scalar size s of a probe, at zero, over n samples::

    c_j = d loss(params + s z_j) / ds / n = z_j' grad(loss) / n
    gradient = sum over j of c_j z_j

so that z is drawn where the weights are read, streamed a layer at a time.

*Differences.* From ZO-Bench's code, whose tangent is a copy of the parameters: none in what is
computed. z is +-1 by default; there, normal.

*Cost.* A pass of values and tangents a sample, which `evaluations` counts as two losses.

*Reference.* Baydin et al., Gradients without Backpropagation, 2022 (arXiv:2202.08587); Zhang et
al., Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning, 2024
(arXiv:2402.11592), ZO-Bench/ZO-LLM@bf210fa, zo-bench/trainer.py.
"""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from zeroth_order.directions import Direction, perturb
from zeroth_order.estimates import Estimate, Estimator, LossFn, promoted, scale_dtype
from zeroth_order.gradients import SeededGradient
from zeroth_order.streaming import stream


def forward_gradient(along: Direction, *, samples: int = 1, streamed: bool = False) -> Estimator:
    """The estimator with exact directional derivatives, c_j = z_j' grad(loss) / n.

    `loss_fn` gives a scalar or the losses of all examples, and has to be differentiable forward.

    Args:
      along: the direction.
      samples: directions, n.
      streamed: as `spsa` takes it.

    Raises:
      ValueError: samples is below 1; where it is called, as `spsa`.

    >>> import jax.numpy as jnp, zeroth_order
    >>> estimator = zeroth_order.forward_gradient(zeroth_order.direction())
    >>> found = estimator(lambda p: jnp.sum(p["w"] ** 2), {"w": jnp.array([1.0, 2.0])}, 3)
    >>> print(found.value, found.gradient.coefficients, found.evaluations)
    5.0 [-2.] 2
    """
    trees.check_at_least("forward_gradient", 1, samples=samples)

    def estimate(
        loss_fn: LossFn, params: optax.Params, seed: ArrayLike, step: ArrayLike = 0
    ) -> Estimate:
        trees.check_at_least("forward_gradient", 0, seed=seed)
        first, probe = jnp.asarray(seed, jnp.uint32), stream if streamed else perturb
        zero = jnp.zeros((), scale_dtype(params))

        def sample(j: jax.Array) -> tuple[jax.Array, jax.Array]:
            def loss(scale: jax.Array) -> jax.Array:
                found = loss_fn(probe(along, params, first + j, scale))
                return jnp.mean(promoted("forward_gradient", found))

            return jax.jvp(loss, (zero,), (jnp.ones_like(zero),))

        values, slopes = jax.lax.map(sample, jnp.arange(samples, dtype=jnp.uint32))
        gradient = SeededGradient(first, slopes / samples)
        return Estimate(jnp.mean(values), gradient, jnp.int32(2 * samples))

    return estimate
