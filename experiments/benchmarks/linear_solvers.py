"""Linear solves: ours beside jax.scipy's, lineax's and jaxopt's, over condition numbers 1e1 to 1e6.

A has 256 rows and singular values spread evenly in their logarithm from 1 down to 1 / condition:

- spd: random orthonormal eigenvectors;
- indefinite: the same, every third eigenvalue negative;
- nonsymmetric: pairs of eigenvalues turned by up to 60 degrees into the complex plane, normal.

b has entries of +1 and -1. All are asked for a residual of 1e-8 |b| in float64 (rows named float32:
1e-5 |b| in float32) within 3000 steps. Rows of one group are divided by its first, ours.

- steps: those that the solver tells of; "-" where it tells of none.
- products: with A or its transpose, counted from outside in one more run; a batch of them, as
  dense_solve and Nystrom's preconditioner (30 products) take, counts once.
- residual: |b - A x| / |b| in float64, of the x returned.
- says: what the solver reports; "-" where it reports nothing. "solved" beside a residual above what
  was asked for is a false report.

The last groups are the edges: a start at the solution; an A that has no business with conjugate
gradients (indefinite, or singular with b inside and outside its range); and preconditioners, on 20
large eigenvalues over a flat rest (Nystrom's) and on an A of badly scaled unknowns (Jacobi's).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg as scipy
import lineax
import numpy as np
from jax.custom_derivatives import linear_call
from jaxopt import linear_solve as jaxopt

import optim
from experiments.benchmarks.harness import Candidate, Comparison

MOST_STEPS = 3000
RESTART = 30
CYCLES = MOST_STEPS // RESTART


class Problem(NamedTuple):
    """A x = b, of float64 or float32, and how well it is to be solved."""

    a: Any  # (n, n)
    b: Any  # (n,)
    start: Any  # (n,), or None for zeros

    @property
    def tolerance(self) -> float:
        return 1e-8 if self.b.dtype == jnp.float64 else 1e-5


Operator = Callable[[Any], Any]
# (v -> A v, problem) -> (x, steps, solved), the last two as far as the solver tells
Solver = Callable[[Operator, Problem], tuple[Any, Any, Any]]


def ours(solver: Callable[..., Any], **options: Any) -> Solver:
    def solve(matvec: Operator, p: Problem) -> Any:
        asked = {"init": p.start, "tolerance": p.tolerance, "max_steps": MOST_STEPS}
        x, info = solver(matvec, p.b, **asked, **options)
        return x, info.iterations, info.converged

    return solve


def cg_with_nystrom(matvec: Operator, p: Problem) -> Any:
    m = optim.nystrom_preconditioner(matvec, p.b, jax.random.key(0), rank=30)
    return ours(optim.cg, preconditioner=m)(matvec, p)


def cg_with_jacobi(matvec: Operator, p: Problem) -> Any:
    m = optim.jacobi_preconditioner(jnp.diag(p.a))
    return ours(optim.cg, preconditioner=m)(matvec, p)


def of_scipy(solver: Callable[..., Any], maxiter: int = MOST_STEPS, **options: Any) -> Solver:
    """jax.scipy's solvers give None where SciPy's tell whether they converged."""

    def solve(matvec: Operator, p: Problem) -> Any:
        x, _ = solver(matvec, p.b, x0=p.start, tol=p.tolerance, maxiter=maxiter, **options)
        return x, None, None

    return solve


def of_lineax(solver: Callable[..., Any], max_steps: int = MOST_STEPS, **options: Any) -> Solver:
    """lineax weighs entry by entry; with an RMS and entries of one size that is the 2-norm."""

    def rms(tree: Any) -> Any:
        return jnp.sqrt(jnp.mean(jnp.square(tree)))

    def solve(matvec: Operator, p: Problem) -> Any:
        positive = lineax.positive_semidefinite_tag if solver is lineax.CG else ()
        told = lineax.linear_solve(
            lineax.FunctionLinearOperator(matvec, jax.eval_shape(lambda: p.b), positive),
            p.b,
            solver(p.tolerance, 0.0, norm=rms, max_steps=max_steps, **options),
            options={} if p.start is None else {"y0": p.start},
            throw=False,
        )
        return told.value, told.stats["num_steps"], told.result == lineax.RESULTS.successful

    return solve


def jaxopt_normal_cg(matvec: Operator, p: Problem) -> Any:
    asked = {"init": p.start, "tol": p.tolerance, "maxiter": MOST_STEPS}
    return jaxopt.solve_normal_cg(matvec, p.b, **asked), None, None


CG: Mapping[str, Solver] = {
    "cg": ours(optim.cg),
    "jax.scipy cg": of_scipy(scipy.cg),
    "lineax CG": of_lineax(lineax.CG),
}
GMRES: Mapping[str, Solver] = {
    "gmres": ours(optim.gmres, restart=RESTART),
    "jax.scipy gmres": of_scipy(scipy.gmres, CYCLES, restart=RESTART, solve_method="incremental"),
    "lineax GMRES": of_lineax(lineax.GMRES, CYCLES, restart=RESTART),
}
BICGSTAB: Mapping[str, Solver] = {
    "bicgstab": ours(optim.bicgstab),
    "jax.scipy bicgstab": of_scipy(scipy.bicgstab),
    "lineax BiCGStab": of_lineax(lineax.BiCGStab),
}
MINRES: Mapping[str, Solver] = {"minres": ours(optim.minres)}
NORMAL_CG: Mapping[str, Solver] = {
    "normal_cg": ours(optim.normal_cg),
    "jaxopt normal_cg": jaxopt_normal_cg,
}
DENSE: Mapping[str, Solver] = {"dense_solve": ours(optim.dense_solve)}
BY_KIND: Mapping[str, Mapping[str, Solver]] = {
    "spd": {**CG, **MINRES, **DENSE},
    "indefinite": {**MINRES, **GMRES, **NORMAL_CG, **DENSE},
    "nonsymmetric": {**GMRES, **BICGSTAB, **NORMAL_CG, **DENSE},
}


def orthonormal(n: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))
    return q


def problem(a: np.ndarray, start: bool = False, dtype: Any = np.float64) -> Problem:
    b = np.random.default_rng(1).choice([-1.0, 1.0], len(a))
    x = np.linalg.solve(a, b).astype(dtype) if start else None
    return Problem(a.astype(dtype), b.astype(dtype), x)


def matrix(kind: str, condition: float, n: int) -> np.ndarray:
    """The docstring's A of the kind and condition number."""
    q, values = orthonormal(n), np.geomspace(1 / condition, 1, n)
    if kind == "nonsymmetric":
        values = np.repeat(np.geomspace(1 / condition, 1, n // 2), 2)
        angles = np.random.default_rng(2).uniform(-np.pi / 3, np.pi / 3, n // 2)
        turned = np.zeros((n, n))
        even = np.arange(0, n, 2)
        turned[even, even] = turned[even + 1, even + 1] = np.cos(angles)
        turned[even, even + 1], turned[even + 1, even] = np.sin(angles), -np.sin(angles)
        return q @ (values[:, None] * turned) @ q.T
    if kind == "indefinite":
        values[::3] *= -1
    return (q * values) @ q.T


def edges(n: int) -> dict[str, tuple[Problem, Mapping[str, Solver]]]:
    """The docstring's last groups."""
    q, spd = orthonormal(n), matrix("spd", 1e2, n)
    spiked = (q * np.r_[np.geomspace(1e2, 1e6, 20), np.geomspace(1, 2, n - 20)]) @ q.T
    scale = np.geomspace(1, 1e2, n)
    singular = np.r_[np.zeros(4), np.geomspace(0.1, 1, n - 4)]
    outside = problem((q * singular) @ q.T)
    warm = {"cg": CG["cg"], **{k: BICGSTAB[k] for k in ("bicgstab",)}, "gmres": GMRES["gmres"]}
    warm |= {**MINRES, "normal_cg": NORMAL_CG["normal_cg"], **CG}
    return {
        "from the solution": (problem(spd, start=True), warm),
        "indefinite": (problem(matrix("indefinite", 1e2, n)), CG),
        "singular, b outside": (outside, CG),
        "singular, b inside": (outside._replace(b=outside.a @ outside.b), CG),
        "20 large": (problem(spiked), {"cg": CG["cg"], "cg, Nystrom": cg_with_nystrom}),
        "badly scaled": (
            problem(scale[:, None] * spd * scale),
            {"cg": CG["cg"], "cg, Jacobi": cg_with_jacobi},
        ),
    }


def counted(p: Problem, solver: Solver, transposes: bool = False) -> tuple[Any, int]:
    """The solver's answer, and how often it called for A or, if it transposes it, its transpose."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    def product(a: Any, v: Any) -> Any:
        jax.debug.callback(count)
        return a @ v

    def matvec(v: Any) -> Any:
        if transposes:  # only then, since it cannot be batched
            return linear_call(product, lambda a, v: product(a.T, v), p.a, v)
        return product(p.a, v)

    answer = jax.block_until_ready(jax.jit(solver, static_argnums=0)(matvec, p))
    jax.effects_barrier()
    return answer, calls


def candidate(p: Problem, solver: Solver) -> Candidate:
    """A solve in which x replaces the one before, unread; with what it came to."""
    (x, steps, solved), products = counted(p, solver, solver in NORMAL_CG.values())
    exact = p.b.astype(np.float64)
    error = np.linalg.norm(exact - p.a.astype(np.float64) @ np.asarray(x, np.float64))
    findings = {
        "steps": None if steps is None else int(steps),
        "products": products,
        "residual": float(error / np.linalg.norm(exact)),
        "says": None if solved is None else ("solved" if solved else "not solved"),
    }

    def step(x: Any, p: Problem) -> Any:
        del x
        return solver(lambda v: p.a @ v, p)[0]

    return Candidate(step, jnp.zeros_like(p.b), jax.tree.map(jnp.asarray, p), findings)


def candidates(quick: bool) -> Comparison:
    """`quick` takes one positive definite matrix of 24 rows and condition number 10."""
    n, conditions = (24, (1e1,)) if quick else (256, (1e1, 1e2, 1e3, 1e4, 1e5, 1e6))
    kinds = ("spd",) if quick else tuple(BY_KIND)
    groups = {
        f"{kind} {condition:.0e}": (problem(matrix(kind, condition, n)), BY_KIND[kind])
        for kind in kinds
        for condition in conditions
    }
    for condition in conditions[1::2]:
        single = problem(matrix("spd", condition, n), dtype=np.float32)
        groups[f"spd {condition:.0e} float32"] = (single, CG)
    if not quick:
        groups |= edges(n)
    found, reference = {}, {}
    for group, (p, solvers) in groups.items():
        for name, solver in solvers.items():
            found[f"{group}: {name}"] = functools.partial(candidate, p, solver)
            reference[f"{group}: {name}"] = f"{group}: {next(iter(solvers))}"
    return Comparison(found, reference, ideal_bytes=None, most_repeats=15, x64=True)
