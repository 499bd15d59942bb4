"""Trajectory matching in constant memory, TESLA: the gradient for distilled data in two passes.

T steps of gradient descent on the data x, of rate beta, and how far from the target they end::

    theta_{i+1} = theta_i - beta g_i,   g_i = d loss_fn(theta_i, x, batch_i)/d theta
    G = sum_i g_i
    loss = |theta_0 - beta G - target|^2 / |theta_0 - target|^2

The first pass takes the steps and sums G. The second takes them again, and each adds its part::

    c = 2 beta (target - theta_0 + beta G) / |theta_0 - target|^2
    d loss/dx = sum_i d<c, g_i>/dx,   every theta_i held fast
    d loss/d beta = -2 <theta_0 - beta G - target, G> / |theta_0 - target|^2

So theta_i counts as a constant: how a step's data move the gradients of later steps is left out,
and G is held fast in the rate's derivative. The method is meant so.

*Differences.* From the authors' code: (1) they write the 2 of c as `2 * autograd.grad(...)`, which
doubles a tuple and no number, so that their gradient of the data is half of this one. (2) They keep
every theta_i, here they are computed twice, so that memory does not grow with T at all.

*Cost.* T gradients of loss_fn, and T times its gradient with the product for d<c, g_i>/dx, about
three gradients. Four trees like theta and one like x, whatever T is.

*Reference.* Cui et al., Scaling up dataset distillation to ImageNet-1K with constant memory, 2023;
justincui03/tesla.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel import checks
from optim import trees
from optim.solvers import linear


def trajectory_matching(
    loss_fn: Callable[[Any, Any, Any], jax.Array],
    x: Any,
    rate: ArrayLike,
    start: Any,
    target: Any,
    batches: Any,
) -> tuple[jax.Array, tuple[Any, jax.Array]]:
    """The matching loss of T steps, and its gradients by the data and by the rate.

    Args:
      loss_fn: (theta, x, batch) -> a scalar, which the steps descend.
      x: what is learned: the distilled data, with soft labels if one likes; a pytree of floats.
      rate: beta, of all the steps.
      start: theta_0, a pytree of floats.
      target: a tree like start, another one, at which the steps should arrive.
      batches: a pytree of arrays whose first axis is the step: what loss_fn is given at each, such
        as the indices into x; T is its length.

    Returns:
      (loss, (gradient, rate_gradient)): gradient like x, the others scalars.

    Raises:
      ValueError: x, start or target has a leaf that is not real and floating, target is not shaped
        as start is, or batches holds no array or arrays of different lengths.

    >>> import jax.numpy as jnp, bilevel
    >>> def loss_fn(theta, x, index):
    ...     return (theta - x[index]) ** 2 / 2
    >>> x, indices = jnp.array([1.0, 3.0]), jnp.array([0, 1])
    >>> loss, (gradient, slope) = bilevel.trajectory_matching(loss_fn, x, 0.5, 0.0, 2.0, indices)
    >>> print(loss, gradient, slope)  # 0 -> 0.5 -> 1.75, of the 2
    0.015625 [-0.0625 -0.0625] -0.4375
    """
    name = "trajectory_matching"
    x, start = checks.floats(name, "x", x), checks.floats(name, "start", start)
    target = checks.floats(name, "target", target)
    linear.check_like(name, "target is", target, start, "start")
    lengths = sorted({jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)})
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(
            f"{name}: batches has leaves whose first axes are {lengths}; accepted: one length for "
            "all, the number of steps."
        )
    beta = trees.as_dtype(rate, trees.accumulator_dtype(*jax.tree.leaves(start)))
    slope = jax.grad(loss_fn)

    def descend(theta: Any, g: Any) -> Any:
        return jax.tree.map(lambda u, v: u - beta.astype(u.dtype) * v, theta, g)

    def first(carry: Any, batch: Any) -> tuple[Any, None]:
        theta, total = carry
        g = slope(theta, x, batch)
        return (descend(theta, g), jax.tree.map(jnp.add, total, g)), None

    zeros = trees.zeros_like(start)
    (_, total), _ = jax.lax.scan(first, (trees.promote(start), zeros), batches)
    gap = jax.tree.map(lambda u, v: trees.promote(u) - trees.promote(v), start, target)
    distance = linear.vdot(gap, gap)
    missed = linear.axpy(-beta, total, gap)
    loss = linear.vdot(missed, missed) / distance
    cotangent = linear.times(-2 * beta / distance, missed)

    def second(carry: Any, batch: Any) -> tuple[Any, None]:
        theta, gradient = carry
        g, pull = jax.vjp(lambda x: slope(theta, x, batch), x)
        gradient = jax.tree.map(jnp.add, gradient, pull(cotangent)[0])
        return (descend(theta, g), gradient), None

    carry = (trees.promote(start), trees.zeros_like(x))
    (_, gradient), _ = jax.lax.scan(second, carry, batches)
    gradient = jax.tree.map(lambda u, v: u.astype(v.dtype), gradient, x)
    return loss, (gradient, -2 * linear.vdot(missed, total) / distance)
