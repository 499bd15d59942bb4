"""SPSA: a directional derivative from two losses, times the direction.

With z_j = z(seed + j) along the direction, over n samples::

    c_j = mean over examples of (loss(params + eps z_j) - loss(params - eps z_j)) / (2 n eps)
    gradient = sum over j of c_j z_j

One-sided, c_j = mean of (loss(params + eps z_j) - loss(params)) / (n eps). With `growth_steps` the
samples grow in proportion to the step: n = max(1, floor(samples step / growth_steps)), at most
`samples`; what is not taken is not computed, and has the coefficient 0.

*Differences.* From MeZO's code: (1) nothing is restored: each side is made from the parameters that
are kept, so that they do not drift by rounding. (2) Losses are promoted to float32 and subtracted
example by example, before their mean is taken. (3) The value is the mean of the two sides; there,
that of the positive one. (4) All samples of a step see one batch; in the paper, each its own.

*Cost.* 2 n losses, or n + 1 one-sided; the temporaries of one loss and, streamed, of one layer's
perturbed weights, else of a copy of the parameters. The sides run one after the other, in a loop
that is compiled once; `vectorized`, all at once, with activations for each.

*Reference.* Spall, Multivariate stochastic approximation, 1992; Malladi et al., Fine-Tuning
Language Models with Just Forward Passes, 2023 (arXiv:2305.17333), Definition 1;
princeton-nlp/MeZO@552cb1b, large_models/trainer.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from zeroth_order.directions import Direction, perturb
from zeroth_order.estimates import Estimate, Estimator, LossFn, promoted, scale_dtype
from zeroth_order.gradients import SeededGradient
from zeroth_order.streaming import stream


def spsa(
    along: Direction,
    *,
    epsilon: ArrayLike = 1e-3,
    samples: int = 1,
    growth_steps: int | None = None,
    one_sided: bool = False,
    streamed: bool = False,
    vectorized: bool = False,
) -> Estimator:
    """The estimator (loss_fn, params, seed) -> `Estimate`.

    `loss_fn` gives a scalar or, better, the losses of all examples, (examples,); it need not be
    differentiable. `seed` is an integer, of which the next `samples` ones are used.

    Args:
      along: the direction to probe.
      epsilon: size of the probe, eps; 1e-3 is MeZO's.
      samples: directions, n.
      growth_steps: the step at which all samples are taken, after linear growth; None: always.
      one_sided: take the loss at the parameters instead of the negative side.
      streamed: hand the loss `zeroth_order.stream`ed parameters, for models that read them.
      vectorized: evaluate all sides and samples at once, by `jax.vmap`: for small models, and for
        low-rank directions of models that multiply by `zeroth_order.product`.

    Raises:
      ValueError: epsilon is not positive, samples or growth_steps is below 1; where it is called,
        the loss is neither a scalar nor a vector of floats, or the seed is negative.

    >>> import jax.numpy as jnp, zeroth_order
    >>> estimator = zeroth_order.spsa(zeroth_order.direction(), epsilon=0.5)
    >>> found = estimator(lambda p: jnp.sum(p["w"] * jnp.arange(4.0)), {"w": jnp.ones(4)}, 3)
    >>> print(found.value, found.gradient.coefficients, found.evaluations)
    6.0 [0.] 2
    """
    trees.check_positive("spsa", epsilon=epsilon)
    trees.check_at_least("spsa", 1, samples=samples)
    if growth_steps is not None:
        trees.check_at_least("spsa", 1, growth_steps=growth_steps)
    each: Callable[..., Any] = _all_at_once if vectorized else jax.lax.map

    def estimate(
        loss_fn: LossFn, params: optax.Params, seed: ArrayLike, step: ArrayLike = 0
    ) -> Estimate:
        trees.check_at_least("spsa", 0, seed=seed)
        first, probe = jnp.asarray(seed, jnp.uint32), stream if streamed else perturb

        def losses(j: jax.Array, scale: jax.Array) -> jax.Array:
            return promoted("spsa", loss_fn(probe(along, params, first + j, scale)))

        eps = jnp.asarray(epsilon, scale_dtype(params))
        sides = eps[None] if one_sided else jnp.stack([eps, -eps])
        here = promoted("spsa", loss_fn(params)) if one_sided else None

        def sample(j: jax.Array) -> tuple[jax.Array, jax.Array]:
            found = each(lambda scale: losses(j, scale), sides)
            if here is not None:
                return jnp.mean(found[0] - here) / eps, jnp.mean(here)
            return jnp.mean(found[0] - found[1]) / (2 * eps), jnp.mean(found)

        taken = _taken(samples, growth_steps, step)

        def wanted(j: jax.Array) -> tuple[jax.Array, jax.Array]:
            zeros = (jnp.zeros_like(eps), jnp.zeros_like(eps))
            return jax.lax.cond(j < taken, sample, lambda j: zeros, j)

        numbers = jnp.arange(samples, dtype=jnp.uint32)
        slopes, values = each(sample if growth_steps is None else wanted, numbers)
        count = (taken + 1 if one_sided else 2 * taken).astype(jnp.int32)
        n = taken.astype(slopes.dtype)
        return Estimate(jnp.sum(values) / n, SeededGradient(first, slopes / n), count)

    return estimate


def _taken(samples: int, growth_steps: int | None, step: ArrayLike) -> jax.Array:
    """How many samples this step has, (), uint32."""
    if growth_steps is None:
        return jnp.uint32(samples)
    grown = samples * jnp.asarray(step, jnp.int32) // growth_steps
    return jnp.clip(grown, 1, samples).astype(jnp.uint32)


def _all_at_once(rule: Callable[..., Any], inputs: jax.Array) -> Any:
    return jax.vmap(rule)(inputs)
