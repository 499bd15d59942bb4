"""Prodigy: Adam whose rate is an estimate of the distance to the solution, grown from d0.

With gradient `g`, parameters `p` (`p0` at the start), `d` = d_max = d0 at the start, `m`, `v`, `s`
and `num` 0, and `t` the number of the step::

    g = g + wd p                                             only without decouple
    e = d lr sqrt(1 - b2^t) / (1 - b1^t)                     e = d lr without use_bias_correction
    num = beta3 num + (d / d0) e <g, p0 - p>
    m = b1 m + d (1 - b1) g
    v = b2 v + d^2 (1 - b2) g^2
    s = beta3 s + (d / d0) e g                               d in place of e with safeguard_warmup
    d_hat = d_coef num / |s|_1
    d_new = max(d, d_hat) if d = d0, otherwise d
    d_max = max(d_max, d_hat)
    d_new = min(d_max, growth_rate d_new)
    p = p - e (m / (sqrt(v) + eps d_new) + wd p)             wd p only with decouple
    d = d_new

The scalar product and the norm run over all tensors, which share one d; with slice_p > 1 both see
every slice_p-th entry of each tensor, in row-major order. A step whose rate is 0, or up to which
every gradient was 0, changes nothing but the count that a schedule of the rate sees.

*Differences.*

1. From the authors' code: none in exact arithmetic. They keep p0 as a single 0 for a tensor that
   starts at 0, which depends on values and cannot be done in a traced program.
2. From `optax.contrib.prodigy`: that one always corrects the bias, which the authors' default does
   not, and lacks growth_rate, the coupled decay, slice_p, d_max and a mask.
3. There is no `scale_by_prodigy`. The rate enters the estimate of d, and d the decay, so that
   neither can follow as a link of a chain.

A first step has length d0 lr (1 - b1) / sqrt(1 - b2), about 3e-6 by default. Where it is lost in
the rounding of the parameters, p0 - p stays 0 and d stays d0: with bfloat16 parameters give
`optim.apply_updates` a key, or raise d0. Where some leaves are masked or in another group, d is
estimated from the others alone.

*Cost.* m, v, s and p0: 16 bytes a parameter, 8 + 8 / slice_p with slices. Two passes over the
state, with one reduction of two numbers between them. Under jit the sums run over all shards;
slices with slice_p > 1 are taken from the flat tensor, for which a sharded one is rearranged.

*Reference.* Mishchenko and Defazio, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, 2023
(arXiv:2306.06101); konstmish/prodigy@3efb213ee8af, prodigyopt/prodigy.py.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


class ProdigyState(NamedTuple):
    """State of `prodigy`."""

    calls: jax.Array  # (), int32, updates, which a schedule of the rate sees
    steps: jax.Array  # (), int32, updates that were steps: t
    d: jax.Array  # (), float32 or wider, estimate of the distance
    d_max: jax.Array  # (), float32 or wider, largest d_hat so far
    numerator: jax.Array  # (), float32 or wider: num
    mu: optax.Updates  # like the parameters, float32 or wider: m
    nu: optax.Updates  # like the parameters, float32 or wider: v
    s: optax.Updates  # like the parameters, float32 or wider; flat, its slices, if slice_p > 1
    start: optax.Params  # like s: p0


def prodigy(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    beta3: ArrayLike | None = None,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
    decouple: bool = True,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: ArrayLike = 1e-6,
    d_coef: ArrayLike = 1.0,
    growth_rate: ArrayLike = float("inf"),
    slice_p: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Prodigy; the defaults are the authors'.

    Args:
      learning_rate: lr, multiplies the estimate d, or a schedule of it.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      beta3: decay of num and s; None is sqrt(b2).
      eps: added to the root of the second moment after a factor d.
      weight_decay: wd, multiplied by e with decouple, added to the gradient without.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.
      decouple: whether the decay leaves the gradient alone, as AdamW's does.
      use_bias_correction: whether e has the bias correction of Adam.
      safeguard_warmup: leaves the rate out of s, for a rate that warms up.
      d0: first d, above 0.
      d_coef: multiplies d_hat; the authors' preferred way to tune the method (0.5, 2.0).
      growth_rate: largest factor by which d grows in a step, but for the one in which it leaves d0.
      slice_p: d is estimated from every slice_p-th entry of a tensor; the authors suggest 11.

    Raises:
      ValueError: b1 or b2 is a number outside [0, 1), eps or d0 is a number that is not positive,
        slice_p is no positive integer, or the update is called without params. Traced values are
        not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.prodigy(d0=0.01)
    >>> params = jnp.array([1.0, 2.0])
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(jnp.array([0.5, -4.0]), state, params)
    ...     params = optim.apply_updates(params, updates)
    >>> print(params, state.d)
    [0.9258813 2.0741189] 0.01581539
    """
    trees.check_fractions("prodigy", b1=b1, b2=b2)
    trees.check_positive("prodigy", eps=eps, d0=d0)
    if not isinstance(slice_p, numbers.Integral) or slice_p < 1:
        raise ValueError(f"prodigy: slice_p is {slice_p}; accepted: an integer, at least 1.")

    def sliced(x: jax.Array) -> jax.Array:
        return x if slice_p == 1 else x.reshape(-1)[::slice_p]

    def init(params: optax.Params) -> ProdigyState:
        dtype = trees.accumulator_dtype(*jax.tree.leaves(params))
        start = jax.tree.map(lambda p: jnp.array(sliced(p), copy=True), trees.promote(params))
        return ProdigyState(
            calls=jnp.zeros((), jnp.int32),
            steps=jnp.zeros((), jnp.int32),
            d=jnp.array(d0, dtype),
            d_max=jnp.array(d0, dtype),
            numerator=jnp.zeros((), dtype),
            mu=trees.zeros_like(params),
            nu=trees.zeros_like(params),
            s=jax.tree.map(jnp.zeros_like, start),
            start=start,
        )

    def grown(
        state: ProdigyState, numerator: jax.Array, norm: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        dtype = norm.dtype
        d_hat = trees.as_dtype(d_coef, dtype) * numerator / jnp.where(norm == 0, 1, norm)
        first = state.d == trees.as_dtype(d0, dtype)
        d = jnp.where(first, jnp.maximum(state.d, d_hat), state.d)
        d_max = jnp.maximum(state.d_max, d_hat)
        return jnp.minimum(d_max, d * trees.as_dtype(growth_rate, dtype)), d_max

    def update(
        updates: optax.Updates,
        state: ProdigyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ProdigyState]:
        del extra_args
        if params is None:
            raise ValueError(
                "prodigy: params is None; call update(updates, state, params) with parameters."
            )
        dtype, steps = state.d.dtype, optax.safe_increment(state.steps)
        rate = trees.value_at(learning_rate, state.calls, dtype)
        step = state.d * rate
        if use_bias_correction:
            step *= jnp.sqrt(trees.bias_correction(b2, steps, dtype))
            step /= trees.bias_correction(b1, steps, dtype)
        forget = trees.as_dtype(b2**0.5 if beta3 is None else beta3, dtype)
        ratio = state.d / trees.as_dtype(d0, dtype)
        share = ratio * (state.d if safeguard_warmup else step)
        decay = trees.decay_terms(params, weight_decay, mask)
        if not decouple:
            updates, _ = trees.map_leaves(lambda g, w: (g + w,), updates, (), decay)

        def accumulate(g: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
            m, v, s, start, p = others
            moved = state.d.astype(g.dtype) * g
            product = jnp.sum(sliced(g) * (start - sliced(p)))
            m = jnp.where(rate == 0, m, trees.average(b1, m, moved))
            v = jnp.where(rate == 0, v, trees.average(b2, v, jnp.square(moved)))
            grown_s = forget.astype(g.dtype) * s + share.astype(g.dtype) * sliced(g)
            s = jnp.where(rate == 0, s, grown_s)
            return jnp.stack([product, jnp.sum(jnp.abs(s))]).astype(dtype), m, v, s

        sums, (mu, nu, s) = trees.map_leaves(
            accumulate, updates, (state.mu, state.nu, state.s), state.start, params
        )
        product, norm = sum(jax.tree.leaves(sums), start=jnp.zeros(2, dtype))
        numerator = forget * state.numerator + ratio * step * product
        d, d_max = grown(state, numerator, norm)
        moves = (rate != 0) & (norm != 0)  # true of nan, which is to be seen

        def move(g: jax.Array, m: jax.Array, v: jax.Array, w: jax.Array) -> tuple[jax.Array]:
            floor = trees.as_dtype(eps, g.dtype) * d.astype(g.dtype)
            direction = m / (jnp.sqrt(v) + floor) + (w if decouple else 0)
            return (jnp.where(moves, -step.astype(g.dtype) * direction, 0),)

        updates, _ = trees.map_leaves(move, updates, (), mu, nu, decay)
        steps, d, d_max, numerator = (
            jnp.where(moves, new, old)
            for new, old in (
                (steps, state.steps),
                (d, state.d),
                (d_max, state.d_max),
                (numerator, state.numerator),
            )
        )
        calls = optax.safe_increment(state.calls)
        return updates, ProdigyState(calls, steps, d, d_max, numerator, mu, nu, s, state.start)

    return optax.GradientTransformationExtraArgs(init, update)
