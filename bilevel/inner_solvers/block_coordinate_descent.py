"""Block coordinate descent for a loss of a linear map: the least L(A x) + b'x + sum_i g_i(x_i).

The blocks x_i are the rows of x, and a_i are the columns of A. In turn, with p = A x::

    s_i = 1 / (c |a_i|^2),   c a bound of the curvature of L
    x_i+ = prox_{s_i g_i}(x_i - s_i (a_i' grad L(p) + b_i))
    p+ = p + a_i (x_i+ - x_i)

so that a sweep over all blocks costs about a product with A and one with A'.

*Residual.* sqrt(sum_i |x_i - x_i+|^2 / s_i^2) with all blocks moved at once, at the x returned. It
is computed where the moves of a sweep are as small as the tolerance, and at the end.

*Differences.* From jaxopt: (1) its step for a mean of n losses is n times too short, since its
constants are those of the sum. (2) Its error is the length of a sweep's moves, which is small where
steps are. (3) A column of zeros has an infinite step there, and NaN; here a step of 1. (4) p is
computed anew before each sweep, so that rounding does not add up. (5) A is transposed once, so that
its columns are read from memory in order. (6) L, A and b are arguments, and not an object's.

*Cost.* A sweep reads A twice: for p, and for the blocks, one after the other. x, p, A'.
`evaluations` counts gradients of L.

*Reference.* Wright, Coordinate descent algorithms, 2015; jaxopt 0.8.5.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bilevel.differentiation import maps
from bilevel.inner_solvers import solving
from optim import trees


def block_coordinate_descent(
    loss_fn: Callable[[jax.Array], jax.Array],
    init: jax.Array,
    *,
    matrix: jax.Array,
    block_prox_fn: Callable[[jax.Array, jax.Array], jax.Array],
    smoothness: ArrayLike,
    linear: ArrayLike = 0.0,
    tolerance: ArrayLike = 1e-4,
    max_steps: ArrayLike = 500,
    **derivative: Any,
) -> tuple[jax.Array, solving.InnerInfo]:
    """Minimises loss_fn(matrix @ x) + sum(linear * x) + sum_i g(x[i]).

    Args:
      loss_fn: L, of (m, ...) -> a scalar, differentiable.
      init: where x starts, (n, ...).
      matrix: A, (m, n).
      block_prox_fn: (block, scaling) -> a block, the proximal operator of g, such as
        `lambda block, s: bilevel.prox_group_lasso(block, 0.1, s)`.
      smoothness: c, a bound of the eigenvalues of the Hessian of loss_fn: 1 for half the sum of
        squares, 1/4 for a sum of logistic losses, 1/2 for softmax, and 1 / m of that for a mean;
        or (m,), one for each row.
      linear: b, shaped as x, or what broadcasts to it.
      tolerance: of the residual, absolute.
      max_steps: most sweeps.
      **derivative: options of `bilevel.attach_root`.

    Returns:
      (x, info): x with the derivative of the exact solution by all that the functions close over,
      matrix and linear; and the `bilevel.InnerInfo`, whose iterations are sweeps.

    Raises:
      ValueError: matrix is not of shape (m, n), tolerance or smoothness is negative, max_steps less
        than 1, init is not of real floats, or an option of `derivative` is refused.

    >>> import jax, jax.numpy as jnp, bilevel
    >>> a, b = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([3.0, 4.0])
    >>> def solution(strength):
    ...     x, _ = bilevel.block_coordinate_descent(
    ...         lambda p: jnp.sum((p - b) ** 2) / 2,
    ...         jnp.zeros(2),
    ...         matrix=a,
    ...         block_prox_fn=lambda x, s: bilevel.prox_lasso(x, strength, s),
    ...         smoothness=1.0,
    ...     )
    ...     return x
    >>> print(solution(1.0), jax.jacobian(solution)(1.0))  # 3 - 1, 2 - 1 / 4
    [2.   1.75] [-1.   -0.25]
    """
    method = "block_coordinate_descent"
    trees.check_at_least(method, 0, smoothness=smoothness)
    if jnp.ndim(init) == 0 or jnp.ndim(matrix) != 2 or matrix.shape[1] != len(init):
        raise ValueError(
            f"{method}: matrix has the shape {jnp.shape(matrix)} and init {jnp.shape(init)}; "
            "accepted: (m, n) and (n, ...)."
        )

    def objective(x: jax.Array) -> jax.Array:
        return loss_fn(matrix @ x) + jnp.sum(linear * x)

    dtype = trees.accumulator_dtype(init)
    columns = jnp.asarray(matrix, dtype).T
    constants = jnp.sum(trees.as_dtype(smoothness, dtype) * columns**2, axis=1)
    steps = jax.lax.stop_gradient(1 / jnp.where(constants > 0, constants, 1))
    mapped = maps.block_proximal_map(objective, block_prox_fn, steps)
    return solving.answer(
        method,
        lambda x: x - mapped(x),
        init,
        lambda x: _loop(
            objective, loss_fn, x, columns, block_prox_fn, steps, linear, tolerance, max_steps
        ),
        tolerance=tolerance,
        max_steps=max_steps,
        **derivative,
    )


def _loop(
    objective: Callable[[jax.Array], jax.Array],
    loss_fn: Callable[[jax.Array], jax.Array],
    init: jax.Array,
    columns: jax.Array,
    block_prox_fn: Callable[[jax.Array, jax.Array], jax.Array],
    steps: jax.Array,
    linear: ArrayLike,
    tolerance: ArrayLike,
    max_steps: ArrayLike,
) -> tuple[jax.Array, solving.InnerInfo]:
    dtype = steps.dtype
    slopes = jnp.broadcast_to(trees.as_dtype(linear, dtype), init.shape)
    gradient_fn = jax.grad(loss_fn)
    all_at_once = maps.block_proximal_map(objective, block_prox_fn, steps)

    def block(i: jax.Array, carry: Any) -> Any:
        x, p, squares = carry
        gradient = jnp.tensordot(columns[i], gradient_fn(p).astype(dtype), 1) + slopes[i]
        new = block_prox_fn(maps.descended(x[i], gradient, steps[i]), steps[i])
        d = new.astype(dtype) - x[i].astype(dtype)
        moved = (p.astype(dtype) + jnp.multiply.outer(columns[i], d)).astype(p.dtype)
        return x.at[i].set(new.astype(x.dtype)), moved, squares + jnp.sum((d / steps[i]) ** 2)

    def exact(x: jax.Array) -> jax.Array:
        d = all_at_once(x).astype(dtype) - x.astype(dtype)
        return trees.norm(d / steps.reshape(-1, *(1,) * (d.ndim - 1)))

    def sweep(carry: Any) -> Any:
        x, _, sweeps, checks = carry
        start = (x, columns.T @ x, jnp.zeros((), dtype))
        x, _, squares = jax.lax.fori_loop(0, len(init), block, start)
        check = (jnp.sqrt(squares) <= tolerance) | (sweeps + 1 >= max_steps)
        residual = jax.lax.cond(check, exact, lambda _: jnp.sqrt(squares), x)
        return x, residual, sweeps + 1, checks + check

    def goes_on(carry: Any) -> jax.Array:
        _, residual, sweeps, _ = carry
        return (residual > tolerance) & (sweeps < max_steps)

    start = (init, jnp.asarray(jnp.inf, dtype), jnp.int32(0), jnp.int32(0))
    x, residual, sweeps, checks = jax.lax.while_loop(goes_on, sweep, start)
    evaluations = sweeps * len(init) + checks
    return x, solving.InnerInfo(residual, sweeps, evaluations, residual <= tolerance)
