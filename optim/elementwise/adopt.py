"""ADOPT: Adam whose denominator has not seen the gradient that it divides.

With gradient `g`, momentum `m` and second moment `v` (0 at the start), parameters `p`, rate `lr`,
decay `wd` and the clip `c(n)` after n gradients, the first gradient only fills the second moment::

    v = g^2

and every later one, of which n = 1, 2, ... came before, makes the step::

    u = clip(g / max(sqrt(v), eps), -c(n), c(n))
    m = b1 m + (1 - b1) u
    p = p - lr m
    v = b2 v + (1 - b2) g^2

The decay is coupled, g + wd p in place of g, or with `decouple` p - lr (m + wd p) in the step. So
the first call leaves the parameters where they are, decoupled decay or not.

*Differences.* From the authors' code: none. From `optax.contrib.adopt`: it has no weight decay, it
holds moments in the dtype of the parameters, and its Nesterov momentum, which the authors have not,
is left out. The authors' default rate is 1e-3; here, as in optax, it has to be given.

*Cost.* Two moments: 8 bytes a parameter, 6 with `mu_dtype="bfloat16"`. No extra pass.

*Reference.* Taniguchi et al., ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal
Rate, 2024 (arXiv:2411.02853); iShohei220/adopt@6468572b4b36, src/adopt/adopt.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optim import trees


class ScaleByAdoptState(NamedTuple):
    """State of `scale_by_adopt`."""

    steps: jax.Array  # (), int32, gradients seen: n
    mu: optax.Updates  # like the parameters, float32 or wider (or mu_dtype): momentum m
    nu: optax.Updates  # like the parameters, float32 or wider: second moment v


def fourth_root(step: ArrayLike) -> jax.Array:
    """The authors' clip c(n) = n^(1/4)."""
    return jnp.asarray(step) ** 0.25


def scale_by_adopt(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.9999,
    eps: ArrayLike = 1e-6,
    *,
    clip_value_fn: Callable[[jax.Array], ArrayLike] | None = fourth_root,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The momentum m of ADOPT, zero at the first call, without rate or weight decay.

    Args:
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: least denominator.
      clip_value_fn: the clip c, from the number of gradients before this one; None for no clip.
      mu_dtype: dtype of the momentum; by default the parameter's, float32 at least.

    Raises:
      ValueError: b1 or b2 is a number outside [0, 1), or eps is negative. Traced values are not
        checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_adopt(b1=0.5)
    >>> state = tx.init(jnp.array([1.0, 1.0]))
    >>> for gradient in (jnp.array([2.0, 4.0]), jnp.array([1.0, 8.0])):
    ...     updates, state = tx.update(gradient, state)
    >>> print(updates)  # half of 1 / 2, and half of 8 / 4 clipped to 1
    [0.25 0.5 ]
    """
    trees.check_fractions("adopt", b1=b1, b2=b2)
    trees.check_at_least("adopt", 0, eps=eps)

    def init(params: optax.Params) -> ScaleByAdoptState:
        return ScaleByAdoptState(
            jnp.zeros((), jnp.int32), trees.zeros_like(params, mu_dtype), trees.zeros_like(params)
        )

    def update(
        updates: optax.Updates,
        state: ScaleByAdoptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdoptState]:
        del params, extra_args
        first = state.steps == 0

        def rule(g: jax.Array, m: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
            u = g / jnp.maximum(jnp.sqrt(v), trees.as_dtype(eps, g.dtype))
            if clip_value_fn is not None:
                clip = trees.as_dtype(clip_value_fn(state.steps.astype(g.dtype)), g.dtype)
                u = jnp.clip(u, -clip, clip)
            square = jnp.square(g)
            m = jnp.where(first, m, trees.average(b1, m, u))
            return m, m, jnp.where(first, square, trees.average(b2, v, square))

        updates, (mu, nu) = trees.map_leaves(rule, updates, (state.mu, state.nu))
        return updates, ScaleByAdoptState(optax.safe_increment(state.steps), mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def adopt(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.9999,
    eps: ArrayLike = 1e-6,
    clip_value_fn: Callable[[jax.Array], ArrayLike] | None = fourth_root,
    mu_dtype: DTypeLike | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    decouple: bool = False,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """ADOPT; the weight decay joins the gradient, or the step when it is decoupled.

    Args:
      learning_rate: rate lr, or a schedule of it.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: least denominator.
      clip_value_fn: the clip c, from the number of gradients before this one; None for no clip.
      mu_dtype: dtype of the momentum; by default the parameter's, float32 at least.
      weight_decay: decay wd, or a schedule of it.
      decouple: whether the decay is multiplied by the rate and kept out of the moments.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.

    Raises:
      ValueError: b1 or b2 is a number outside [0, 1), or eps is negative. Traced values are not
        checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.adopt(0.1, weight_decay=0.1, decouple=True)
    >>> params = jnp.array([1.0, 2.0])
    >>> updates, state = tx.update(jnp.array([0.5, -4.0]), tx.init(params), params)
    >>> print(optim.apply_updates(params, updates))
    [1. 2.]
    """
    direction = scale_by_adopt(b1, b2, eps, clip_value_fn=clip_value_fn, mu_dtype=mu_dtype)
    if decouple:
        decay = trees.add_decayed_weights(_from_the_second_call(weight_decay), mask)
        steps = (direction, decay)
    else:
        decay = trees.add_decayed_weights(weight_decay, mask)
        promoted = optax.stateless(lambda updates, params: trees.promote(updates))
        steps = (optax.chain(promoted, decay), direction)
    return optax.chain(*steps, optax.scale_by_learning_rate(learning_rate))


def _from_the_second_call(value: optax.ScalarOrSchedule) -> optax.Schedule:
    return lambda count: jnp.where(count > 0, value(count) if callable(value) else value, 0.0)
