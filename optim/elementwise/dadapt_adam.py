"""D-Adapt Adam: Adam whose rate is a lower bound of the distance to the solution, grown from d0.

With gradient `g`, parameters `p`, d = d0 at the start, `m`, `v`, `s` and `num` 0, c = sqrt(b2) and
`t` the number of the step::

    g = g + wd p                                             only without decouple
    e = d lr sqrt(1 - b2^t) / (1 - b1^t)                     e = d lr without use_bias_correction
    num = c num + (1 - c) e <g, s / (sqrt(v) + eps)>         with v and s of the step before
    m = b1 m + (1 - b1) e g
    v = b2 v + (1 - b2) g^2
    s = c s + (1 - c) e g
    d = max(d, min(num / ((1 - c) |s|_1), growth_rate d))
    p = p - m / (sqrt(v) + eps) - e wd p                     wd only with decouple; e of the old d

The scalar product and the norm run over all tensors, which share one d. A step whose rate is 0, or
up to which every gradient was 0, changes nothing but the count that a schedule of the rate sees.

*Differences.*

1. From the authors' code: none in exact arithmetic. 1 - c is calculated from 1 - b2, since in
   float32 the difference of 1 and c would lose four of seven digits. Their layer_scale, an entry
   of parameter groups that is 1 unless set there, is left out.
2. From `optax.contrib.dadapt_adamw`: that one always corrects the bias and always decouples the
   decay, neither of which is the authors' default, and lacks growth_rate and a mask.
3. There is no `scale_by_dadapt_adam`. The rate enters m and the estimate of d, and d the decay, so
   that neither can follow as a link of a chain.

Where some leaves are masked or in another group, d is estimated from the others alone.

*Cost.* m, v and s: 12 bytes a parameter. Two passes over the state, with one reduction of two
numbers between them, over all shards under jit.

*Reference.* Defazio and Mishchenko, Learning-Rate-Free Learning by D-Adaptation, 2023
(arXiv:2301.07733); facebookresearch/dadaptation@c984980213a9, dadaptation/dadapt_adam.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


class DAdaptAdamState(NamedTuple):
    """State of `dadapt_adam`."""

    calls: jax.Array  # (), int32, updates, which a schedule of the rate sees
    steps: jax.Array  # (), int32, updates that were steps: t
    d: jax.Array  # (), float32 or wider, estimate of the distance
    numerator: jax.Array  # (), float32 or wider: num
    mu: optax.Updates  # like the parameters, float32 or wider: m
    nu: optax.Updates  # like the parameters, float32 or wider: v
    s: optax.Updates  # like the parameters, float32 or wider


def dadapt_adam(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
    decouple: bool = False,
    use_bias_correction: bool = False,
    d0: ArrayLike = 1e-6,
    growth_rate: ArrayLike = float("inf"),
) -> optax.GradientTransformationExtraArgs:
    """D-Adapt Adam; the defaults are the authors'.

    Args:
      learning_rate: lr, multiplies the estimate d, or a schedule of it.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the second moment.
      weight_decay: wd, multiplied by e with decouple, added to the gradient without.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.
      decouple: whether the decay leaves the gradient alone, as AdamW's does.
      use_bias_correction: whether e has the bias correction of Adam.
      d0: first d, above 0.
      growth_rate: largest factor by which d grows in a step.

    Raises:
      ValueError: b1 or b2 is a number outside [0, 1), eps or d0 is a number that is not positive,
        or the update is called without params. Traced values are not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.dadapt_adam(d0=0.01)
    >>> params = jnp.array([1.0, 2.0])
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(jnp.array([0.5, -4.0]), state, params)
    ...     params = optim.apply_updates(params, updates)
    >>> print(params, state.d)
    [0.9258813 2.0741189] 0.15815338
    """
    trees.check_fractions("dadapt_adam", b1=b1, b2=b2)
    trees.check_positive("dadapt_adam", eps=eps, d0=d0)

    def init(params: optax.Params) -> DAdaptAdamState:
        dtype = trees.accumulator_dtype(*jax.tree.leaves(params))
        return DAdaptAdamState(
            calls=jnp.zeros((), jnp.int32),
            steps=jnp.zeros((), jnp.int32),
            d=jnp.array(d0, dtype),
            numerator=jnp.zeros((), dtype),
            mu=trees.zeros_like(params),
            nu=trees.zeros_like(params),
            s=trees.zeros_like(params),
        )

    def update(
        updates: optax.Updates,
        state: DAdaptAdamState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DAdaptAdamState]:
        del extra_args
        if params is None:
            raise ValueError(
                "dadapt_adam: params is None; call update(updates, state, params) with parameters."
            )
        dtype, steps = state.d.dtype, optax.safe_increment(state.steps)
        rate = trees.value_at(learning_rate, state.calls, dtype)
        step = state.d * rate
        if use_bias_correction:
            step *= jnp.sqrt(trees.bias_correction(b2, steps, dtype))
            step /= trees.bias_correction(b1, steps, dtype)
        forget = trees.as_dtype(b2**0.5, dtype)
        take = trees.as_dtype(1 - b2, dtype) / (1 + forget)
        decay = trees.decay_terms(params, weight_decay, mask)
        if not decouple:
            updates, _ = trees.map_leaves(lambda g, w: (g + w,), updates, (), decay)

        def accumulate(g: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
            m, v, s = others
            moved = step.astype(g.dtype) * g
            product = jnp.sum(moved * s / (jnp.sqrt(v) + trees.as_dtype(eps, g.dtype)))
            m = jnp.where(rate == 0, m, trees.average(b1, m, moved))
            v = jnp.where(rate == 0, v, trees.average(b2, v, jnp.square(g)))
            grown = forget.astype(g.dtype) * s + take.astype(g.dtype) * moved
            s = jnp.where(rate == 0, s, grown)
            return jnp.stack([product, jnp.sum(jnp.abs(s))]).astype(dtype), m, v, s

        sums, (mu, nu, s) = trees.map_leaves(accumulate, updates, (state.mu, state.nu, state.s))
        product, norm = sum(jax.tree.leaves(sums), start=jnp.zeros(2, dtype))
        numerator = forget * state.numerator + take * product
        d_hat = numerator / (take * jnp.where(norm == 0, 1, norm))
        d = jnp.maximum(state.d, jnp.minimum(d_hat, state.d * trees.as_dtype(growth_rate, dtype)))
        moves = (rate != 0) & (norm != 0)  # true of nan, which is to be seen

        def move(g: jax.Array, m: jax.Array, v: jax.Array, w: jax.Array) -> tuple[jax.Array]:
            adam = m / (jnp.sqrt(v) + trees.as_dtype(eps, g.dtype))
            shrink = step.astype(g.dtype) * w if decouple else 0
            return (jnp.where(moves, -adam - shrink, 0),)

        updates, _ = trees.map_leaves(move, updates, (), mu, nu, decay)
        steps, d, numerator = (
            jnp.where(moves, new, old)
            for new, old in ((steps, state.steps), (d, state.d), (numerator, state.numerator))
        )
        calls = optax.safe_increment(state.calls)
        return updates, DAdaptAdamState(calls, steps, d, numerator, mu, nu, s)

    return optax.GradientTransformationExtraArgs(init, update)
