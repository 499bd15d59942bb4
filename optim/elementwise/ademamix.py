"""AdEMAMix: Adam with a second, much slower momentum.

With gradient `g`, fast and slow momentum `m1` and `m2` and second moment `v` (0 at the start),
parameters `p`, rate `lr` and decay `wd`, step t = 1, 2, ... is::

    m1 = b1 m1 + (1 - b1) g
    m2 = b3 m2 + (1 - b3) g
    v = b2 v + (1 - b2) g^2
    u = (m1 / (1 - b1^t) + alpha m2) / (sqrt(v) / sqrt(1 - b2^t) + eps)
    p = p - lr (u + wd p)

The slow momentum is not corrected for its start: it is meant to fill slowly. `alpha` and `b3` warm
up by `optim.ademamix_alpha_schedule` and `optim.ademamix_b3_schedule`.

*Differences.* From the authors' code: with b1 = 0 they store no fast momentum, here it is stored.
From `optax.contrib.ademamix`: alpha is 2 by default, as in the authors' code (5 there), the second
moment stays float32 where `mu_dtype` is narrower, and moments and arithmetic are float32 for
bfloat16 parameters. In float32, a schedule's value 0.9999 of b3 holds 1 - b3 to three digits; a
number keeps them all. The authors' default rate is 1e-3; here, as in optax, it has to be given.

*Cost.* Three moments: 12 bytes a parameter, 8 with `mu_dtype="bfloat16"`. No extra pass.

*Reference.* Pagliardini et al., The AdEMAMix Optimizer: Better, Faster, Older, 2024
(arXiv:2409.03137); apple/ml-ademamix@c3d73c09f128, pytorch/ademamix.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optim import trees


class ScaleByAdemamixState(NamedTuple):
    """State of `scale_by_ademamix`."""

    steps: jax.Array  # (), int32, steps made
    mu_fast: optax.Updates  # like the parameters, float32 or wider (or mu_dtype): momentum m1
    mu_slow: optax.Updates  # like the parameters, float32 or wider (or mu_dtype): momentum m2
    nu: optax.Updates  # like the parameters, float32 or wider: second moment v


def scale_by_ademamix(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    b3: optax.ScalarOrSchedule = 0.9999,
    alpha: optax.ScalarOrSchedule = 2.0,
    eps: ArrayLike = 1e-8,
    *,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction u of AdEMAMix, without rate or weight decay.

    Args:
      b1: decay of the fast momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      b3: decay of the slow momentum, in [0, 1), or a schedule of it.
      alpha: weight of the slow momentum, or a schedule of it.
      eps: added to the denominator.
      mu_dtype: dtype of both momenta; by default the parameter's, float32 at least.

    Raises:
      ValueError: b1, b2 or b3 is a number outside [0, 1), or alpha or eps is negative. Traced
        values and schedules are not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_ademamix(b1=0.0, b2=0.0, b3=0.75)
    >>> params = jnp.array([1.0, 2.0])
    >>> updates, state = tx.update(jnp.array([0.5, -4.0]), tx.init(params))
    >>> print(updates)  # the sign of g, and alpha (1 - b3) of it once more
    [ 1.5 -1.5]
    """
    trees.check_fractions("ademamix", b1=b1, b2=b2, b3=b3)
    trees.check_at_least("ademamix", 0, alpha=alpha, eps=eps)

    def init(params: optax.Params) -> ScaleByAdemamixState:
        return ScaleByAdemamixState(
            jnp.zeros((), jnp.int32),
            trees.zeros_like(params, mu_dtype),
            trees.zeros_like(params, mu_dtype),
            trees.zeros_like(params),
        )

    def update(
        updates: optax.Updates,
        state: ScaleByAdemamixState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdemamixState]:
        del params, extra_args
        steps = optax.safe_increment(state.steps)
        b3_now, alpha_now = (x(state.steps) if callable(x) else x for x in (b3, alpha))

        def rule(g: jax.Array, m1: jax.Array, m2: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
            m1, m2 = trees.average(b1, m1, g), trees.average(b3_now, m2, g)
            v = trees.average(b2, v, jnp.square(g))
            top = m1 / trees.bias_correction(b1, steps, g.dtype)
            top += trees.as_dtype(alpha_now, g.dtype) * m2
            bottom = jnp.sqrt(v) / jnp.sqrt(trees.bias_correction(b2, steps, g.dtype))
            return top / (bottom + trees.as_dtype(eps, g.dtype)), m1, m2, v

        updates, moments = trees.map_leaves(rule, updates, (state.mu_fast, state.mu_slow, state.nu))
        return updates, ScaleByAdemamixState(steps, *moments)

    return optax.GradientTransformationExtraArgs(init, update)


def ademamix(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    b3: optax.ScalarOrSchedule = 0.9999,
    alpha: optax.ScalarOrSchedule = 2.0,
    eps: ArrayLike = 1e-8,
    mu_dtype: DTypeLike | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdEMAMix; the weight decay is multiplied by the rate, as the authors do.

    Args:
      learning_rate: rate lr, or a schedule of it.
      b1: decay of the fast momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      b3: decay of the slow momentum, in [0, 1), or a schedule of it.
      alpha: weight of the slow momentum, or a schedule of it.
      eps: added to the denominator.
      mu_dtype: dtype of both momenta; by default the parameter's, float32 at least.
      weight_decay: decoupled decay wd, or a schedule of it.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.

    Raises:
      ValueError: b1, b2 or b3 is a number outside [0, 1), or alpha or eps is negative. Traced
        values and schedules are not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.ademamix(
    ...     0.1,
    ...     b3=optim.ademamix_b3_schedule(0.9999, b1=0.9, warmup_steps=1000),
    ...     alpha=optim.ademamix_alpha_schedule(2.0, warmup_steps=1000),
    ... )
    >>> params = jnp.zeros(2)
    >>> updates, state = tx.update(jnp.array([0.5, -4.0]), tx.init(params), params)
    >>> print(updates.round(3))
    [-0.1  0.1]
    """
    return optax.chain(
        scale_by_ademamix(b1, b2, b3, alpha, eps, mu_dtype=mu_dtype),
        trees.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
