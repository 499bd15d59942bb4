"""The gradient of this step's batch at the parameters of the step before.

With parameters `p_t` and batch `b_t` of step t, and the loss `f`::

    h_t = grad f(p_{t-1}, b_t)        h_1 = 0

is handed to the wrapped transformation as `previous_gradient`; MARS in its exact form reads it.

*Differences.* The authors of MARS compute h_{t+1} before step t, from the batch that comes next,
and keep that gradient; here the parameters are kept, so that a step needs its own batch alone. The
numbers are the same, h_1 = 0 included; in the paper the first step has no correction.

*Cost.* A copy of the parameters, and a second gradient a step but for the first.

*Reference.* Yuan et al., MARS: Unleashing the Power of Variance Reduction for Training Large
Models, 2024 (arXiv:2411.10438); AGI-Arena/MARS@4831e28eba86, MARS/train_mars.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim import trees


class WithPreviousGradientState(NamedTuple):
    """State of `with_previous_gradient`."""

    steps: jax.Array  # (), int32, steps done
    params: optax.Params  # like the parameters, in their dtypes: those of the step before
    inner_state: optax.OptState


def with_previous_gradient(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """`inner`, given `previous_gradient`; put this outermost, where all parameters are seen.

    `update` takes `grad_fn`, a function from parameters to the gradient of this step's batch, of
    the same randomness (dropout, say) as the gradient that it is given.

    Args:
      inner: a transformation that takes `previous_gradient`.

    Raises:
      ValueError: `update` is called without `grad_fn` or without parameters.

    >>> import jax, jax.numpy as jnp, optim
    >>> tx = optim.with_previous_gradient(optim.mars(0.01, approximate=False))
    >>> params = jnp.ones((2, 2))
    >>> grad_fn = jax.grad(lambda params: jnp.sum(params**2))
    >>> updates, state = tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> WithPreviousGradientState:
        copied = jax.tree.map(jnp.copy, params)
        return WithPreviousGradientState(jnp.zeros((), jnp.int32), copied, inner.init(params))

    def update(
        updates: optax.Updates,
        state: WithPreviousGradientState,
        params: optax.Params | None = None,
        *,
        grad_fn: Callable[[optax.Params], optax.Updates] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WithPreviousGradientState]:
        if grad_fn is None or params is None:
            missing = "grad_fn" if grad_fn is None else "params"
            raise ValueError(
                f"with_previous_gradient: {missing} is missing; pass tx.update(gradient, state, "
                f"params, grad_fn=lambda params: jax.grad(loss)(params, batch))."
            )

        def gradient(params: optax.Params) -> optax.Updates:
            return trees.promote(grad_fn(params))

        def first(params: optax.Params) -> optax.Updates:
            return trees.zeros_like(jax.eval_shape(gradient, params))

        previous = jax.lax.cond(state.steps > 0, gradient, first, state.params)
        # Where the gradient has no leaf, this one has none either.
        previous = jax.tree.map(
            lambda g, h: None if g is None else h, updates, previous, is_leaf=lambda x: x is None
        )
        updates, inner_state = inner.update(
            updates, state.inner_state, params, previous_gradient=previous, **extra_args
        )
        copied = jax.tree.map(jnp.copy, params)
        steps = optax.safe_increment(state.steps)
        return updates, WithPreviousGradientState(steps, copied, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
