"""Mirror descent: gradient steps in the geometry of a set.

With phi the map's function and s_k the step::

    x+ = argmin over the set of s_k grad f(x)'z + D_phi(z, x) = T(x)

which by entropy on the simplex is x exp(-s_k grad f(x)), divided by its sum, and with phi = |x|^2/2
projected gradient. `bilevel.mirror_descent_map` is T.

*Residual.* |x - T(x)| / s_k, at the x returned.

*Differences.* From jaxopt: (1) its error is of the x before the one returned. (2) Entropy on the
simplex is the default, in the form that has a derivative where x_i = 0. (3) The derivative is by T
at the given step; by jaxopt, and here with a schedule, at s = 1.

*Cost.* A step takes a gradient and a projection; 2 vectors. `evaluations` counts gradients.

*Reference.* Beck and Teboulle, Mirror descent and nonlinear projected subgradient methods, 2003;
jaxopt 0.8.5.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from bilevel import checks
from bilevel.differentiation import maps
from bilevel.inner_solvers import solving
from optim import trees


def mirror_descent(
    objective_fn: Callable[[Any], jax.Array],
    init: Any,
    *,
    step: optax.ScalarOrSchedule,
    projection_fn: Callable[[Any], Any] | None = None,
    mapping_fn: Callable[[Any], Any] | None = None,
    tolerance: ArrayLike = 1e-2,
    max_steps: ArrayLike = 500,
    **derivative: Any,
) -> tuple[Any, solving.InnerInfo]:
    """Minimises objective_fn over a set.

    By entropy, start inside, such as at the middle: what is zero stays zero.

    Args:
      objective_fn: x -> a scalar, differentiable.
      init: where x starts, a pytree of floats, in the set.
      step: positive; or a function of the count of steps before, such as
        `lambda count: 1 / jnp.sqrt(count + 1)`.
      projection_fn, mapping_fn: as `bilevel.mirror_descent_map` takes them; by default entropy, on
        the simplex in the last axis of every leaf.
      tolerance: of the residual, absolute.
      max_steps: most steps.
      **derivative: options of `bilevel.attach_root`.

    Returns:
      (x, info): x with the derivative of the exact solution by all that the functions close over,
      and the `bilevel.InnerInfo`.

    Raises:
      ValueError: step is not positive, tolerance negative, max_steps less than 1, init is not of
        real floats, there is a mapping_fn alone, or an option of `derivative` is refused.

    >>> import jax, jax.numpy as jnp, bilevel
    >>> def solution(c):  # softmax(c)
    ...     x, _ = bilevel.mirror_descent(
    ...         lambda x: jnp.sum(x * jnp.log(x) - c * x),
    ...         jnp.ones(2) / 2,
    ...         step=0.5,
    ...         tolerance=1e-4,
    ...     )
    ...     return x[0]
    >>> c = jnp.array([jnp.log(3.0), 0.0])
    >>> print(f"{solution(c):.2f} {jax.grad(solution)(c)[0]:.2f}")
    0.75 0.19
    """
    method = "mirror_descent"
    fixed = 1.0 if callable(step) else step
    trees.check_positive(method, step=fixed)
    mapped = maps.mirror_descent_map(objective_fn, projection_fn, mapping_fn, fixed)

    def residual_of(x: Any, mapped: Any, s: jax.Array) -> jax.Array:
        return trees.norm(jax.tree.map(jnp.subtract, trees.promote(x), trees.promote(mapped))) / s

    def loop(init: Any) -> tuple[Any, solving.InnerInfo]:
        dtype = trees.accumulator_dtype(*jax.tree.leaves(init))

        def body(carry: Any) -> Any:
            _, x, _, count = carry
            s = trees.value_at(step, count, dtype)
            stepped = maps.mirror_descent_map(objective_fn, projection_fn, mapping_fn, s)(x)
            following = checks.like(method, "projection_fn", stepped, x)
            return x, following, residual_of(x, following, s), count + 1

        def goes_on(carry: Any) -> jax.Array:
            _, _, residual, count = carry
            return (residual > tolerance) & (count < max_steps)

        start = (init, init, jnp.asarray(jnp.inf, dtype), jnp.int32(0))
        x, _, residual, count = jax.lax.while_loop(goes_on, body, start)
        return x, solving.InnerInfo(residual, count, count, residual <= tolerance)

    return solving.answer(
        method,
        lambda x: jax.tree.map(jnp.subtract, x, mapped(x)),
        init,
        loop,
        tolerance=tolerance,
        max_steps=max_steps,
        **derivative,
    )
