"""Hypergradients with a certificate: d outer(x, y*(x)) / dx from a y that is only near y*(x).

With f = outer, g = inner, f_x, f_y, g_x and g_y their gradients, H = dg_y/dy and C = dg_x/dy, all
at (x, y)::

    H v = f_y                     the adjoint v, up to the residual r = f_y - H v
    gradient = f_x - C v
    value = f - <v, g_y>          f(x, y*), to second order in y - y*

The error of the gradient, to first order in those of y and v (`hypergradient_error`)::

    step = H^-1 g_y               about y - y*
    w = H^-1 (dr/dy step - r)     about v - v*
    error = d(f_x - C v)/dy step - C w,    v held fast in both derivatives

and a bound of its norm, from constants that the caller knows (`Smoothness`)::

    e = |g_y| / mu                at least |y - y*|
    bound = e (outer_x + cross |v|)
            + (cross_norm + cross e) (e (outer_y + hessian |v|) + |r|) / mu

which holds but for rounding. It adds up the worst cases of every factor, and is often a hundred or
a thousand times the error: it certifies, while the estimate is what tolerances are steered by.

*Differences.* From `bilevel.custom_argmin`, whose gradient this is: it says how good it is and
where v ended, to start the next one there. It is not differentiated itself.

*Cost.* A gradient of f, one linearisation of (g_x, g_y), and the products that are reported, the
last of which gives C v and r at once. The estimate: a linearisation of second order, two solves
and two products.

*Reference.* Pedregosa, Hyperparameter optimization with approximate gradient, 2016.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import optim
from bilevel import checks
from bilevel.problem import BilevelBatch, BilevelProblem
from optim import trees
from optim.solvers import linear

LOOSE_CG = functools.partial(optim.cg, tolerance=1e-2)


class AdjointState(NamedTuple):
    """Where the next adjoint solve starts."""

    v: Any  # like y: the adjoint


class Smoothness(NamedTuple):
    """Constants at this x, on a ball around y* that holds y; norms are Euclidean or spectral."""

    mu: ArrayLike  # least eigenvalue of H, positive
    cross_norm: ArrayLike  # norm of C, at y
    cross: ArrayLike  # Lipschitz constant of C in y
    hessian: ArrayLike  # of H in y; 0 where inner is quadratic in y
    outer_y: ArrayLike  # of f_y in y
    outer_x: ArrayLike = 0.0  # of f_x in y


class HypergradientInfo(NamedTuple):
    """How good a hypergradient is, and what it took."""

    value: jax.Array  # (), outer at the minimiser of inner, to second order in y's error
    inner_residual: jax.Array  # (), norm of g_y
    adjoint_residual: jax.Array  # (), norm of f_y - H v, computed from the v returned
    products: jax.Array  # (), int32: products with H, the last of which gave C v as well
    bound: jax.Array  # (), at least the norm of the gradient's error; NaN without constants
    solve: optim.SolveInfo  # the adjoint solve's own report


def init_adjoint(y: Any) -> AdjointState:
    """The state before the first hypergradient, for a loop whose carry keeps its structure.

    Args:
      y: the inner variables, whose values are not read.

    >>> import bilevel, jax.numpy as jnp
    >>> print(bilevel.init_adjoint(jnp.ones(2)).v)
    [0. 0.]
    """
    return AdjointState(jax.tree.map(jnp.zeros_like, y))


def hypergradient(
    problem: BilevelProblem,
    x: Any,
    y: Any,
    state: AdjointState | None = None,
    batch: BilevelBatch | None = None,
    *,
    solve: Callable[..., tuple[Any, optim.SolveInfo]] = optim.cg,
    preconditioner: Callable[[Any], Any] | None = None,
    constants: Smoothness | None = None,
) -> tuple[Any, AdjointState, HypergradientInfo]:
    """The gradient of outer(x, y*(x)) in x, taken at y in place of y*(x).

    Outside jit and vmap it warns where the adjoint solve did not converge; within, the info tells.

    Args:
      problem: the functions.
      x: the outer variables.
      y: about the minimiser of inner(x, .), where its Hessian is positive definite.
      state: the last adjoint, from which the solve starts; zeros by default, and for one product
        less than `init_adjoint`.
      batch: what the functions are given; None for both by default.
      solve: such as `optim.cg` or `functools.partial(optim.cg, tolerance=1e-2)`, called with
        (matvec, f_y, init=..., preconditioner=...).
      preconditioner: r -> about the solution of H z = r, as `solve` takes it.
      constants: for the bound.

    Returns:
      (gradient, state, info): gradient like x, the adjoint, and the `HypergradientInfo`.

    Raises:
      ValueError: x or y has a leaf that is not real and floating, or a constant is out of range.

    >>> import bilevel
    >>> problem = bilevel.BilevelProblem(
    ...     outer=lambda x, y, batch: y**2 / 2, inner=lambda x, y, batch: x * y**2 / 2 - y
    ... )
    >>> gradient, state, info = bilevel.hypergradient(problem, 2.0, 0.52)  # the minimiser is 0.5
    >>> print(f"{gradient:.4f} {info.value:.4f}")  # at 0.5 they are -0.125 and 0.125
    -0.1352 0.1248
    """
    x, y = checks.floats("hypergradient", "x", x), checks.floats("hypergradient", "y", y)
    batch = batch or BilevelBatch()
    gradients = functools.partial(_inner_gradients, problem, batch, x)
    (_, g_y), product = jax.linearize(gradients, y)
    value, (f_x, f_y) = jax.value_and_grad(problem.outer, (0, 1))(x, y, batch.outer)
    start = None if state is None else state.v
    v, solved = solve(lambda u: product(u)[1], f_y, init=start, preconditioner=preconditioner)
    checks.warn_unless_converged(
        "hypergradient: the adjoint solve", solved.converged, solved.residual, stacklevel=2
    )
    cross, curved = product(v)
    inner_residual, adjoint_residual = trees.norm(g_y), trees.norm(_minus(f_y, curved))
    bound = jnp.full_like(adjoint_residual, jnp.nan)
    if constants is not None:
        bound = _bound(constants, inner_residual, adjoint_residual, trees.norm(v))
    info = HypergradientInfo(
        value=value - linear.vdot(trees.promote(v), trees.promote(g_y)),
        inner_residual=inner_residual,
        adjoint_residual=adjoint_residual,
        products=solved.products + 1,
        bound=bound,
        solve=solved,
    )
    return _minus(f_x, cross), AdjointState(v), info


def hypergradient_error(
    problem: BilevelProblem,
    x: Any,
    y: Any,
    state: AdjointState,
    batch: BilevelBatch | None = None,
    *,
    solve: Callable[..., tuple[Any, optim.SolveInfo]] = LOOSE_CG,
    preconditioner: Callable[[Any], Any] | None = None,
) -> Any:
    """The error of the hypergradient at y and the state's adjoint, to first order.

    An estimate and no bound: its norm tells how far off the gradient is, and subtracting it leaves
    an error of second order, or what the tolerance of the two solves leaves.

    Args:
      problem, x, y, batch: what `hypergradient` was given.
      state: what it returned.
      solve: called with (matvec, right-hand side, preconditioner=...).
      preconditioner: as for `hypergradient`.

    Returns:
      A tree like x.

    Raises:
      ValueError: x or y has a leaf that is not real and floating.

    >>> import bilevel
    >>> problem = bilevel.BilevelProblem(
    ...     outer=lambda x, y, batch: y**2 / 2, inner=lambda x, y, batch: x * y**2 / 2 - y
    ... )
    >>> gradient, state, _ = bilevel.hypergradient(problem, 2.0, 0.52)  # the minimiser is 0.5
    >>> error = bilevel.hypergradient_error(problem, 2.0, 0.52, state)
    >>> print(f"{gradient:.4f} {error:.4f} {gradient - error:.4f}")  # of -0.125
    -0.1352 -0.0104 -0.1248
    """
    name = "hypergradient_error"
    x, y = checks.floats(name, "x", x), checks.floats(name, "y", y)
    g_y, residual, product = linearised(problem, x, y, state.v, batch or BilevelBatch())

    def inverse(b: Any) -> Any:
        return solve(lambda u: product(u)[1], b, preconditioner=preconditioner)[0]

    _, _, gradient_change, residual_change = product(inverse(g_y))
    cross = product(inverse(_minus(residual_change, residual)))[0]
    return _minus(gradient_change, cross)


def linearised(
    problem: BilevelProblem, x: Any, y: Any, v: Any, batch: BilevelBatch
) -> tuple[Any, Any, Callable[[Any], tuple[Any, Any, Any, Any]]]:
    """g_y, r, and u -> (C u, H u, d(f_x - C v)/dy u, dr/dy u), with v held fast."""
    gradients = functools.partial(_inner_gradients, problem, batch, x)

    def parts(y: Any) -> Any:
        (g_x, g_y), (cross, curved) = jax.jvp(gradients, (y,), (v,))
        f_x, f_y = jax.grad(problem.outer, (0, 1))(x, y, batch.outer)
        return g_x, g_y, _minus(f_x, cross), _minus(f_y, curved)

    (_, g_y, _, residual), product = jax.linearize(parts, y)
    return g_y, residual, product


def _inner_gradients(problem: BilevelProblem, batch: BilevelBatch, x: Any, y: Any) -> Any:
    return jax.grad(problem.inner, (0, 1))(x, y, batch.inner)


def _minus(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.subtract, a, b)


def _bound(
    constants: Smoothness, inner_residual: jax.Array, adjoint_residual: jax.Array, v: jax.Array
) -> jax.Array:
    named = constants._asdict()
    trees.check_positive("hypergradient", mu=named.pop("mu"))
    trees.check_at_least("hypergradient", 0, **named)
    dtype = jnp.result_type(inner_residual)
    mu, cross_norm, cross, hessian, outer_y, outer_x = (trees.as_dtype(c, dtype) for c in constants)
    e = inner_residual / mu
    adjoint_error = (e * (outer_y + hessian * v) + adjoint_residual) / mu
    return e * (outer_x + cross * v) + (cross_norm + cross * e) * adjoint_error
