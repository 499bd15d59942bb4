"""Quadratic programs by the alternating direction method of multipliers, with polishing.

The problem is min x'Qx / 2 + c'x where l <= Ax <= u; rows with l = u are equalities, and bounds may
be infinite. With weights w (rho, and 1000 rho for equalities), one step is::

    p = (Q + sigma I + A'WA)^-1 (sigma x - c + A'(W z - y)),   g = relax A p + (1 - relax) z + y / w
    x = relax p + (1 - relax) x,   z = clip(g, l, u),   y = w (g - z)

After a round of 50 steps three things happen. *Polishing*: the rows with y not 0 are taken for
active, and the program with these as equalities and no others is solved::

    Q x + A'y = -c;   (Ax)_i = the bound of i if it is active, else y_i = 0

Where that guess is right the answer is exact, long before the steps are. The *residual* of the
polished and of the plain answer is the largest entry of these two, relative to max(1, their largest
term), and the smaller is kept::

    Qx + c + A'y,   Ax - clip(Ax + y, l, u)

And *rho* is multiplied by the root of the ratio of the two residuals of the steps, if that is more
than 5 or less than 1 / 5. Since each round factorises anew, whether rho moves or not, a batch needs
no branches, and is batched factorisations and products. All runs on equilibrated data, D Q D,
E A D, where columns of the whole matrix have a largest entry near 1.

*Derivatives.* Of the polished system, by all of Q, c, A, l, u; rows that are at a bound with y = 0
count as free. Nothing is divided by a slack. Where active rows depend on one another x has its
derivative, and y one of its.

*Differences.* From OSQP: (1) polishing in each round and not at the end; (2) a dense inverse from
the Cholesky factor, whose product is one batched step where triangular solves are n; (3) no
scaling of the cost. From jaxopt's `BoxOSQP`: (1) equilibration, polishing and weights for
equalities; (2) one residual, which knows complementarity.

*Cost.* A round: two Cholesky factors and their inverses, 2 m n^2 multiplications for their
matrices, and 50 products with the inverse, A and A'. For the derivative: one factor, and a few
products.

*Reference.* Stellato, Banjac, Goulart, Bemporad and Boyd, OSQP: an operator splitting solver for
quadratic programs, 2020; jaxopt 0.8.5.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import optim
from bilevel import checks
from bilevel.inner_solvers import solving
from optim import trees
from optim.solvers import linear, triangular

ROUND = 50  # steps between two factorisations
SIGMA = 1e-6
EQUALITY = 1e3  # weight of an equality, relative to rho
RHO = (1e-6, 1e6)  # least and most


class OSQPInfo(NamedTuple):
    """What the solver did; an `InnerInfo` with certificates of why there is no solution."""

    residual: jax.Array  # (), of the conditions, as the module defines it
    iterations: jax.Array  # (), int32: steps
    evaluations: jax.Array  # (), int32: factorisations
    converged: jax.Array  # (), bool: residual <= tolerance
    infeasible: jax.Array  # (m,): v, A'v = 0, u'max(v, 0) + l'min(v, 0) < 0: no x exists; or zeros
    unbounded: jax.Array  # (n,): d, Qd = 0, c'd < 0, A d in no bound's way: no least x; or zeros


class _Program(NamedTuple):
    q: jax.Array
    c: jax.Array
    a: jax.Array
    lower: jax.Array
    upper: jax.Array


class _State(NamedTuple):
    steps: jax.Array
    rounds: jax.Array
    rho: jax.Array
    x: jax.Array
    z: jax.Array
    y: jax.Array
    found: tuple[jax.Array, jax.Array]  # (x, y), the answer so far
    residual: jax.Array
    infeasible: jax.Array
    unbounded: jax.Array


def osqp(
    q: ArrayLike,
    c: ArrayLike,
    a: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    init: tuple[ArrayLike, ArrayLike] | None = None,
    rho: ArrayLike = 0.1,
    relaxation: ArrayLike = 1.6,
    tolerance: ArrayLike = 1e-5,
    max_steps: ArrayLike = 4000,
    **derivative: Any,
) -> tuple[tuple[jax.Array, jax.Array], OSQPInfo]:
    """Minimises x'Qx / 2 + c'x where lower <= Ax <= upper, with the derivative by all of these.

    Args:
      q: (n, n), positive semidefinite; its symmetric part counts.
      c: (n,).
      a: (m, n).
      lower, upper: (m,), or numbers; equal for an equality, infinite for no bound.
      init: (x, y) to start from; zeros by default.
      rho: the first weight, positive.
      relaxation: between 0 and 2.
      tolerance: of the residual.
      max_steps: most steps, rounded up to a multiple of 50.
      **derivative: options of `bilevel.attach_root`.

    Returns:
      ((x, y), info): the minimiser and the multipliers, Qx + c + A'y = 0 with y_i <= 0 where the
      lower bound holds and y_i >= 0 where the upper; and an `OSQPInfo`.

    Raises:
      ValueError: an array has another shape than these, or is not of real floats, or rho,
        relaxation, tolerance or max_steps is out of its range.

    >>> import jax, jax.numpy as jnp, bilevel
    >>> def nearest(point):  # in the box
    ...     return bilevel.osqp(jnp.eye(2), -point, jnp.eye(2), 0.0, 1.0)[0][0]
    >>> print(nearest(jnp.array([0.5, 3.0])).round(4))
    [0.5 1. ]
    >>> print(abs(jax.jacobian(nearest)(jnp.array([0.5, 3.0]))).round(4))
    [[1. 0.]
     [0. 0.]]
    """
    trees.check_positive("osqp", rho=rho)
    if isinstance(relaxation, numbers.Real) and not 0 < relaxation < 2:
        raise ValueError(f"osqp: relaxation is {relaxation}; accepted: 0 < relaxation < 2.")
    program = _checked(q, c, a, lower, upper)
    dtype = program.c.dtype
    n, m = program.c.size, program.lower.size
    x, y = (jnp.zeros(n, dtype), jnp.zeros(m, dtype)) if init is None else init
    given = (trees.as_dtype(x, dtype), trees.as_dtype(y, dtype))

    def loop(start: tuple[jax.Array, jax.Array]) -> Any:
        with jax.default_matmul_precision("highest"):
            return _rounds(program, start, rho, relaxation, tolerance, max_steps)

    def conditions(found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return _conditions(program, found, *_active(program, jax.lax.stop_gradient(found[1])))

    def inverse(found: tuple[jax.Array, jax.Array]) -> Callable[[Any], Any]:
        constant = jax.lax.stop_gradient(program)
        return _regularised_inverse(
            constant, _equilibrated(constant), _active(constant, found[1])[0]
        )

    options = {"symmetric": True, "solve": _refine, "preconditioner": inverse, **derivative}
    answer: Any = solving.answer(
        "osqp", conditions, given, loop, tolerance=tolerance, max_steps=max_steps, **options
    )
    return answer


def _checked(
    q: ArrayLike, c: ArrayLike, a: ArrayLike, lower: ArrayLike, upper: ArrayLike
) -> _Program:
    names = _Program._fields
    given: list[Any] = [
        checks.floats("osqp", *pair) for pair in zip(names, (q, c, a, lower, upper))
    ]
    dtype = trees.accumulator_dtype(*given)
    matrix, slope, rows, *bounds = (v.astype(dtype) for v in given)
    n, m = slope.size, len(rows) if rows.ndim else 0
    bounds = [jnp.broadcast_to(v, m) if v.ndim == 0 else v for v in bounds]
    shapes = ((n, n), (n,), (m, n), (m,), (m,))
    for name, value, shape in zip(names, (matrix, slope, rows, *bounds), shapes):
        if value.shape != shape:
            raise ValueError(f"osqp: {name} has the shape {value.shape}; accepted: {shape}.")
    return _Program((matrix + matrix.T) / 2, slope, rows, bounds[0], bounds[1])


def _rounds(
    program: _Program,
    start: tuple[jax.Array, jax.Array],
    rho: ArrayLike,
    relaxation: ArrayLike,
    tolerance: ArrayLike,
    max_steps: ArrayLike,
) -> tuple[Any, OSQPInfo]:
    d, e = _equilibrated(program)
    scaled = _Program(
        d[:, None] * program.q * d,
        d * program.c,
        e[:, None] * program.a * d,
        e * program.lower,
        e * program.upper,
    )
    ratio = jnp.where(program.lower == program.upper, EQUALITY, 1).astype(d.dtype)

    def one_round(s: _State) -> _State:
        before, after = _steps(scaled, s.rho * ratio, relaxation, (s.x, s.z, s.y))
        x, z, y = after
        plain = (d * x, e * y)
        found, residual = s.found, s.residual
        for other in (plain, _polished(program, (d, e), plain[1])):
            its = _residual(program, *other)
            less = its < residual
            found = jax.tree.map(lambda u, v: jnp.where(less, u, v), other, found)  # noqa: B023
            residual = jnp.where(less, its, residual)
        infeasible, unbounded = _certificates(scaled, x - before[0], y - before[2])
        steps, rounds = s.steps + ROUND, s.rounds + 1
        rho = _adapted(scaled, s.rho, after)
        return _State(steps, rounds, rho, x, z, y, found, residual, e * infeasible, d * unbounded)

    def goes_on(s: _State) -> jax.Array:
        hopeless = jnp.any(s.infeasible != 0) | jnp.any(s.unbounded != 0)
        return (s.residual > tolerance) & ~hopeless & (s.steps < max_steps)

    x, y = start[0] / d, start[1] / e
    z = jnp.clip(scaled.a @ x, scaled.lower, scaled.upper)
    zero, residual = jnp.int32(0), _residual(program, *start)
    weight = trees.as_dtype(rho, d.dtype)
    first = _State(zero, zero, weight, x, z, y, start, residual, 0 * e, 0 * d)
    s = jax.lax.while_loop(goes_on, one_round, first)
    solved = s.residual <= tolerance
    infeasible, unbounded = (jnp.where(solved, 0, v) for v in (s.infeasible, s.unbounded))
    return s.found, OSQPInfo(s.residual, s.steps, 2 * s.rounds, solved, infeasible, unbounded)


def _steps(
    scaled: _Program, weights: jax.Array, relaxation: ArrayLike, start: tuple[jax.Array, ...]
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """(x, z, y) one step before the end of a round, and at its end."""
    q, c, a, lower, upper = scaled
    unit = jnp.eye(c.size, dtype=c.dtype)
    matrix = q + SIGMA * unit + a.T @ (weights[:, None] * a)
    root = triangular.lower_inverse(jnp.linalg.cholesky(matrix))
    inverse = root.T @ root
    relax = trees.as_dtype(relaxation, c.dtype)

    def step(_: Any, s: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        x, z, y = s
        p = inverse @ (SIGMA * x - c + a.T @ (weights * z - y))
        g = relax * (a @ p) + (1 - relax) * z + y / weights
        z = jnp.clip(g, lower, upper)
        return relax * p + (1 - relax) * x, z, weights * (g - z)

    before = jax.lax.fori_loop(0, ROUND - 1, step, start)
    return before, step(0, before)


def _adapted(scaled: _Program, rho: jax.Array, s: tuple[jax.Array, ...]) -> jax.Array:
    """rho, moved to where both residuals of the steps would be alike."""
    x, z, y = s
    ax, qx, ay = scaled.a @ x, scaled.q @ x, y @ scaled.a
    primal = linear.divide(_largest(ax - z), jnp.maximum(_largest(ax), _largest(z)))
    terms = jnp.maximum(_largest(qx), jnp.maximum(_largest(ay), _largest(scaled.c)))
    dual = linear.divide(_largest(qx + scaled.c + ay), terms)
    tiny = jnp.finfo(rho.dtype).tiny
    wanted = jnp.clip(rho * jnp.sqrt(jnp.maximum(primal, tiny) / jnp.maximum(dual, tiny)), *RHO)
    return jnp.where((wanted > 5 * rho) | (wanted < rho / 5), wanted, rho)


def _residual(program: _Program, x: jax.Array, y: jax.Array) -> jax.Array:
    q, c, a, lower, upper = program
    ax, terms = a @ x, (q @ x, c, y @ a)
    size = jnp.maximum(1, jnp.max(jnp.stack([_largest(v) for v in terms])))
    dual = _largest(sum(terms)) / size
    primal = _largest(ax - jnp.clip(ax + y, lower, upper)) / jnp.maximum(1, _largest(ax))
    found = jnp.maximum(primal, dual)
    return jnp.where(jnp.isnan(found), jnp.inf, found)


def _largest(v: Any) -> jax.Array:
    return jnp.max(jnp.abs(v), initial=0)


def _active(program: _Program, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which rows are equalities for these multipliers, and the bound that each is equal to."""
    equality = program.lower == program.upper
    side = jnp.where(y < 0, program.lower, program.upper)
    side = jnp.where(equality, (program.lower + program.upper) / 2, side)
    active = equality | (y != 0)
    return active, jnp.where(active, side, 0)


