"""Sophia: momentum over a running diagonal of the curvature, each coordinate's step at most 1.

With gradient `g`, estimate `c` of the diagonal of the curvature where there is a new one, momentum
`m` and diagonal `h` (0 at the start), parameters `p`, rate `lr` and decay `wd`::

    m = b1 m + (1 - b1) g
    h = b2 h + (1 - b2) c                             at steps with a new estimate
    u = sign(m) min(|m| / (gamma max(h, 0) + eps), 1)     variant "official"
    u = clip(m / max(gamma h, eps), -1, 1)                variant "paper"
    p = p - lr (u + wd p)

Where h is 0, as before the first estimate, or negative, u is the sign of m. An estimate with an
element that is not finite is left out whole.

The estimate comes by `optim.with_curvature`, which also sets when: Sophia-G by
`optim.gauss_newton_bartlett`, Sophia-H by `optim.hutchinson`. `every=10, start=10` is when the
authors' code makes it, `every=10` when the paper does.

*Differences.*

1. The authors' code averages the squares of a gradient and multiplies them by the tokens of a step,
   `bs`, where it divides: rho bs h there is gamma h here, whose c contains the factor.
2. Their rule would step uphill where h is negative, which theirs never is; hence the max(h, 0).
3. They clip the sampled gradient's norm, and take it from the next batch (see
   `optim.gauss_newton_bartlett` and `optim.with_curvature`).
4. From `optax.contrib.sophia`: no bias correction of m, another eps, and the estimator is separate.

*Cost.* Momentum and diagonal: 8 bytes a parameter. An estimate costs about a gradient with
Bartlett's and 2.2 with Hutchinson's, every so many steps.

*Reference.* Liu et al., Sophia: A Scalable Stochastic Second-order Optimizer for Language Model
Pre-training, 2023 (arXiv:2305.14342); Liuhong99/Sophia@a7e157229b71, sophia.py, train_sophiag.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from optim.curvature.diagonal import MISSING, check_given

# variant -> b1, gamma, eps
_DEFAULTS = {"official": (0.965, 0.04, 1e-15), "paper": (0.96, 0.05, 1e-12)}


class ScaleBySophiaState(NamedTuple):
    """State of `scale_by_sophia`."""

    mu: optax.Updates  # like the parameters, float32 or wider: momentum m
    diagonal: optax.Updates  # like the parameters, float32 or wider: averaged curvature h


def scale_by_sophia(
    b1: ArrayLike | None = None,
    b2: ArrayLike = 0.99,
    *,
    gamma: ArrayLike | None = None,
    eps: ArrayLike | None = None,
    variant: str = "official",
) -> optax.GradientTransformationExtraArgs:
    """The direction u of Sophia, every coordinate in [-1, 1], without rate or weight decay.

    `update` takes `curvature`, an estimate like the parameters, or None to keep the last one.

    Args:
      b1: decay of the momentum, in [0, 1); None for the variant's, 0.965 (official) or 0.96.
      b2: decay of the diagonal, in [0, 1), a new estimate.
      gamma: rho in the code, scale of the diagonal; larger shortens steps. None for 0.04 (official)
        or 0.05 (the paper's for Gauss-Newton; 0.01 is its for Hutchinson).
      eps: added to the divisor (official, where None is 1e-15), or its least value (paper, 1e-12).
      variant: "official" or "paper".

    Raises:
      ValueError: variant is neither, b1 or b2 is a number outside [0, 1), gamma or eps is a number
        that is not positive, or update is called without curvature. Traced values are not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_sophia(b1=0.0, b2=0.0, gamma=1.0)
    >>> params = jnp.array([1.0, 2.0, 3.0])
    >>> curvature = jnp.array([4.0, 0.5, -1.0])
    >>> gradient = jnp.array([1.0, 1.0, -0.1])
    >>> print(tx.update(gradient, tx.init(params), params, curvature=curvature)[0])
    [ 0.25  1.   -1.  ]
    """
    if variant not in _DEFAULTS:
        raise ValueError(f"sophia: variant is {variant!r}; accepted: {', '.join(_DEFAULTS)}.")
    momentum, scale, least = (
        default if given is None else given
        for given, default in zip((b1, gamma, eps), _DEFAULTS[variant], strict=True)
    )
    trees.check_fractions("sophia", b1=momentum, b2=b2)
    trees.check_positive("sophia", gamma=scale, eps=least)

    def init(params: optax.Params) -> ScaleBySophiaState:
        return ScaleBySophiaState(trees.zeros_like(params), trees.zeros_like(params))

    def direction(m: jax.Array, h: jax.Array) -> jax.Array:
        scaled, floor = trees.as_dtype(scale, h.dtype) * h, trees.as_dtype(least, h.dtype)
        if variant == "paper":
            return jnp.clip(m / jnp.maximum(scaled, floor), -1, 1)
        return jnp.sign(m) * jnp.minimum(jnp.abs(m) / (jnp.maximum(scaled, 0) + floor), 1)

    def update(
        updates: optax.Updates,
        state: ScaleBySophiaState,
        params: optax.Params | None = None,
        *,
        curvature: Any = MISSING,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleBySophiaState]:
        del params, extra_args
        check_given("sophia", curvature)
        consumed = () if curvature is None else (curvature,)
        accepted = trees.all_finite(consumed)

        def rule(g: jax.Array, m: jax.Array, h: jax.Array, *c: jax.Array) -> tuple[jax.Array, ...]:
            m = trees.average(momentum, m, g)
            if c:
                h = jnp.where(accepted, trees.average(b2, h, c[0]), h)
            return direction(m, h), m, h

        updates, (mu, diagonal) = trees.map_leaves(
            rule, updates, (state.mu, state.diagonal), *consumed
        )
        return updates, ScaleBySophiaState(mu, diagonal)

    return optax.GradientTransformationExtraArgs(init, update)


def sophia(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: ArrayLike | None = None,
    b2: ArrayLike = 0.99,
    gamma: ArrayLike | None = None,
    eps: ArrayLike | None = None,
    variant: str = "official",
    weight_decay: optax.ScalarOrSchedule = 0.1,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Sophia; the weight decay is multiplied by the rate, as the authors do.

    Args:
      learning_rate: longest step lr of a coordinate, or a schedule of it.
      b1: decay of the momentum, in [0, 1); None for the variant's, 0.965 (official) or 0.96.
      b2: decay of the diagonal, in [0, 1), a new estimate.
      gamma: scale of the diagonal; None for 0.04 (official) or 0.05. The authors ask for one at
        which a tenth to a half of the coordinates step by less than lr.
      eps: added to the divisor (official, where None is 1e-15), or its least value (paper, 1e-12).
      variant: "official" or "paper".
      weight_decay: decoupled decay wd, or a schedule of it.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.

    Raises:
      ValueError: as `scale_by_sophia`.

    >>> import jax, jax.numpy as jnp, optim
    >>> tx = optim.with_curvature(optim.sophia(0.01, weight_decay=0.0), every=10, start=10)
    >>> loss_fn = lambda params: jnp.sum(params**2)
    >>> params = jnp.array([1.0, -2.0])
    >>> extras = {"curvature_fn": optim.hutchinson(loss_fn), "key": jax.random.key(0)}
    >>> updates, _ = tx.update(jax.grad(loss_fn)(params), tx.init(params), params, **extras)
    >>> print(updates)
    [-0.01  0.01]
    """
    return optax.chain(
        scale_by_sophia(b1, b2, gamma=gamma, eps=eps, variant=variant),
        trees.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
