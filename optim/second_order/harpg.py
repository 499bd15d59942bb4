"""HARPG: an average of gradients that a Hessian carries along with the parameters.

With gradient `g` at step t = 0, 1, ..., the change `c` of the batch's gradient since the step
before (see `optim.with_gradient_change`), the weight `w` of a new gradient and the rate `lr`::

    w = 2 / (t + 2)
    d = (1 - w) (d + c) + w g
    p = p - lr d / |d|          p - lr d without `normalize`

|d| is the norm over all leaves. The mean of c is the change of the true gradient, so that the steps
made since leave no bias in d: a reduction of variance from one batch a step, without checkpoints.

*Differences.* The paper ascends a return, here a loss is descended; the correction for samples that
depend on the parameters is the caller's, who may pass `gradient_change` of his own. The first
weight is 1 whatever the schedule, so that d starts as the first gradient; the paper's is. The
paper's rate falls as 1 / (t + 2); here it has to be given.

*Cost.* An average, 4 bytes a parameter; the change costs 2.2 gradients and a copy of the
parameters.

*Reference.* Fatkhullin et al., Stochastic Policy Gradient Methods: Improved Sample Complexity for
Fisher-non-degenerate Policies, 2023 (arXiv:2302.01734), (N)-HARPG. No official code.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


class ScaleByHarpgState(NamedTuple):
    """State of `scale_by_harpg`."""

    steps: jax.Array  # (), int32, steps made: t
    average: optax.Updates  # like the parameters, float32 or wider: d


def recursive_weight(step: ArrayLike) -> jax.Array:
    """The weight 2 / (t + 2) of (N)-HARPG."""
    return 2 / (jnp.asarray(step, jnp.result_type(float)) + 2)


def scale_by_harpg(
    weight: optax.ScalarOrSchedule = recursive_weight, *, normalize: bool = True
) -> optax.GradientTransformationExtraArgs:
    """The direction d / |d| of N-HARPG, or d of HARPG.

    `update` takes `gradient_change`, a tree like the parameters.

    Args:
      weight: w, in (0, 1], or a schedule of it; 1 at the first step whatever it says.
      normalize: whether d is divided by its norm; zero where d is zero.

    Raises:
      ValueError: weight is a number outside (0, 1], or update is called without gradient_change.
        Traced values and schedules are not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_harpg(0.5, normalize=False)
    >>> params, zero = jnp.array([3.0]), jnp.array([0.0])
    >>> _, state = tx.update(jnp.array([6.0]), tx.init(params), gradient_change=zero)
    >>> print(tx.update(jnp.array([5.0]), state, gradient_change=jnp.array([-2.0]))[0])
    [4.5]
    """
    if isinstance(weight, int | float) and not 0 < weight <= 1:
        raise ValueError(f"harpg: weight is {weight}; accepted: 0 < weight <= 1.")

    def init(params: optax.Params) -> ScaleByHarpgState:
        return ScaleByHarpgState(jnp.zeros((), jnp.int32), trees.zeros_like(params))

    def update(
        updates: optax.Updates,
        state: ScaleByHarpgState,
        params: optax.Params | None = None,
        *,
        gradient_change: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByHarpgState]:
        del params, extra_args
        if gradient_change is None:
            raise ValueError(
                "harpg: gradient_change is missing; wrap the whole optimizer, as in "
                "optim.with_gradient_change(optim.harpg(learning_rate)), whose update takes "
                "grad_fn and key."
            )
        at = weight(state.steps) if callable(weight) else weight
        keep = jnp.where(state.steps == 0, 0.0, 1 - at)

        def mix(g: jax.Array, d: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
            mixed = trees.average(keep, d + c, g)
            return mixed, mixed

        updates, (average,) = trees.map_leaves(mix, updates, (state.average,), gradient_change)
        if normalize:
            length = trees.norm(updates)
            divisor = jnp.where(length > 0, length, 1)
            updates = jax.tree.map(lambda d: d / divisor.astype(d.dtype), updates)
        return updates, ScaleByHarpgState(optax.safe_increment(state.steps), average)

    return optax.GradientTransformationExtraArgs(init, update)


def harpg(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight: optax.ScalarOrSchedule = recursive_weight,
    normalize: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Descent along an average that a Hessian carries along; N-HARPG, or HARPG.

    Args:
      learning_rate: length lr of a step of all parameters together, or a schedule of it; of a unit
        of d where it is not normalized.
      weight: w, in (0, 1], or a schedule of it; 1 at the first step whatever it says.
      normalize: whether d is divided by its norm.

    Raises:
      ValueError: as `scale_by_harpg`.

    >>> import jax, jax.numpy as jnp, optim
    >>> tx = optim.with_gradient_change(optim.harpg(1.0))
    >>> params, grad_fn = jnp.array([5.0]), lambda params: 2 * params  # of |params|^2
    >>> state = tx.init(params)
    >>> for step in range(2):
    ...     arguments = {"grad_fn": grad_fn, "key": jax.random.key(step)}
    ...     updates, state = tx.update(grad_fn(params), state, params, **arguments)
    ...     params = optim.apply_updates(params, updates)
    >>> print(params)  # two steps of length 1 to 0
    [3.]
    """
    return optax.chain(
        scale_by_harpg(weight, normalize=normalize), optax.scale_by_learning_rate(learning_rate)
    )
