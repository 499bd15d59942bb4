"""Derivatives of roots, fixed points and minimisers, whatever found them.

Where F(y, *args) = 0, the implicit function theorem gives, in forward mode::

    A dy = -(dF/dargs) dargs,   A = dF/dy + ridge I

and in reverse mode one solve with A'. F is `optimality_fn`, or y - fn(y, *args) at a fixed point,
or at a minimiser the gradient of `objective_fn`, whose A is symmetric.

The solver runs first and apart, on values that carry no derivative, and may be anything. What it
answers then gets its derivative from `jax.lax.custom_root` with `optim.linear_solve` for A. So
forward mode, reverse mode, each inside the other, vmap, jit and scan all follow; integer and key
arguments are allowed; and what F closes over is differentiated as its arguments are.

*Differences.* From jaxopt's decorators of the same names: (1) theirs have reverse mode alone, and
fail where F closes over what is differentiated. (2) Theirs solve the normal equations by default,
which squares the condition number; here it is conjugate gradients where A is symmetric and GMRES
elsewhere. (3) Keywords are closed over, and not matched against a signature. (4) A linear solve
that failed can be made to show (`on_failure`).

*Cost.* A solve with A for each tangent, or with A' for each cotangent, and one linearisation of F
at y; memory for that alone, whatever the solver did. Nothing for the value.

*Reference.* Blondel et al., Efficient and modular implicit differentiation, 2022;
google/jaxopt@2de13bf.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import optim
from bilevel import checks
from optim import trees

ON_FAILURE = ("ignore", "nan", "warn")


def attach_root(
    optimality_fn: Callable[..., Any],
    y: Any,
    *args: Any,
    symmetric: bool = False,
    solve: Callable[..., tuple[Any, optim.SolveInfo]] | None = None,
    preconditioner: Callable[..., Callable[[Any], Any]] | None = None,
    ridge: ArrayLike = 0.0,
    on_failure: str = "ignore",
) -> Any:
    """Gives y, which is near a root of F, the derivative of that root.

    Check a `symmetric=True` of your own by comparing `jax.grad` with `jax.jvp`: where A is not
    symmetric, the first alone is wrong.

    Args:
      optimality_fn: F, (y, *args) -> a tree like y.
      y: an approximate root, a pytree of floats; a derivative of its own is dropped.
      *args: what F takes besides; anything, and what is an array of floats is differentiated.
      symmetric: whether A is its own transpose, as it is where F is a gradient.
      solve: such as `optim.dense_solve` or `functools.partial(optim.cg, tolerance=1e-3)`, called
        with (matvec, b, preconditioner=...); `optim.cg` by default where symmetric, else
        `optim.gmres`. It may bring an `init` that is not differentiated, for dy or the adjoint.
      preconditioner: (y, *args) -> (r -> about the solution of A z = r), linear in r, called once.
      ridge: added to the diagonal of A, at least 0; for an A that is singular or nearly so.
      on_failure: where the linear solve for a derivative did not converge, "nan" makes the
        derivative NaN, "warn" issues a `NotConvergedWarning`, from the host and so under jit as
        well, and "ignore" takes what the solve has.

    Returns:
      y, unchanged.

    Raises:
      ValueError: y has a leaf that is not real and floating, F gives another structure or shape,
        ridge is negative, or on_failure is another word.

    >>> import jax, bilevel
    >>> def root(x):
    ...     return bilevel.attach_root(lambda y: y**3 - x, 2.0)
    >>> print(f"{jax.grad(root)(8.0):.4f}")  # 1 / (3 * 2**2)
    0.0833
    """
    trees.check_at_least("attach_root", 0, ridge=ridge)
    if on_failure not in ON_FAILURE:
        raise ValueError(
            f"attach_root: on_failure is {on_failure!r}; accepted: {', '.join(ON_FAILURE)}."
        )
    y = _stopped(checks.floats("attach_root", "y", y))
    approximate_inverse = None if preconditioner is None else preconditioner(y, *_stopped(args))
    chosen = solve or (optim.cg if symmetric else optim.gmres)

    def conditions(y: Any) -> Any:
        return checks.like("attach_root", "optimality_fn", optimality_fn(y, *args), y)

    def solver(matvec: Any, b: Any, *, preconditioner: Any, init: Any = None) -> Any:
        del init  # so that `solve` may bring a start of its own
        # The root's rule negates: a start then is that of dy, or of the adjoint, as one writes it.
        x, info = chosen(matvec, jax.tree.map(jnp.negative, b), preconditioner=preconditioner)
        if on_failure == "warn":
            what = "attach_root: the linear solve for a derivative"
            told = functools.partial(checks.warn_unless_converged, what, stacklevel=1)
            jax.debug.callback(told, info.converged, info.residual)
        if on_failure == "nan":
            x = jax.tree.map(lambda v: jnp.where(info.converged, v, jnp.nan), x)
        return jax.tree.map(jnp.negative, x), info

    def tangent_solve(matvec: Callable[[Any], Any], b: Any) -> Any:
        def ridged(v: Any) -> Any:
            return jax.tree.map(lambda u, w: u + trees.as_dtype(ridge, u.dtype) * w, matvec(v), v)

        x, _ = optim.linear_solve(
            ridged, b, solver=solver, symmetric=symmetric, preconditioner=approximate_inverse
        )
        return x

    return jax.lax.custom_root(conditions, y, lambda _, y: y, tangent_solve)


def custom_root(
    optimality_fn: Callable[..., Any], *, has_aux: bool = False, **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates solver(init, *args, **keywords) -> y, a root of F, with the root's derivative.

    The derivative by `init` is zero, and so is that of anything else that the solver answers. All
    that the solver is given has no derivative; a value that it closes over and that is being
    differentiated reaches it as it is, so pass such a value as an argument.

    Args:
      optimality_fn: F, (y, *args, **keywords) -> a tree like y, whose root the solver finds.
      has_aux: whether the solver answers (y, anything).
      **options: symmetric, solve, preconditioner, ridge, on_failure of `attach_root`.

    >>> import jax, bilevel
    >>> @bilevel.custom_root(lambda y, x: y**3 - x)
    ... def cube_root(init, x):
    ...     return jax.lax.fori_loop(0, 50, lambda _, y: y - (y**3 - x) / (3 * y**2), init)
    >>> print(f"{jax.grad(cube_root, argnums=1)(1.0, 8.0):.4f}")  # 1 / (3 * 2**2)
    0.0833
    """

    def decorate(solver: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(solver)
        def run(init: Any, *args: Any, **keywords: Any) -> Any:
            out = _stopped(solver(*_stopped((init, *args)), **_stopped(keywords)))
            y, aux = out if has_aux else (out, None)
            y = attach_root(functools.partial(optimality_fn, **keywords), y, *args, **options)
            return (y, aux) if has_aux else y

        return run

    return decorate


def custom_fixed_point(
    fn: Callable[..., Any], **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates solver(init, *args, **keywords) -> y with y = fn(y, *args, **keywords).

    Args:
      fn: (y, *args, **keywords) -> a tree like y.
      **options: as `custom_root` takes them; A is I - dfn/dy + ridge I.

    >>> import jax, bilevel, jax.numpy as jnp
    >>> @bilevel.custom_fixed_point(lambda y, x: x * jnp.cos(y))
    ... def solution(init, x):
    ...     return jax.lax.fori_loop(0, 100, lambda _, y: x * jnp.cos(y), init)
    >>> y, slope = jax.value_and_grad(solution, argnums=1)(0.5, 1.0)
    >>> print(f"{y:.4f} {slope:.4f} {jnp.cos(y) / (1 + jnp.sin(y)):.4f}")
    0.7391 0.4416 0.4416
    """

    def optimality(y: Any, *args: Any, **keywords: Any) -> Any:
        out = checks.like("custom_fixed_point", "fn", fn(y, *args, **keywords), y)
        return jax.tree.map(jnp.subtract, y, out)

    return custom_root(optimality, **options)


def custom_argmin(
    objective_fn: Callable[..., Any], **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates solver(init, *args, **keywords) -> y, where objective_fn(y, ...) is least.

    Args:
      objective_fn: (y, *args, **keywords) -> a scalar.
      **options: as `custom_root` takes them, and symmetric is True; A is the Hessian + ridge I.

    >>> import jax, bilevel
    >>> @bilevel.custom_argmin(lambda y, x: (y - 3) ** 2 + x * y**2)
    ... def minimiser(init, x):
    ...     return 3 / (1 + x)
    >>> print(jax.grad(minimiser, 1)(0.0, 1.0), jax.hessian(minimiser, 1)(0.0, 1.0))
    -0.75 0.75
    """
    return custom_root(jax.grad(objective_fn), **{"symmetric": True, **options})


def without_derivative(fn: Callable[..., Any], *args: Any) -> Any:
    """What fn(*args) gives, as a constant, whatever the arguments and fn's closure carry."""
    program, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    values = jax.core.eval_jaxpr(
        program.jaxpr,
        jax.lax.stop_gradient(program.consts),
        *jax.lax.stop_gradient(jax.tree.leaves(args)),
    )
    return jax.tree.unflatten(jax.tree.structure(out), values)


def _stopped(tree: Any) -> Any:
    """The tree without derivatives; leaves that are not JAX's have none and stay as they are."""

    def one(leaf: Any) -> Any:
        return jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(one, tree)