def _conditions(
    program: _Program, found: tuple[jax.Array, jax.Array], active: jax.Array, bound: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Zero at the solution; with a symmetric Jacobian, since multipliers of free rows are zero."""
    x, y = found
    with jax.default_matmul_precision("highest"):
        slope = program.q @ x + program.c + jnp.where(active, y, 0) @ program.a
        return slope, jnp.where(active, program.a @ x - bound, y)


def _polished(
    program: _Program, scale: tuple[jax.Array, jax.Array], y: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The solution with the rows active that have multipliers, and no others."""
    active, bound = _active(program, y)
    nothing = program._replace(c=jnp.zeros_like(program.c))

    def matvec(v: Any) -> Any:
        return _conditions(nothing, v, active, jnp.zeros_like(bound))

    inverse = _regularised_inverse(program, scale, active)
    (x, polished), _ = _refine(matvec, (-program.c, bound), preconditioner=inverse)
    # A multiplier that changed its side counts as zero, and the residual tells.
    side = jnp.where(y < 0, jnp.minimum(polished, 0), jnp.maximum(polished, 0))
    return x, jnp.where(program.lower == program.upper, polished, side)


def _regularised_inverse(
    program: _Program, scale: tuple[jax.Array, jax.Array], active: jax.Array
) -> Callable[[Any], Any]:
    """The inverse of the system of `_conditions`, with a small multiple of D^-2, -E^-2 added.

    That has an inverse even where rows depend on one another, and one of its Schur complement's
    Cholesky factor; what `_refine` finds with it is a solution of the system itself.
    """
    d, e = scale
    q, a = d[:, None] * program.q * d, e[:, None] * program.a * d
    # The rounding of A'A / small is less than small.
    small = jnp.finfo(d.dtype).eps ** 0.375
    weights = jnp.where(active, 1 / small, 0).astype(d.dtype)
    with jax.default_matmul_precision("highest"):
        matrix = q + small * jnp.eye(d.size, dtype=d.dtype) + a.T @ (weights[:, None] * a)
    root = triangular.lower_inverse(jnp.linalg.cholesky(matrix))

    def inverse(r: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        slope, rows = d * r[0], e * r[1]
        with jax.default_matmul_precision("highest"):
            x = (root @ (slope + a.T @ (weights * rows))) @ root
            y = (a @ x - rows) / small
        return d * x, jnp.where(active, e * y, r[1])

    return inverse


def _refine(
    matvec: Callable[[Any], Any], b: Any, *, preconditioner: Callable[[Any], Any]
) -> tuple[Any, optim.SolveInfo]:
    """Solves by iterative refinement, for as long as the residual halves."""
    dtype = trees.accumulator_dtype(*jax.tree.leaves(b))

    def cycle(product: Any, r: Any, goal: jax.Array, most: jax.Array) -> Any:
        del product, goal, most
        return preconditioner(r), 1, 0, True

    rounding, most = 10 * jnp.finfo(dtype).eps, 30
    x, info = linear.solve(
        "osqp",
        matvec,
        b,
        cycle,
        init=None,
        tolerance=rounding,
        absolute_tolerance=0.0,
        max_steps=most,
    )
    return x, info._replace(
        converged=info.residual <= trees.as_dtype(rounding**0.5, dtype) * trees.norm(b)
    )


def _certificates(scaled: _Program, dx: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The directions in which the steps go, where these prove that there is no solution."""
    q, c, a, lower, upper = scaled
    small = max(1e-6, float(jnp.finfo(c.dtype).eps) ** 0.5)
    v = linear.divide(dy, _largest(dy))
    v = jnp.where(jnp.isinf(upper), jnp.minimum(v, 0), v)
    v = jnp.where(jnp.isinf(lower), jnp.maximum(v, 0), v)
    reach = jnp.where(v > 0, upper, jnp.where(v < 0, lower, 0)) @ v
    infeasible = (_largest(v @ a) <= small) & (reach < -small)
    d = linear.divide(dx, _largest(dx))
    ad = a @ d
    stays = jnp.all((ad <= small) | jnp.isinf(upper)) & jnp.all((ad >= -small) | jnp.isinf(lower))
    unbounded = (_largest(q @ d) <= small) & (c @ d < -small * _largest(c)) & stays
    return jnp.where(infeasible, v, 0), jnp.where(unbounded, d, 0)


def _equilibrated(program: _Program) -> tuple[jax.Array, jax.Array]:
    """Scales of x and of the rows of A, by Ruiz's method."""
    q, a = jnp.abs(program.q), jnp.abs(program.a)

    def half(norms: jax.Array) -> jax.Array:
        return jax.lax.rsqrt(jnp.where(norms > 0, norms, 1))

    def step(_: Any, scales: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        d, e = scales
        rows = e[:, None] * a * d
        columns = jnp.maximum(jnp.max(d[:, None] * q * d, axis=0), jnp.max(rows, 0, initial=0))
        return d * half(columns), e * half(jnp.max(rows, 1, initial=0))

    ones = (jnp.ones_like(program.c), jnp.ones_like(program.lower))
    return jax.lax.fori_loop(0, 10, step, ones)
