"""Schedule-free learning: an average of the iterates takes the place of a decaying rate.

The parameters that are trained, `y`, lie between the iterate `z` of an inner optimizer and the
weighted mean `x` of its iterates, which is what is evaluated. At step t = 1, 2, ... the inner
optimizer answers the gradient at y with an update `u` of z; with its rate `lr`, W warm-up steps and
decay `wd`, x = z = y at the start::

    warm = min(1, t / W)
    u = warm (u - lr wd y)
    h = max(h, warm lr)                                      the largest rate so far
    weight = t^r h^weight_lr_power
    c = weight / (sum of the weights so far)                 0 where the sum is 0
    z = z + u
    x = (1 - c) x + c z
    y = b1 x + (1 - b1) z

Of x, y and z two are kept: y as the parameters and z in the state. Then, with the z of before,
y = y + c (z - y) + (1 - b1 (1 - c)) u, and x = y + (1 - 1 / b1) (z - y) is what
`optim.evaluation_params(state, params)` gives.

The inner optimizers of the three aliases, for the gradient g, with bias-corrected averages v of g^2
and m of g::

    schedule_free_sgd      u = -lr g
    schedule_free_adamw    u = -lr m / (sqrt(v) + eps)       m = g without inner_momentum
    schedule_free_radam    u = -q lr g / (sqrt(v) + eps)     q lr is the rate everywhere

RAdam's q is 0 (or 1, with u = -lr g, without silent_sgd_phase) while rho <= 4, afterwards
sqrt((rho - 4) (rho - 2) R / ((R - 4) (R - 2) rho)), where rho = R - 2 t b2^t / (1 - b2^t) and
R = 2 / (1 - b2) - 1.

*Differences.*

1. From the authors' code: none in exact arithmetic. rho is calculated by a formula that does not
   subtract numbers of size R, whose difference decides on 4; float32 would lose it.
2. From the authors' wrapper: warm-up is an argument. Its weight decay, too, is evaluated at y, but
   moves z before the inner optimizer sees it and not after.
3. From `optax.contrib.schedule_free`: warm-up is t / W for the step and the weight at once, where
   there the first step has rate 0 and the weight is one step ahead. A schedule given to both the
   inner optimizer and `learning_rate` is evaluated at the same count, t - 1. The inner optimizer
   sees z as the parameters, as the authors' does (y there). That one lacks decay at y, a mask, r
   and inner_momentum.

y is what training rounds. In bfloat16, small c (z - y) are lost: keep the parameters in float32, or
give `optim.apply_updates` a key.

*Cost.* z: 4 bytes a parameter, and the inner state: none for SGD, 4 bytes for RAdam and AdamW, 8
for AdamW with inner_momentum. One pass over y, z and the inner state.

*Reference.* Defazio et al., The Road Less Scheduled, 2024 (arXiv:2405.15682);
facebookresearch/schedule_free@70785b53e778, schedulefree/: sgd_schedulefree.py,
adamw_schedulefree.py, radam_schedulefree.py, wrap_schedulefree.py.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


class ScheduleFreeState(NamedTuple):
    """State of `schedule_free`."""

    steps: jax.Array  # (), int32, steps: t
    b1: jax.Array  # (), float32 or wider, weight of x in y, by which x is found
    largest_rate: jax.Array  # (), float32 or wider: h
    weight_sum: jax.Array  # (), float32 or wider, sum of the weights
    z: optax.Params  # like the parameters, float32 or wider
    inner: optax.OptState  # of the inner optimizer

    def evaluation_params(self, params: optax.Params) -> optax.Params:
        """The average x, for the parameters y; integer leaves are not held."""

        def x(z: Any, y: Any) -> Any:
            if isinstance(z, optax.MaskedNode):
                return z
            if not jnp.issubdtype(jnp.result_type(y), jnp.inexact):
                return optax.MaskedNode()
            y = trees.as_dtype(y, z.dtype)
            return y + (1 - 1 / self.b1).astype(z.dtype) * (z - y)

        return jax.tree.map(x, self.z, params, is_leaf=lambda z: isinstance(z, optax.MaskedNode))


def schedule_free(
    inner: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: ArrayLike = 0.9,
    weight_decay: ArrayLike = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
    warmup_steps: int = 0,
    r: ArrayLike = 0.0,
    weight_lr_power: ArrayLike = 2.0,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free training by any optimizer; evaluate `optim.evaluation_params(state, params)`.

    Args:
      inner: a whole optimizer with its rate, momentum off, such as `optax.sgd(0.1)`: what it
        returns is added to z. Weight decay of its own is evaluated at z.
      learning_rate: lr, the rate that inner has, or its schedule, without warm-up where
        warmup_steps is given; it enters the weights and weight_decay.
      b1: weight of the average x in y, in (0, 1).
      weight_decay: wd, evaluated at y.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.
      warmup_steps: W, steps over which the rate, and with it what inner returns, grows linearly.
      r: power of t in the weights.
      weight_lr_power: power of the largest rate in the weights.

    Raises:
      ValueError: b1 is a number outside (0, 1), warmup_steps is no integer or negative, or the
        update is called without params. Traced values are not checked.

    >>> import jax.numpy as jnp, optax, optim
    >>> tx = optim.schedule_free(optax.sgd(0.5), 0.5)
    >>> params = jnp.array([1.0, 2.0])
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(jnp.array([1.0, -1.0]), state, params)
    ...     params = optim.apply_updates(params, updates)
    >>> print(state.z, optim.evaluation_params(state, params))
    [0. 3.] [0.25 2.75]
    """
    _check(b1, warmup_steps)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> ScheduleFreeState:
        dtype = trees.accumulator_dtype(*jax.tree.leaves(params))
        z = jax.tree.map(lambda p: jnp.array(p, copy=True), trees.promote(params))
        return ScheduleFreeState(
            steps=jnp.zeros((), jnp.int32),
            b1=jnp.array(b1, dtype),
            largest_rate=jnp.zeros((), dtype),
            weight_sum=jnp.zeros((), dtype),
            z=z,
            inner=inner.init(z),
        )

    def update(
        updates: optax.Updates,
        state: ScheduleFreeState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScheduleFreeState]:
        if params is None:
            raise ValueError(
                "schedule_free: params is None; "
                "call update(updates, state, params) with parameters."
            )
        dtype, taken = state.weight_sum.dtype, optax.safe_increment(state.steps)
        t = taken.astype(dtype)
        warm = jnp.minimum(1, t / max(warmup_steps, 1))
        rate = trees.value_at(learning_rate, state.steps, dtype)
        largest = jnp.maximum(state.largest_rate, warm * rate)
        power = trees.as_dtype(weight_lr_power, dtype)
        weight = t ** trees.as_dtype(r, dtype) * largest**power
        weight_sum = state.weight_sum + weight
        c = weight / jnp.where(weight_sum == 0, 1, weight_sum)
        share = trees.as_dtype(1 - b1, dtype) + trees.as_dtype(b1, dtype) * c  # of u in y
        steps, inner_state = inner.update(
            trees.promote(updates), state.inner, state.z, **extra_args
        )
        decay = trees.decay_terms(params, weight_decay, mask)

        def rule(u: jax.Array, z: jax.Array, y: jax.Array, w: jax.Array) -> tuple[jax.Array, ...]:
            factors = (warm, rate, c, share)
            to_full, shrink, average, follow = (x.astype(u.dtype) for x in factors)
            u = to_full * (u - shrink * w)
            return average * (z - y) + follow * u, z + u

        updates, (z,) = trees.map_leaves(rule, steps, (state.z,), params, decay)
        held = trees.as_dtype(b1, dtype)
        return updates, ScheduleFreeState(taken, held, largest, weight_sum, z, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def schedule_free_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: ArrayLike = 0.9,
    weight_decay: ArrayLike = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
    warmup_steps: int = 0,
    r: ArrayLike = 0.0,
    weight_lr_power: ArrayLike = 2.0,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free SGD; the authors' default rate is 1.

    Args:
      learning_rate: lr, or a schedule of it.
      b1: weight of the average x in y, in (0, 1); the authors call it momentum.
      weight_decay: wd, evaluated at y.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.
      warmup_steps: W, steps over which the rate grows linearly to full size.
      r: power of t in the weights.
      weight_lr_power: power of the largest rate in the weights.

    Raises:
      ValueError: as `schedule_free` does.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.schedule_free_sgd(1.0, warmup_steps=4)
    >>> params = jnp.array([1.0, 2.0])
    >>> updates, state = tx.update(jnp.array([1.0, -1.0]), tx.init(params), params)
    >>> print(optim.apply_updates(params, updates))
    [0.75 2.25]
    """
    return schedule_free(
        optax.scale_by_learning_rate(learning_rate),
        learning_rate,
        b1=b1,
        weight_decay=weight_decay,
        mask=mask,
        warmup_steps=warmup_steps,
        r=r,
        weight_lr_power=weight_lr_power,
    )


def schedule_free_adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
    warmup_steps: int = 0,
    r: ArrayLike = 0.0,
    weight_lr_power: ArrayLike = 2.0,
    inner_momentum: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free AdamW; the authors' default rate is 0.0025.

    Args:
      learning_rate: lr, or a schedule of it.
      b1: weight of the average x in y, in (0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the second moment.
      weight_decay: wd, evaluated at y.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.
      warmup_steps: W, steps over which the rate grows linearly to full size.
      r: power of t in the weights.
      weight_lr_power: power of the largest rate in the weights.
      inner_momentum: decay of an average of the gradients inside AdamW, in [0, 1). The number 0
        keeps no average; a traced one does, whatever its value.

    Raises:
      ValueError: b2 or inner_momentum is a number outside [0, 1), eps is not positive, and as
        `schedule_free` does.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.schedule_free_adamw(0.01)
    >>> params = jnp.array([1.0, 2.0])
    >>> updates, state = tx.update(jnp.array([0.5, -4.0]), tx.init(params), params)
    >>> [f"{p:.4f}" for p in optim.apply_updates(params, updates)]
    ['0.9900', '2.0100']
    """
    trees.check_fractions("schedule_free_adamw", b2=b2, inner_momentum=inner_momentum)
    trees.check_positive("schedule_free_adamw", eps=eps)
    inner = _scale_by_second_moment(b2, eps, inner_momentum)
    return schedule_free(
        optax.chain(inner, optax.scale_by_learning_rate(learning_rate)),
        learning_rate,
        b1=b1,
        weight_decay=weight_decay,
        mask=mask,
        warmup_steps=warmup_steps,
        r=r,
        weight_lr_power=weight_lr_power,
    )


def schedule_free_radam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
    r: ArrayLike = 0.0,
    weight_lr_power: ArrayLike = 2.0,
    silent_sgd_phase: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free RAdam, which needs no warm-up; the authors' default rate is 0.0025.

    Args:
      learning_rate: lr, or a schedule of it.
      b1: weight of the average x in y, in (0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the second moment.
      weight_decay: wd, evaluated at y.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.
      r: power of t in the weights.
      weight_lr_power: power of the largest rate in the weights.
      silent_sgd_phase: stands still, not as SGD does, while the variance of v has no bound (the
        first 4 steps with b2 = 0.999).

    Raises:
      ValueError: b2 is a number outside [0, 1), eps is not positive, and as `schedule_free` does.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.schedule_free_radam(0.01)
    >>> params = jnp.array([1.0, 2.0])
    >>> state = tx.init(params)
    >>> for _ in range(5):
    ...     updates, state = tx.update(jnp.array([0.5, -4.0]), state, params)
    ...     params = optim.apply_updates(params, updates)
    >>> [f"{p:.5f}" for p in params]
    ['0.99983', '2.00017']
    """
    trees.check_fractions("schedule_free_radam", b2=b2)
    trees.check_positive("schedule_free_radam", eps=eps)

    def rate(count: jax.Array) -> jax.Array:
        dtype = jnp.result_type(float)
        rho, longest = _variance_lengths(b2, count + 1, dtype)
        of_rho = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
        rectified = jnp.where(rho > 4, jnp.sqrt(jnp.maximum(of_rho, 0)), 1 - silent_sgd_phase)
        return rectified * trees.value_at(learning_rate, count, dtype)

    inner = _scale_by_second_moment(b2, eps, rectify=True)
    return schedule_free(
        optax.chain(inner, optax.scale_by_learning_rate(rate)),
        rate,
        b1=b1,
        weight_decay=weight_decay,
        mask=mask,
        r=r,
        weight_lr_power=weight_lr_power,
    )


def _check(b1: ArrayLike, warmup_steps: int) -> None:
    if isinstance(b1, numbers.Real) and not 0 < b1 < 1:
        raise ValueError(f"schedule_free: b1 is {b1}; accepted: 0 < b1 < 1.")
    if not isinstance(warmup_steps, numbers.Integral) or warmup_steps < 0:
        raise ValueError(
            f"schedule_free: warmup_steps is {warmup_steps}; accepted: an integer, at least 0."
        )


class _SecondMomentState(NamedTuple):
    """State of the inner AdamW and RAdam."""

    steps: jax.Array  # (), int32, steps: t
    mu: optax.Updates  # like the parameters, float32 or wider, or None without momentum: m
    nu: optax.Updates  # like the parameters, float32 or wider: v


def _scale_by_second_moment(
    b2: ArrayLike, eps: ArrayLike, momentum: ArrayLike = 0.0, *, rectify: bool = False
) -> optax.GradientTransformation:
    """Adam's direction; with `rectify`, the gradient itself while RAdam's rho is 4 or less."""
    averaging = not (isinstance(momentum, numbers.Real) and momentum == 0)

    def init(params: optax.Params) -> _SecondMomentState:
        mu = trees.zeros_like(params) if averaging else None
        return _SecondMomentState(jnp.zeros((), jnp.int32), mu, trees.zeros_like(params))

    def update(
        updates: optax.Updates, state: _SecondMomentState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, _SecondMomentState]:
        del params
        t = optax.safe_increment(state.steps)

        def rule(g: jax.Array, v: jax.Array, *m: jax.Array) -> tuple[jax.Array, ...]:
            v = trees.average(b2, v, jnp.square(g))
            root = jnp.sqrt(v / trees.bias_correction(b2, t, g.dtype))
            m = tuple(trees.average(momentum, old, g) for old in m)
            mean = m[0] / trees.bias_correction(momentum, t, g.dtype) if m else g
            adam = mean / (root + trees.as_dtype(eps, g.dtype))
            if rectify:
                rho, _ = _variance_lengths(b2, t, jnp.result_type(float))
                adam = jnp.where(rho > 4, adam, g)
            return adam, v, *m

        held = (state.nu, state.mu) if averaging else (state.nu,)
        updates, (nu, *mu) = trees.map_leaves(rule, updates, held)
        return updates, _SecondMomentState(t, mu[0] if mu else None, nu)

    return optax.GradientTransformation(init, update)


def _variance_lengths(
    b2: ArrayLike, steps: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """RAdam's rho after that many steps, and R, to which it grows.

    With h = -log(b2), R = coth(h / 2) and 2 t b2^t / (1 - b2^t) = t coth(t h / 2) - t, both
    near 2 / h at first. With that taken out, rho = 1 - m(h / 2) + t m(t h / 2), where m(x) =
    1 + 1 / x - coth(x) falls from 1 to 0.
    """
    take, t = trees.as_dtype(1 - b2, dtype), trees.as_dtype(steps, dtype)
    half = -jnp.log1p(-take) / 2
    return 1 - _falling(half) + t * _falling(t * half), 2 / take - 1


def _falling(x: jax.Array) -> jax.Array:
    """1 + 1 / x - coth(x), by its series where the difference would cancel."""
    small = jnp.minimum(x, 0.1)
    square = jnp.square(small)
    series = 1 - small * (1 / 3 - square * (1 / 45 - square * (2 / 945 - square / 4725)))
    return jnp.where(x < 0.1, series, 1 / x - 2 / jnp.expm1(2 * x))
