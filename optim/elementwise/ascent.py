"""The gradient after a step of ascent, for whatever optimizer follows (FedSpeed's local step, SAM).

With the loss f of one batch, its gradient `g` at the parameters `p`, the radius `r` and the weight
`a` of the second gradient::

    e = r g / (|g| + 1e-7)
    g = (1 - a) g + a grad f(p + e)

|g| is the norm over all leaves; the optimizer inside sees the new g at p.

*Differences.* With a = 1, the default, that is the authors' code; the weighted sum is the paper's.
The prox-term and the correction of FedSpeed belong to its clients, not to this wrapper.
`optax.contrib.sam` alternates whole steps of ascent and descent, with a state for each; here one
update is one step of descent.

*Cost.* No state; a second gradient every step.

*Reference.* Sun et al., FedSpeed: Larger Local Interval, Less Communication Round, and Higher
Generalization Accuracy, 2023 (arXiv:2302.10429); woodenchild95/FL-Simulator@502bec655701,
optimizers/ESAM.py. Foret et al., Sharpness-Aware Minimization for Efficiently Improving
Generalization, 2021 (arXiv:2010.01412).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


def with_ascent_gradient(
    inner: optax.GradientTransformation, *, radius: ArrayLike = 0.1, weight: ArrayLike = 1.0
) -> optax.GradientTransformationExtraArgs:
    """`inner`, given the gradient at a point `radius` uphill; the outermost wrapper.

    Its update takes the extra argument `grad_fn`: parameters -> gradient, on the batch (and with
    the random keys) that the gradient handed over was taken on.

    Args:
      inner: any transformation.
      radius: length r of the ascent of all parameters together; rho in the papers.
      weight: a, in [0, 1]; 1 for the second gradient alone.

    Raises:
      ValueError: radius is a negative number, weight a number outside [0, 1], or the update is
        called without params or grad_fn. Traced values are not checked.

    >>> import jax, jax.numpy as jnp, optax, optim
    >>> grad_fn = jax.grad(lambda p: jnp.sum(p**2))
    >>> tx = optim.with_ascent_gradient(optax.sgd(0.25), radius=1.0)
    >>> params = jnp.array([3.0])
    >>> updates, _ = tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)
    >>> print(updates)  # a quarter of the gradient at 4
    [-2.]
    """
    trees.check_at_least("with_ascent_gradient", 0, radius=radius)
    if isinstance(weight, int | float) and not 0 <= weight <= 1:
        raise ValueError(f"with_ascent_gradient: weight is {weight}; accepted: 0 <= weight <= 1.")
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        grad_fn: Callable[[optax.Params], optax.Updates] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None or grad_fn is None:
            missing = "params" if params is None else "grad_fn"
            raise ValueError(
                f"with_ascent_gradient: {missing} is None; call update(updates, state, params, "
                "grad_fn=grad_fn) with a function from parameters to the gradient of this batch."
            )
        length = trees.norm(updates)
        scale = trees.as_dtype(radius, length.dtype) / (length + 1e-7)

        def climb(g: ArrayLike | None, p: Any) -> Any:
            if g is None or not jnp.issubdtype(jnp.result_type(p), jnp.inexact):
                return p
            dtype = trees.accumulator_dtype(p)
            step = scale.astype(dtype) * trees.as_dtype(g, dtype)
            return (jnp.asarray(p, dtype) + step).astype(jnp.result_type(p))

        def mix(g: jax.Array, ahead: jax.Array) -> tuple[jax.Array]:
            return (trees.average(1 - weight, g, ahead),)

        ahead = grad_fn(jax.tree.map(climb, updates, params, is_leaf=lambda g: g is None))
        updates, _ = trees.map_leaves(mix, updates, (), ahead)
        return inner.update(updates, state, params, grad_fn=grad_fn, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update)
