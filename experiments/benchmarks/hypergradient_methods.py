"""Ways to a hypergradient at an exact minimiser: ours, jaxopt's, optimistix's, unrolled descent's.

All stand on the gradient of inner in y, which can be made to tell of each product with its
derivative.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optimistix
from jax.custom_derivatives import linear_call
from jaxopt import implicit_diff, linear_solve

import bilevel
import optim
from experiments.benchmarks.hypergradient_problems import Task

Optimality = Callable[[Any, Any], Any]  # (y, x) -> gradient of inner in y
# (x, y) -> (hypergradient, products or None where they are counted from outside)
Method = Callable[[Task, Optimality], Callable[[Any, Any], tuple[Any, Any]]]


def through(solved: Callable[[Optimality], Callable[[Any, Any], Any]]) -> Method:
    """The gradient of outer at a solution that has its derivative from `solved`."""

    def method(task: Task, optimality: Optimality) -> Any:
        def outer(x: Any, y: Any) -> Any:
            return task.problem.outer(x, solved(optimality)(y, x), None)

        return lambda x, y: (jax.grad(outer)(x, y), None)

    return method


def decorated(decorator: Callable[..., Any], **options: Any) -> Method:
    return through(lambda optimality: decorator(optimality, **options)(lambda init, x: init))


def cg(task: Task, **options: Any) -> Callable[..., Any]:
    return functools.partial(optim.cg, **{"max_steps": 10 * task.y.size, **options})


def explicit(task: Task, optimality: Optimality, **options: Any) -> Any:
    def run(x: Any, y: Any) -> Any:
        gradient, _, info = bilevel.hypergradient(task.problem, x, y, solve=cg(task, **options))
        return gradient, info.products

    return run


def decorator(task: Task, optimality: Optimality) -> Any:
    return decorated(bilevel.custom_root, symmetric=True, solve=cg(task))(task, optimality)


def fixed_point(optimality: Optimality) -> Callable[[Any, Any], Any]:
    """optimistix differentiates any solver by a dense solve; this one stops after one gradient."""
    solver: Any = optimistix.FixedPointIteration(rtol=1e-5, atol=1e-5)

    def solve(y: Any, x: Any) -> Any:
        def step(y: Any, x: Any) -> Any:
            return y - optimality(y, x)

        return optimistix.fixed_point(step, solver, y, x).value

    return solve


def descent(optimality: Optimality, task: Task, steps: int) -> Callable[[Any, Any], Any]:
    def solve(y: Any, x: Any) -> Any:
        def step(y: Any, _: None) -> Any:
            return y - optimality(y, x) / task.largest, None

        return jax.lax.scan(step, y, length=steps)[0]

    return solve


def unrolled(task: Task, optimality: Optimality, *, steps: int) -> Any:
    return through(lambda optimality: descent(optimality, task, steps))(task, optimality)


JAXOPT_CG = "jaxopt cg"
DENSE = "optimistix, default (dense)"
METHODS: Mapping[str, Method] = {
    JAXOPT_CG: decorated(implicit_diff.custom_root, solve=linear_solve.solve_cg),
    "ours, explicit": explicit,
    "ours, decorator": decorator,
    "jaxopt, default (normal_cg)": decorated(implicit_diff.custom_root),
    DENSE: through(fixed_point),
    "unrolled, 20 steps": functools.partial(unrolled, steps=20),
    "unrolled, 80 steps": functools.partial(unrolled, steps=80),
}


def stopped_cg(task: Task, optimality: Optimality, products: Any) -> Any:
    """Two of the products are the cross term's and the one by which the residual is known."""
    return explicit(task, optimality, tolerance=0, max_steps=products - 2)


def stopped_normal_cg(task: Task, optimality: Optimality, products: Any) -> Any:
    """Two products a step, and one for the right-hand side."""
    solve = functools.partial(linear_solve.solve_normal_cg, tol=0, maxiter=products // 2)
    return decorated(implicit_diff.custom_root, solve=solve)(task, optimality)


STOPPED = {"ours, explicit": stopped_cg, "jaxopt, default (normal_cg)": stopped_normal_cg}


def gradient_of(task: Task) -> Optimality:
    return lambda y, x: jax.grad(task.problem.inner, 1)(x, y, None)


def counted(run: Callable[[Optimality], Any], optimality: Optimality) -> tuple[Any, int]:
    """The answer, and how often it multiplied by the derivative in y or by its transpose."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    def product(_: Any, v: Any) -> Any:
        jax.debug.callback(count)
        return v

    @jax.custom_jvp
    def told(y: Any) -> Any:
        return y

    @told.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return primals[0], linear_call(product, product, (), tangents[0])

    answer = jax.block_until_ready(run(lambda y, x: optimality(told(y), x)))
    jax.effects_barrier()
    return answer, calls
