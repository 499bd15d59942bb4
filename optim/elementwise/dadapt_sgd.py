"""D-Adapt SGD: dual averaging whose rate is a lower bound of the distance to the solution.

With gradient `g`, parameters `p` (`p0` at the start), d = d0 at the start, `s` and `num` 0, and `n`
the norm of the first gradient::

    e = d lr / n
    g = g + wd p
    num = num + e <g, s>                                     with s of the step before
    s = s + e g
    d = max(d, min(2 num / |s|, growth_rate d))
    p = momentum p + (1 - momentum) (p0 - s)

The scalar product and the norms run over all tensors, which share one d. A step whose rate is 0, or
up to which every gradient was 0, changes nothing but the count that a schedule of the rate sees; n
is then taken at the first step that does.

*Differences.*

1. From the authors' code: none in exact arithmetic. As there, n is the norm without weight decay:
   the code means to add it, with an operation whose result it drops. It also divides by 0 where the
   first gradient is 0, and keeps p0 - s, which is calculated here.
2. The momentum averages the points p0 - s; it is no momentum of the gradients.
3. There is no `scale_by_dadapt_sgd`: the step goes to a point, so that no rate can follow it.

Where some leaves are masked or in another group, d and n are estimated from the others alone.

*Cost.* s and p0: 8 bytes a parameter (12 in the authors' code). Two passes over the state, with one
reduction of two numbers between them, and a pass over the gradient before the first; over all
shards under jit.

*Reference.* Defazio and Mishchenko, Learning-Rate-Free Learning by D-Adaptation, 2023
(arXiv:2301.07733); facebookresearch/dadaptation@c984980213a9, dadaptation/dadapt_sgd.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


class DAdaptSGDState(NamedTuple):
    """State of `dadapt_sgd`."""

    calls: jax.Array  # (), int32, updates, which a schedule of the rate sees
    d: jax.Array  # (), float32 or wider, estimate of the distance
    numerator: jax.Array  # (), float32 or wider: num
    first_norm: jax.Array  # (), float32 or wider: n; 0 before the first step
    s: optax.Updates  # like the parameters, float32 or wider
    start: optax.Params  # like the parameters, float32 or wider: p0


def dadapt_sgd(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    momentum: ArrayLike = 0.0,
    weight_decay: ArrayLike = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
    d0: ArrayLike = 1e-6,
    growth_rate: ArrayLike = float("inf"),
) -> optax.GradientTransformationExtraArgs:
    """D-Adapt SGD; the defaults are the authors'.

    Args:
      learning_rate: lr, multiplies the estimate d, or a schedule of it.
      momentum: weight of the parameters in the average with the new point, in [0, 1).
      weight_decay: wd, added to the gradient.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.
      d0: first d, above 0.
      growth_rate: largest factor by which d grows in a step.

    Raises:
      ValueError: momentum is a number outside [0, 1), d0 is a number that is not positive, or the
        update is called without params. Traced values are not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.dadapt_sgd(d0=0.1)
    >>> params = jnp.array([1.0, 2.0])
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...     updates, state = tx.update(jnp.array([3.0, -4.0]), state, params)
    ...     params = optim.apply_updates(params, updates)
    >>> print(params, state.d)
    [0.82 2.24] 0.2
    """
    trees.check_fractions("dadapt_sgd", momentum=momentum)
    trees.check_positive("dadapt_sgd", d0=d0)

    def init(params: optax.Params) -> DAdaptSGDState:
        dtype = trees.accumulator_dtype(*jax.tree.leaves(params))
        return DAdaptSGDState(
            calls=jnp.zeros((), jnp.int32),
            d=jnp.array(d0, dtype),
            numerator=jnp.zeros((), dtype),
            first_norm=jnp.zeros((), dtype),
            s=trees.zeros_like(params),
            start=jax.tree.map(lambda p: jnp.array(p, copy=True), trees.promote(params)),
        )

    def total(sums: Any, dtype: jnp.dtype) -> jax.Array:
        return sum(jax.tree.leaves(sums), start=jnp.zeros((), dtype))

    def update(
        updates: optax.Updates,
        state: DAdaptSGDState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DAdaptSGDState]:
        del extra_args
        if params is None:
            raise ValueError(
                "dadapt_sgd: params is None; call update(updates, state, params) with parameters."
            )
        dtype = state.d.dtype
        rate = trees.value_at(learning_rate, state.calls, dtype)

        def square(g: jax.Array) -> tuple[jax.Array]:
            return (jnp.sum(jnp.square(g)).astype(dtype),)

        first_norm = jax.lax.cond(
            state.first_norm == 0,
            lambda: jnp.sqrt(total(trees.map_leaves(square, updates)[0], dtype)),
            lambda: state.first_norm,
        )
        step = state.d * rate / jnp.where(first_norm == 0, jnp.inf, first_norm)
        decay = trees.decay_terms(params, weight_decay, mask)

        def accumulate(g: jax.Array, s: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
            moved = step.astype(g.dtype) * (g + w)
            product = jnp.sum(moved * s)
            s = s + moved
            return jnp.stack([product, jnp.sum(jnp.square(s))]).astype(dtype), s

        sums, (s,) = trees.map_leaves(accumulate, updates, (state.s,), decay)
        product, square_norm = sum(jax.tree.leaves(sums), start=jnp.zeros(2, dtype))
        numerator = state.numerator + product
        d_hat = 2 * numerator / jnp.sqrt(jnp.where(square_norm == 0, 1, square_norm))
        d = jnp.maximum(state.d, jnp.minimum(d_hat, state.d * trees.as_dtype(growth_rate, dtype)))
        moves = (rate != 0) & (square_norm != 0)  # true of nan, which is to be seen

        def move(g: jax.Array, s: jax.Array, start: jax.Array, p: jax.Array) -> tuple[jax.Array]:
            take = trees.as_dtype(1 - momentum, g.dtype)
            return (jnp.where(moves, take * (start - p - s), 0),)

        updates, _ = trees.map_leaves(move, updates, (), s, state.start, params)
        d, numerator, first_norm = (
            jnp.where(moves, new, old)
            for new, old in (
                (d, state.d),
                (numerator, state.numerator),
                (first_norm, state.first_norm),
            )
        )
        calls = optax.safe_increment(state.calls)
        return updates, DAdaptSGDState(calls, d, numerator, first_norm, s, state.start)

    return optax.GradientTransformationExtraArgs(init, update)
