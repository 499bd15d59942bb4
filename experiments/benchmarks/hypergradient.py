"""Hypergradients: products, error and time of ours, jaxopt's, optimistix's, unrolled descent's.

The problems are those of `hypergradient_problems`, in float64, at the exact minimiser y, so that
all error is the adjoint's. Tolerances are the libraries' own, 1e-5, and conjugate gradients may
take ten times as many steps as there are unknowns, as jaxopt's do.

- products: with the inner Hessian, counted from outside in one more run; for the explicit form what
  it reports, one of them the cross term's. optimistix's dense solve makes as many as there are
  unknowns, in one batch. Unrolled descent, which starts at y, makes one a step.
- error: relative, of the hypergradient, against a dense solve.
- at 20, at 80: the error when stopped after so many products; to 1e-3: products until the error is
  that, within 3 %, or more than 2,560.

In the groups named "steps", one call makes the hypergradients of 50 outer steps of 0.1 (in the
largest entry) down the hypergradient, y being exact at each: products a step, and the median error.
There "warm" starts from the last adjoint; "Nystrom" makes a preconditioner of rank 60, "Jacobi" one
of the exact diagonal, at the first step and keeps it; what that takes, 60 products and as many as
there are unknowns, is counted.

Rows of one group are divided by its first, jaxopt's decorator with its conjugate gradients. What is
compiled only tells of memory: gradient descent unrolled, and the same with our derivative.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxopt import implicit_diff, linear_solve

import bilevel
import optim
from experiments.benchmarks import hypergradient_methods as methods
from experiments.benchmarks import hypergradient_problems as problems
from experiments.benchmarks.harness import Candidate, Comparison
from experiments.benchmarks.hypergradient_methods import DENSE, JAXOPT_CG, METHODS, STOPPED
from experiments.benchmarks.hypergradient_problems import Task

LIMIT = 2560  # products
RANK = 60


def relative(found: Any, wanted: Any) -> Any:
    error = jnp.linalg.norm(found - wanted, axis=-1)
    return error / jnp.linalg.norm(wanted, axis=-1)


def budgets(task: Task, stopped: Callable[..., Any]) -> dict[str, Any]:
    """What a method reaches by so many products, and how many take it to 1e-3."""

    @jax.jit
    def error(products: jax.Array) -> jax.Array:
        gradient, _ = stopped(task, methods.gradient_of(task), products)(task.x, task.y)
        return relative(gradient, task.gradient)

    few, many = 5, 10
    while many <= LIMIT and error(many) > 1e-3:
        few, many = many, 2 * many
    while many <= LIMIT and many - few > max(1, 0.03 * many):
        middle = (few + many) // 2
        few, many = (middle, many) if error(middle) > 1e-3 else (few, middle)
    found = many if many <= LIMIT else f"> {LIMIT}"
    return {"at 20": float(error(20)), "at 80": float(error(80)), "to 1e-3": found}


@functools.cache
def made(build: Callable[[], Task]) -> Task:
    return build()


@functools.cache
def walked(build: Callable[[], Task], steps: int) -> Any:
    return problems.path(made(build), steps)


def once(build: Callable[[], Task], name: str) -> Candidate:
    """One hypergradient, in the place of the one before; with what it came to."""
    task, method = made(build), METHODS[name]
    (gradient, products), calls = methods.counted(
        lambda optimality: (
            jax.jit(method(task, optimality))(task.x, task.y)
            if name != DENSE
            else jax.jit(method(task, methods.gradient_of(task)))(task.x, task.y)
        ),
        methods.gradient_of(task),
    )
    told = task.y.size if name == DENSE else calls if products is None else int(products)
    findings = {"products": told, "error": float(relative(gradient, task.gradient))}
    if name in STOPPED:
        findings |= budgets(task, STOPPED[name])

    def step(carry: Any, point: Any) -> Any:
        del carry
        return method(task, methods.gradient_of(task))(*point)[0]

    return Candidate(step, jnp.zeros_like(task.x), (task.x, task.y), findings)


def nystrom(task: Task, x: Any, y: Any) -> tuple[Any, int]:
    product = jax.linearize(lambda y: methods.gradient_of(task)(y, x), y)[1]
    return optim.nystrom_preconditioner(product, y, jax.random.key(0), rank=RANK), RANK


def jacobi(task: Task, x: Any, y: Any) -> tuple[Any, int]:
    diagonal = jnp.diag(problems.hessian(task.problem, x, y))
    return optim.jacobi_preconditioner(diagonal), y.size


# (task, x, y) -> the preconditioner there, and the products that making it took
PRECONDITIONERS: Mapping[str, Callable[..., tuple[Any, int]]] = {
    "Nystrom": nystrom,
    "Jacobi": jacobi,
}


def our_steps(task: Task, tolerance: float, warm: bool, preconditioner: str | None) -> Any:
    """(xs, ys) -> (hypergradients, products of each)."""

    def run(xs: Any, ys: Any) -> Any:
        inverse, cost = None, 0
        if preconditioner is not None:
            inverse, cost = PRECONDITIONERS[preconditioner](task, xs[0], ys[0])

        def step(state: Any, point: Any) -> Any:
            x, y = point
            gradient, new, info = bilevel.hypergradient(
                task.problem,
                x,
                y,
                state if warm else None,
                solve=methods.cg(task, tolerance=tolerance),
                preconditioner=inverse,
            )
            return new, (gradient, info.products)

        _, (gradients, products) = jax.lax.scan(step, bilevel.init_adjoint(ys[0]), (xs, ys))
        return gradients, products.at[0].add(cost)

    return run


def jaxopt_steps(task: Task, tolerance: float, optimality: methods.Optimality) -> Any:
    solve = functools.partial(linear_solve.solve_cg, tol=tolerance)
    run = methods.decorated(implicit_diff.custom_root, solve=solve)(task, optimality)
    return lambda xs, ys: jax.lax.map(lambda point: run(*point)[0], (xs, ys))


def steps(build: Callable[[], Task], count: int, tolerance: float, name: str) -> Candidate:
    """The hypergradients of `count` outer steps, by the method that the name tells."""
    task, (xs, ys, wanted) = made(build), walked(build, count)
    if name == JAXOPT_CG:
        gradients, products = methods.counted(
            lambda optimality: jax.jit(jaxopt_steps(task, tolerance, optimality))(xs, ys),
            methods.gradient_of(task),
        )
        run = jaxopt_steps(task, tolerance, methods.gradient_of(task))
    else:
        kept = next((p for p in PRECONDITIONERS if p in name), None)
        ours = our_steps(task, tolerance, "warm" in name, kept)
        gradients, each = jax.jit(ours)(xs, ys)
        products = int(each.sum())

        def run(xs: Any, ys: Any) -> Any:
            return ours(xs, ys)[0]

    errors = np.asarray(relative(gradients, wanted))
    findings = {"products": f"{products / count:.1f}", "error": float(np.median(errors))}

    def step(carry: Any, points: Any) -> Any:
        del carry
        return run(*points)

    return Candidate(step, jnp.zeros_like(xs), (xs, ys), findings)


def memory(build: Callable[[], Task], length: int, ours: bool) -> Candidate:
    """Gradient descent of so many steps, and the hypergradient there."""
    task = made(build)

    def solved(optimality: methods.Optimality) -> Any:
        solver = methods.descent(optimality, task, length)
        if not ours:
            return solver
        return bilevel.custom_root(optimality, symmetric=True, solve=methods.cg(task))(solver)

    run = methods.through(solved)(task, methods.gradient_of(task))
    return Candidate(lambda carry, point: run(*point)[0], jnp.zeros_like(task.x), (task.x, task.y))


def candidates(quick: bool) -> Comparison:
    """`quick` takes ridges of 12 unknowns, three outer steps and two lengths of descent."""
    tasks = problems.TASKS
    if quick:
        tasks = {name: functools.partial(problems.ridge, 10.0, 12) for name in ("ridge", "kernel")}
    count = 3 if quick else 50
    groups: dict[str, dict[str, Callable[[], Candidate]]] = {}
    for name, build in tasks.items():
        if name not in ("kernel", "units"):
            groups[name] = {method: functools.partial(once, build, method) for method in METHODS}
    started = () if quick else ("softmax", "ridge 1e+03")
    both = ("ours, cold", "ours, warm")
    asked: list[Any] = [(name, rtol, both) for name in started for rtol in (1e-2, 1e-3)]
    for name, kept in (("kernel", "Nystrom"), ("units", "Jacobi")):
        if name in tasks:
            asked += [(name, 1e-5, (*both, f"ours, {kept}", f"ours, {kept}, warm"))]
    for name, rtol, ours in asked:
        groups[f"{name}, {count} steps, {rtol:.0e}"] = {
            method: functools.partial(steps, tasks[name], count, rtol, method)
            for method in (JAXOPT_CG, *ours)
        }
    largest = tasks["ridge" if quick else "cleaning"]
    lengths = (10, 20) if quick else (10, 100, 1000)
    return Comparison(
        candidates={f"{g}: {m}": build for g, rows in groups.items() for m, build in rows.items()},
        reference={f"{g}: {m}": f"{g}: {JAXOPT_CG}" for g, rows in groups.items() for m in rows},
        ideal_bytes=None,
        most_repeats=7,
        compiled_only={
            f"{'ours' if ours else 'unrolled'}, {length} steps": functools.partial(
                memory, largest, length, ours
            )
            for length in lengths
            for ours in (False, True)
        },
        x64=True,
    )
