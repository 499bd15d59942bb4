"""Conditions that vanish at the solution of a problem: stationarity, KKT, and KKT of a QP.

Each is a function of y alone, for `bilevel.attach_root`, which differentiates all that the given
functions close over. With L = f(x) + nu'h(x) + lam'g(x), for h(x) = 0 and g(x) <= 0::

    stationary   grad f(y)
    kkt          grad_x L,   h(x),   lam g(x)

Feasibility, g(x) <= 0 <= lam, is not among the equations: a condition does not find the solution,
it describes it. The Jacobian is regular where the gradients of the constraints that hold with
equality are independent, one of lam_i and g_i(x) is zero and not both, and the Hessian of L is
positive definite along those constraints. Without inequalities it is symmetric and indefinite,
which is for `optim.minres`; with them it is not symmetric.

*Differences.* From jaxopt: (1) its KKT tuple is `dual_eq`, `dual_ineq`; where there is no such
constraint the entry here is None. (2) A QP's Q need not be symmetric: what counts is x'Qx.

*Cost.* A gradient of L each.

*Reference.* Blondel et al., Efficient and modular implicit differentiation, 2022, table 1;
jaxopt 0.8.5, `make_kkt_optimality_fun`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim.solvers import linear


class KKTSolution(NamedTuple):
    """The solution of a problem with constraints, and its multipliers."""

    primal: Any  # a pytree
    dual_equality: Any = None  # a tree like what equality_fn gives, None without one
    dual_inequality: Any = None  # a tree like what inequality_fn gives, at least 0; None without


def stationary_condition(objective_fn: Callable[[Any], jax.Array]) -> Callable[[Any], Any]:
    """The gradient, which is zero at a minimiser; its Jacobian is symmetric.

    Args:
      objective_fn: y -> a scalar.

    >>> import jax, bilevel
    >>> def solution(x):
    ...     condition = bilevel.stationary_condition(lambda y: (y - 3) ** 2 + x * y**2)
    ...     return bilevel.attach_root(condition, 1.5, symmetric=True)
    >>> print(jax.grad(solution)(1.0))  # of 3 / (1 + x)
    -0.75
    """
    return jax.grad(objective_fn)


def kkt_condition(
    objective_fn: Callable[[Any], jax.Array],
    equality_fn: Callable[[Any], Any] | None = None,
    inequality_fn: Callable[[Any], Any] | None = None,
) -> Callable[[KKTSolution], KKTSolution]:
    """What is zero at the least objective with equality_fn = 0 and inequality_fn <= 0.

    Args:
      objective_fn: primal -> a scalar.
      equality_fn: primal -> a tree of floats, zero where feasible.
      inequality_fn: primal -> a tree of floats, at most zero where feasible.

    Returns:
      A function of a `KKTSolution` that gives one: the gradient of the Lagrangian, what equality_fn
      gives, and what inequality_fn gives times its multipliers. It raises ValueError where
      multipliers are not shaped as what their function gives.

    >>> import jax, bilevel
    >>> def solution(x):  # the least y^2 with y >= x
    ...     condition = bilevel.kkt_condition(lambda y: y**2, inequality_fn=lambda y: x - y)
    ...     y = bilevel.KKTSolution(primal=2.0, dual_inequality=4.0)
    ...     return bilevel.attach_root(condition, y)
    >>> slope = jax.jacfwd(solution)(2.0)
    >>> print(f"{slope.primal:.3f} {slope.dual_inequality:.3f}")  # of x and 2 x
    1.000 2.000
    """
    equality = equality_fn or (lambda _: None)
    inequality = inequality_fn or (lambda _: None)

    def condition(y: KKTSolution) -> KKTSolution:
        def lagrangian(primal: Any) -> tuple[jax.Array, tuple[Any, Any]]:
            h, g = equality(primal), inequality(primal)
            _check("dual_equality", y.dual_equality, "equality_fn", h)
            _check("dual_inequality", y.dual_inequality, "inequality_fn", g)
            value = objective_fn(primal)
            # Added where there are some, so that the objective keeps its dtype.
            for dual, residual in ((y.dual_equality, h), (y.dual_inequality, g)):
                if jax.tree.leaves(residual):
                    value = value + linear.vdot(dual, residual)
            return value, (h, g)

        stationarity, (h, g) = jax.grad(lagrangian, has_aux=True)(y.primal)
        return KKTSolution(stationarity, h, jax.tree.map(jnp.multiply, g, y.dual_inequality))

    return condition


def qp_condition(
    q: jax.Array,
    c: jax.Array,
    a_eq: jax.Array | None = None,
    b_eq: jax.Array | None = None,
    g: jax.Array | None = None,
    h: jax.Array | None = None,
) -> Callable[[KKTSolution], KKTSolution]:
    """`kkt_condition` of the least x'Qx / 2 + c'x with A x = b and G x <= h.

    Args:
      q: (n, n).
      c: (n,).
      a_eq, b_eq: (m, n) and (m,), or neither.
      g, h: (p, n) and (p,), or neither.

    Raises:
      ValueError: one of a pair is missing.

    >>> import jax, jax.numpy as jnp, bilevel
    >>> def first(b):  # the least |x|^2 / 2 with x_1 + x_2 = b
    ...     q, c, a = jnp.eye(2), jnp.zeros(2), jnp.ones((1, 2))
    ...     y = bilevel.KKTSolution(jnp.ones(2), dual_equality=-jnp.ones(1))
    ...     return bilevel.attach_root(bilevel.qp_condition(q, c, a, b), y).primal[0]
    >>> print(f"{jax.grad(first)(jnp.array([2.0]))[0]:.3f}")
    0.500
    """
    for names, one, other in (("a_eq and b_eq", a_eq, b_eq), ("g and h", g, h)):
        if (one is None) != (other is None):
            raise ValueError(f"qp_condition: one of {names} is None; accepted: both or neither.")
    return kkt_condition(
        lambda x: jnp.vdot(x, q @ x) / 2 + jnp.vdot(c, x),
        None if a_eq is None else lambda x: a_eq @ x - b_eq,
        None if g is None else lambda x: g @ x - h,
    )


def _check(name: str, dual: Any, function: str, residual: Any) -> None:
    structure: Any = jax.tree.structure(dual)
    wanted: Any = jax.tree.structure(residual)
    shapes, expected = (
        [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (dual, residual)
    )
    if structure != wanted or shapes != expected:
        raise ValueError(
            f"kkt_condition: {name} is {structure} of shapes {shapes}; "
            f"accepted: what {function} gives, {wanted} of shapes {expected}."
        )
