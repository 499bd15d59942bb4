"""A quadratic program with equality constraints: one linear system.

The conditions of min x'Qx / 2 + c'x where Ax = b, with multipliers y, are::

    Q A' | x     -c
    A 0  | y  =   b

The derivative, by all of Q, c, A and b, is one more solve with the same matrix.

*Differences.* From jaxopt's `EqualityConstrainedQP`: (1) the solve is dense where Q is an array,
and MINRES where it is a function, for the matrix is symmetric; theirs is GMRES. (2) No `fun`: the
product is `lambda v: jax.jvp(jax.grad(fun), (zeros,), (v,))[1]`, and c the gradient at zero.
(3) No refinement of a regularised system: where rows of A depend on one another, give
`solver=optim.minres`, which finds the multipliers of least norm.

*Cost.* Dense: n + m products with Q, A and A', and 2 (n + m)^3 / 3 multiplications. MINRES: one of
each a step.

*Reference.* Nocedal and Wright, Numerical optimization, 2006, chapter 16.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import optim
from bilevel import checks
from bilevel.inner_solvers.solving import InnerInfo
from optim import trees
from optim.solvers.linear import divide


def equality_qp(
    q: Any,
    c: Any,
    a: Any,
    b: Any,
    *,
    solver: Callable[..., tuple[Any, optim.SolveInfo]] | None = None,
    tolerance: ArrayLike = 1e-5,
    max_steps: ArrayLike = 1000,
) -> tuple[tuple[Any, Any], InnerInfo]:
    """Minimises x'Qx / 2 + c'x where Ax = b, with the derivative by Q, c, A and b.

    Q need be positive on the null space of A alone.

    Args:
      q: (n, n), of which the symmetric part counts, or a symmetric linear function of trees like c.
      c: (n,), or a pytree of floats where q and a are functions.
      a: (m, n), of full row rank, or a linear function from trees like c to trees like b.
      b: (m,), or a pytree of floats.
      solver: such as `optim.minres`; it finds the derivative too.
      tolerance: of the residual.
      max_steps: most steps of the solver.

    Returns:
      ((x, y), info): the minimiser and the multipliers, Qx + c + A'y = 0. info is an `InnerInfo`
      whose residual is the norm of that and Ax - b, relative to the norm of c and b.

    Raises:
      ValueError: an array has another shape than these, or is not of real floats.

    >>> import jax, jax.numpy as jnp, bilevel
    >>> def nearest(b):  # to (0, 0) where x_1 + x_2 = b
    ...     (x, _), _ = bilevel.equality_qp(jnp.eye(2), jnp.zeros(2), jnp.ones((1, 2)), b)
    ...     return x
    >>> print(nearest(jnp.ones(1)), jax.jacobian(nearest)(jnp.ones(1)).ravel())
    [0.5 0.5] [0.5 0.5]
    """
    c, b = checks.floats("equality_qp", "c", c), checks.floats("equality_qp", "b", b)
    solver = solver or (optim.minres if callable(q) else optim.dense_solve)
    times_q, times_a = _product("q", q, c, c), _product("a", a, c, b)
    times_transposed_a = jax.linear_transpose(times_a, c)

    def conditions(v: tuple[Any, Any]) -> tuple[Any, Any]:
        x, y = v
        return jax.tree.map(jnp.add, times_q(x), times_transposed_a(y)[0]), times_a(x)

    given = (jax.tree.map(jnp.negative, c), b)
    found, info = optim.linear_solve(
        conditions, given, solver=solver, symmetric=True, tolerance=tolerance, max_steps=max_steps
    )
    residual = divide(info.residual, jax.lax.stop_gradient(trees.norm(given)))
    checks.warn_unless_converged("equality_qp:", info.converged, residual, stacklevel=2)
    return found, InnerInfo(residual, info.iterations, info.products, info.converged)


def _product(name: str, matrix: Any, inputs: Any, outputs: Any) -> Callable[[Any], Any]:
    """The function of trees, or the product with the array."""
    if callable(matrix):
        return lambda v: checks.like("equality_qp", name, matrix(v), outputs)
    matrix = checks.floats("equality_qp", name, matrix)
    wanted = (*jnp.shape(outputs), *jnp.shape(inputs))
    if len(wanted) != 2 or matrix.shape != wanted:
        raise ValueError(
            f"equality_qp: {name} has the shape {matrix.shape}; accepted: {wanted}, two axes for "
            "vectors c and b, or a function."
        )
    if name == "q":
        matrix = (matrix + matrix.T) / 2
    return lambda v: jnp.matmul(matrix, v, precision="highest")
