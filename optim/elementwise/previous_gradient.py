"""The gradient of this step's batch at the parameters of the step before, or its change since.

With parameters `p_t` and batch `b_t` of step t, the loss `f`, and q drawn evenly from [0, 1]::

    previous_gradient   h_t = grad f(p_{t-1}, b_t)                      h_1 = 0
    gradient_change     c_t = Hess f(q p_t + (1 - q) p_{t-1}, b_t) (p_t - p_{t-1})    c_1 = 0

are handed to the wrapped transformation; MARS in its exact form reads the first, HARPG the second.
The mean of c_t over q is grad f(p_t, b_t) - grad f(p_{t-1}, b_t).

*Differences.* The authors of MARS compute h_{t+1} before step t, from the batch that comes next,
and keep that gradient; here the parameters are kept, so that a step needs its own batch alone. The
numbers are the same, h_1 = 0 included; in the paper the first step has no correction. In the paper
of HARPG the Hessian is of a return, whose samples are drawn from the policy of the parameters
between, and has terms for that; a loss has samples of its own.

*Cost.* A copy of the parameters, and a step but for the first, a second gradient or a product with
the Hessian, 2.2 gradients.

*Reference.* Yuan et al., MARS: Unleashing the Power of Variance Reduction for Training Large
Models, 2024 (arXiv:2411.10438); AGI-Arena/MARS@4831e28eba86, MARS/train_mars.py. Fatkhullin et al.,
Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies,
2023 (arXiv:2302.01734).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim import trees
from optim.curvature.space import Space

GradFn = Callable[[optax.Params], optax.Updates]


class WithPreviousParamsState(NamedTuple):
    """State of `with_previous_gradient` and `with_gradient_change`."""

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

    def gradient(previous: optax.Params, params: optax.Params, grad_fn: GradFn) -> optax.Updates:
        del params
        return trees.promote(grad_fn(previous))

    return _with_previous_params("with_previous_gradient", inner, "previous_gradient", gradient)


def with_gradient_change(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """`inner`, given `gradient_change`; put this outermost, where all parameters are seen.

    `update` takes `grad_fn`, as `with_previous_gradient` does, and `key`, of this step.

    Args:
      inner: a transformation that takes `gradient_change`.

    Raises:
      ValueError: `update` is called without `grad_fn`, `key` or parameters.

    >>> import jax, jax.numpy as jnp, optim
    >>> tx = optim.with_gradient_change(optim.harpg(0.01))
    >>> params, key = jnp.ones(2), jax.random.key(0)
    >>> grad_fn = jax.grad(lambda params: jnp.sum(params**2))
    >>> arguments = {"grad_fn": grad_fn, "key": key}
    >>> updates, state = tx.update(grad_fn(params), tx.init(params), params, **arguments)
    """
    method = "with_gradient_change"

    def change(
        previous: optax.Params, params: optax.Params, grad_fn: GradFn, key: jax.Array
    ) -> optax.Updates:
        space = Space(method, params)
        now, then = space.coordinates(params), space.coordinates(previous)
        q = jax.random.uniform(trees.named_key(key, method))
        between = [trees.average(q, x, y) for x, y in zip(now, then, strict=True)]
        step = [x - y for x, y in zip(now, then, strict=True)]
        gradient = space.function(lambda params: space.coordinates(grad_fn(params)), params)
        return space.tree(jax.jvp(gradient, (between,), (step,))[1])

    return _with_previous_params(method, inner, "gradient_change", change, ("key",))


def _with_previous_params(
    method: str,
    inner: optax.GradientTransformation,
    argument: str,
    value: Callable[..., Any],
    needed: tuple[str, ...] = (),
) -> optax.GradientTransformationExtraArgs:
    """`inner`, given `argument` = value(previous, params, grad_fn, *needed), 0 at first."""
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> WithPreviousParamsState:
        copied = jax.tree.map(jnp.copy, params)
        return WithPreviousParamsState(jnp.zeros((), jnp.int32), copied, inner.init(params))

    def update(
        updates: optax.Updates,
        state: WithPreviousParamsState,
        params: optax.Params | None = None,
        *,
        grad_fn: GradFn | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WithPreviousParamsState]:
        given = {name: extra_args.get(name) for name in needed}
        for name, found in {"grad_fn": grad_fn, **given, "params": params}.items():
            if found is None:
                calls = ", ".join(["", *(f"{name}={name}" for name in needed)])
                raise ValueError(
                    f"{method}: {name} is missing; pass tx.update(gradient, state, params, "
                    f"grad_fn=lambda params: jax.grad(loss)(params, batch){calls})."
                )

        def later(previous: optax.Params) -> optax.Updates:
            return value(previous, params, grad_fn, *given.values())

        def first(previous: optax.Params) -> optax.Updates:
            return trees.zeros_like(jax.eval_shape(later, previous))

        found = jax.lax.cond(state.steps > 0, later, first, state.params)
        # Where the gradient has no leaf, this one has none either.
        found = jax.tree.map(
            lambda g, h: None if g is None else h, updates, found, is_leaf=lambda x: x is None
        )
        updates, inner_state = inner.update(
            updates, state.inner_state, params, **{argument: found}, **extra_args
        )
        copied = jax.tree.map(jnp.copy, params)
        steps = optax.safe_increment(state.steps)
        return updates, WithPreviousParamsState(steps, copied, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
