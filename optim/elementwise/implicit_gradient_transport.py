"""Normalized descent with implicit gradient transport (N-PG-IGT, NIGT).

With the iterate `x` (x' one step earlier, x' = x at the start), the rate `lr` and the weight of a
new gradient `w`, step t = 0, 1, ... takes its gradient `g` at a point `z` ahead of the iterate::

    w = (2 / (t + 2))^(4/5)
    z = x + (1 - w) / w (x - x')
    d = (1 - w) d + w g(z)
    x = x - lr d / |d|

|d| is the norm over all leaves. Moving the point carries the average along: were g linear, without
noise d would be the gradient at x exactly, whatever the steps; the momentum has no bias of the
first order.

The parameters that are trained are z, where the gradient has to be taken; the iterate x is in the
state, and `optim.evaluation_params(state, params)` serves it.

*Differences.* The paper ascends a return, here a loss is descended. The first weight is 1 whatever
the schedule, so that d starts as the first gradient; the paper's is. The paper's rate falls as
1 / (t + 2); here it has to be given.

*Cost.* An average and the iterate: 8 bytes a parameter. No extra gradient, one norm.

*Reference.* Fatkhullin et al., Stochastic Policy Gradient Methods: Improved Sample Complexity for
Fisher-non-degenerate Policies, 2023 (arXiv:2302.01734), N-PG-IGT; Cutkosky and Mehta, Momentum
Improves Normalized SGD, 2020 (arXiv:2002.03305), NIGT, with a constant weight. No official code.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


class ScaleByImplicitGradientTransportState(NamedTuple):
    """State of `scale_by_implicit_gradient_transport`."""

    steps: jax.Array  # (), int32, steps made: t
    average: optax.Updates  # like the parameters, float32 or wider: transported gradient d


class TransportedParamsState(NamedTuple):
    """State of `transported_params`."""

    steps: jax.Array  # (), int32, steps made: t
    iterate: optax.Params  # like the parameters, float32 or wider, without integer leaves: x

    def evaluation_params(self, params: optax.Params) -> optax.Params:
        """The iterate."""
        del params
        return self.iterate


def paper_weight(step: ArrayLike) -> jax.Array:
    """The weight (2 / (t + 2))^(4/5) of N-PG-IGT."""
    return (2 / (jnp.asarray(step, jnp.result_type(float)) + 2)) ** 0.8


def scale_by_implicit_gradient_transport(
    weight: optax.ScalarOrSchedule = paper_weight,
) -> optax.GradientTransformationExtraArgs:
    """The direction d / |d|, from gradients at the points that `transported_params` moves to.

    Zero where d is zero. Without `transported_params` as the last link of the chain, with the same
    weight, it is normalized descent with plain momentum.

    Args:
      weight: w, in (0, 1], or a schedule of it; 1 at the first step whatever it says.

    Raises:
      ValueError: weight is a number outside (0, 1]. Traced values and schedules are not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_implicit_gradient_transport()
    >>> gradient = {"a": jnp.array([3.0]), "b": jnp.array([-4.0])}
    >>> updates, state = tx.update(gradient, tx.init(gradient))
    >>> print(updates["a"], updates["b"])
    [0.6] [-0.8]
    """
    _check(weight)

    def init(params: optax.Params) -> ScaleByImplicitGradientTransportState:
        return ScaleByImplicitGradientTransportState(
            jnp.zeros((), jnp.int32), trees.zeros_like(params)
        )

    def update(
        updates: optax.Updates,
        state: ScaleByImplicitGradientTransportState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByImplicitGradientTransportState]:
        del params, extra_args
        keep = 1 - _at(weight, state.steps)

        def mix(g: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
            mixed = trees.average(keep, d, g)
            return mixed, mixed

        direction, (average,) = trees.map_leaves(mix, updates, (state.average,))
        length = trees.norm(direction)
        divisor = jnp.where(length > 0, length, 1)
        updates = jax.tree.map(lambda d: d / divisor.astype(d.dtype), direction)
        steps = optax.safe_increment(state.steps)
        return updates, ScaleByImplicitGradientTransportState(steps, average)

    return optax.GradientTransformationExtraArgs(init, update)


def transported_params(
    weight: optax.ScalarOrSchedule = paper_weight,
) -> optax.GradientTransformationExtraArgs:
    """Moves the iterate by the update and the parameters to the point z ahead; last of a chain.

    `optim.evaluation_params(state, params)` gives the iterate.

    Args:
      weight: w, in (0, 1], or a schedule of it, as the average of the gradients has it.

    Raises:
      ValueError: weight is a number outside (0, 1], or the update is called without params. Traced
        values and schedules are not checked.

    >>> import jax.numpy as jnp, optax, optim
    >>> tx = optax.chain(optax.sgd(1.0), optim.transported_params(0.25))
    >>> params = jnp.array([4.0])
    >>> updates, state = tx.update(jnp.array([1.0]), tx.init(params), params)
    >>> params = optim.apply_updates(params, updates)
    >>> print(params, optim.evaluation_params(state, params))  # 3 + (1 - 0.25) / 0.25 (3 - 4)
    [0.] [3.]
    """
    _check(weight)

    def init(params: optax.Params) -> TransportedParamsState:
        return TransportedParamsState(jnp.zeros((), jnp.int32), trees.float_copy(params))

    def update(
        updates: optax.Updates,
        state: TransportedParamsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, TransportedParamsState]:
        del extra_args
        if params is None:
            raise ValueError(
                "transported_params: params is None; call update(updates, state, params) with "
                "parameters."
            )
        steps = optax.safe_increment(state.steps)
        w = _at(weight, steps)

        def step(x: Any, u: ArrayLike | None) -> Any:
            return x if u is None or _masked(x) else x + trees.as_dtype(u, x.dtype)

        def ahead(x: Any, u: ArrayLike | None, p: ArrayLike) -> Any:
            if u is None or _masked(x):
                return u
            u = trees.as_dtype(u, x.dtype)
            return x + ((1 - w) / w).astype(x.dtype) * u - jnp.asarray(p, x.dtype)

        iterate = jax.tree.map(step, state.iterate, updates, is_leaf=_masked)
        moved = jax.tree.map(ahead, iterate, updates, params, is_leaf=_masked)
        return moved, TransportedParamsState(steps, iterate)

    return optax.GradientTransformationExtraArgs(init, update)


def implicit_gradient_transport(
    learning_rate: optax.ScalarOrSchedule, *, weight: optax.ScalarOrSchedule = paper_weight
) -> optax.GradientTransformationExtraArgs:
    """Normalized descent with implicit gradient transport; trains z, serves the iterate x.

    Args:
      learning_rate: length lr of a step of all parameters together, or a schedule of it.
      weight: w, in (0, 1], or a schedule of it; 1 at the first step whatever it says.

    Raises:
      ValueError: weight is a number outside (0, 1], or the update is called without params. Traced
        values and schedules are not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.implicit_gradient_transport(1.0)
    >>> params = jnp.array([5.0])
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(2 * params, state, params)  # the gradient of |params|^2
    ...     params = optim.apply_updates(params, updates)
    >>> print(optim.evaluation_params(state, params))  # two steps of length 1 to 0
    [3.]
    """
    return optax.chain(
        scale_by_implicit_gradient_transport(weight),
        optax.scale_by_learning_rate(learning_rate),
        transported_params(weight),
    )


def _at(weight: optax.ScalarOrSchedule, steps: jax.Array) -> jax.Array:
    return jnp.where(steps == 0, 1.0, weight(steps) if callable(weight) else weight)


def _check(weight: optax.ScalarOrSchedule) -> None:
    if isinstance(weight, int | float) and not 0 < weight <= 1:
        raise ValueError(
            f"implicit_gradient_transport: weight is {weight}; accepted: 0 < weight <= 1."
        )


def _masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
