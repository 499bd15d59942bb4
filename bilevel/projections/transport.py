"""Projections onto the transport polytope: plans P >= 0 with given sums of rows and of columns.

::

    euclidean   P = argmin |P - S|^2 / 2          P = max(Z, 0)
    entropic    P = argmin sum P log P - P - S P   P = exp(Z)
                subject to P >= 0, P 1 = a, P' 1 = b,   Z = S + f 1' + 1 g'

The first is the nearest to S, the second the nearest to exp(S) in relative entropy: with
S = -cost / epsilon, the transport regularised by epsilon. A step sets f so that rows have their
sums, by the threshold of a simplex or by a log-sum-exp, then g so that columns have theirs
(Sinkhorn's iteration), then takes Newton's step for f, with columns kept to their sums::

    W = dP/dZ,   (diag(W 1) - W diag(1 / W' 1) W' + r diag(W 1)) df = a - P 1

where r is a hundredth of the error left, relative. Its length is found by bisection on the slope of
the dual objective, which is convex in f. Where S is large, a small multiple of it is solved roughly
first, and doubled.

*Convergence.* Reached when no sum is off by more than `tolerance` times the largest, by default 100
units of rounding; P is NaN where that takes more than `max_steps`, where the totals of a and b
differ, or one of them is negative.

*Precision.* Z is carried, and not f and g, which may be so much larger than what is left of their
sum with S that a float32 P would be of two digits.

*Derivatives.* By the implicit function theorem, in S, a and b, with the matrix above (r = 0, and a
pseudo-inverse for what does not change P). b is scaled to the total of a first, so that there is a
derivative in a or b alone. The euclidean plan is linear in S, a and b as long as its support stays;
there is no derivative where that is about to change, or where it falls into parts that are
balanced. The derivative in a sum that is zero is zero in the entropic form.

*Differences.* From jaxopt's `projection_transport` and `kl_projection_transport`: (1) they run
L-BFGS on the semi-dual to 1e-3, and say nothing where it fails; (2) the derivative of their
euclidean plan is zero in S and in a; (3) `marginals` is two arguments here, as in optax; (4) in the
euclidean form a sum may be zero, which there divides by zero. Their docstrings swap rows and
columns; their code does not.

*Cost.* For (m, n), a step sorts or exponentiates P six times or more and solves a system of size m:
prefer the short side as rows. Three to twenty steps where S is of the size of P (of 10, entropic),
up to a few hundred at a thousand times that, where the problem is nearly a linear program.

*Reference.* Blondel, Seguy and Rolet, Smooth and sparse optimal transport, 2018; Brauer, Clason,
Lorenz and Wirth, A Sinkhorn-Newton method for entropic optimal transport, 2017.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import optim
from bilevel.differentiation.implicit import attach_root
from bilevel.projections import arguments
from optim import trees

TRIALS = 10  # of lengths of Newton's step
FLAT = 0.3  # the slope at which a length is good, of that at zero
NEAR = 0.1  # the error at which S is doubled


def projection_transport(
    similarity: ArrayLike,
    marginals_a: ArrayLike,
    marginals_b: ArrayLike,
    *,
    tolerance: ArrayLike | None = None,
    max_steps: ArrayLike = 1000,
) -> jax.Array:
    """The plan nearest to `similarity`, in the Euclidean norm.

    Args:
      similarity: S, (m, n), real floats; minus the cost.
      marginals_a: a, (m,), sums of rows, at least 0.
      marginals_b: b, (n,), sums of columns, at least 0, of the same total.
      tolerance: largest error of a sum, relative to the largest sum; None for 100 units of
        rounding.
      max_steps: after so many steps without that, the plan is NaN.

    Raises:
      ValueError: similarity is no matrix of real floats, a marginal has another shape, or tolerance
        or max_steps is out of its range.

    >>> import bilevel, jax.numpy as jnp
    >>> s = jnp.array([[1.0, 0.0], [0.5, 0.5]])
    >>> y = bilevel.projection_transport(s, jnp.array([1.0, 1.0]), jnp.array([1.0, 1.0]))
    >>> print(jnp.array_str(y, precision=3))
    [[0.75 0.25]
     [0.25 0.75]]
    """
    method = "projection_transport"
    return _project(method, _EUCLIDEAN, similarity, marginals_a, marginals_b, tolerance, max_steps)


def projection_transport_kl(
    similarity: ArrayLike,
    marginals_a: ArrayLike,
    marginals_b: ArrayLike,
    *,
    tolerance: ArrayLike | None = None,
    max_steps: ArrayLike = 1000,
) -> jax.Array:
    """The plan nearest to exp(similarity), in relative entropy.

    Args and errors are those of `projection_transport`; similarity is minus the cost over the
    strength of the entropy, and may be -inf where nothing may be sent.

    >>> import bilevel, jax.numpy as jnp
    >>> s = jnp.log(jnp.array([[4.0, 1.0], [1.0, 4.0]]))
    >>> y = bilevel.projection_transport_kl(s, jnp.array([0.5, 0.5]), jnp.array([0.5, 0.5]))
    >>> print(jnp.array_str(y, precision=3))
    [[0.4 0.1]
     [0.1 0.4]]
    """
    method = "projection_transport_kl"
    return _project(method, _ENTROPIC, similarity, marginals_a, marginals_b, tolerance, max_steps)


class _Form(NamedTuple):
    """What the two forms differ in."""

    shift: Callable[[jax.Array, jax.Array], jax.Array]  # Z, a -> f that gives rows their sums
    plan: Callable[[jax.Array], jax.Array]  # Z -> P
    weight: Callable[[jax.Array], jax.Array]  # P -> W
    reach: Callable[[jax.Array], jax.Array]  # a -> spread of S that is easy


def _euclidean_shift(z: jax.Array, sums: jax.Array) -> jax.Array:
    largest = -jnp.sort(-z, axis=1)
    counts = jnp.arange(1, z.shape[1] + 1).astype(z.dtype)
    thresholds = (jnp.cumsum(largest, axis=1) - sums[:, None]) / counts
    size = jnp.maximum(jnp.count_nonzero(largest > thresholds, axis=1, keepdims=True), 1)
    return -jnp.take_along_axis(thresholds, size - 1, axis=1)[:, 0]


def _entropic_shift(z: jax.Array, sums: jax.Array) -> jax.Array:
    total = jax.nn.logsumexp(z, axis=1)
    some = jnp.isfinite(total)  # a row of -inf stays one
    return jnp.where(some, jnp.log(sums) - jnp.where(some, total, 0), 0)


_EUCLIDEAN = _Form(_euclidean_shift, jax.nn.relu, lambda p: (p > 0).astype(p.dtype), jnp.max)
_ENTROPIC = _Form(_entropic_shift, jnp.exp, lambda p: p, lambda a: jnp.full((), 8, a.dtype))


def _project(
    method: str,
    form: _Form,
    similarity: ArrayLike,
    marginals_a: ArrayLike,
    marginals_b: ArrayLike,
    tolerance: ArrayLike | None,
    max_steps: ArrayLike,
) -> jax.Array:
    s, given = arguments.point(method, "similarity", similarity, None, None)
    a = arguments.array(method, "marginals_a", marginals_a, s.dtype, s.shape[0])
    b = arguments.array(method, "marginals_b", marginals_b, s.dtype, s.shape[1])
    tolerance = arguments.rounding(s.dtype) if tolerance is None else tolerance
    trees.check_at_least(method, 0, tolerance=tolerance)
    trees.check_at_least(method, 1, max_steps=max_steps)
    tolerance = trees.as_dtype(tolerance, s.dtype)
    mass, other = jnp.sum(a), jnp.sum(b)
    # Sums that were rounded to a narrow dtype agree in total to that dtype's rounding.
    rounded = sum(float(jnp.finfo(d).eps) for d in _float_dtypes(marginals_a, marginals_b))
    valid = jnp.abs(mass - other) <= (tolerance + rounded) * jnp.maximum(mass, other)
    valid &= jnp.all(a >= 0) & jnp.all(b >= 0)
    b = b * (mass / jnp.where(other > 0, other, 1))
    with jax.default_matmul_precision("highest"):
        stopped = jax.lax.stop_gradient((s, a, b, valid, tolerance))
        z, found = _balance(form, *stopped, jnp.asarray(max_steps, jnp.int32))
        z = z + jnp.where(jnp.isfinite(s), s - jax.lax.stop_gradient(s), 0)
        plan = _differentiable(form, z, a, b)
    return arguments.nan_unless(found, plan).astype(given)


def _float_dtypes(*values: ArrayLike) -> list[jnp.dtype]:
    dtypes = [jnp.result_type(value) for value in values]
    return [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]


@functools.partial(jax.jit, static_argnums=0)  # so that it is compiled once, called bare
def _balance(
    form: _Form,
    s: jax.Array,
    a: jax.Array,
    b: jax.Array,
    valid: jax.Array,
    tolerance: jax.Array,
    max_steps: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Z, and whether it converged."""
    largest = jnp.maximum(jnp.max(a), jnp.finfo(s.dtype).tiny)

    def columns(z: jax.Array) -> jax.Array:
        return z + form.shift(z.T, b)

    def error(z: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(jnp.sum(form.plan(z), axis=1) - a)) / largest

    def newton(z: jax.Array) -> jax.Array:
        plan = form.plan(z)
        missing = a - jnp.sum(plan, axis=1)
        matrix, root, _ = _laplacian(form.weight(plan))
        before = error(z)
        damping = jnp.maximum(jnp.minimum(before, 1) / 100, 10 * jnp.finfo(z.dtype).eps)
        matrix = matrix + damping * jnp.eye(len(matrix), dtype=z.dtype)
        step = root * jnp.linalg.solve(matrix, root * missing)
        slope = jnp.sum(step * missing)

        def far(carry: Any) -> jax.Array:
            tried, left, *_, trials = carry
            steep = (jnp.abs(left) > FLAT * slope) & (error(tried) > before / 2)
            return steep & (trials < TRIALS)

        def search(carry: Any) -> Any:
            _, _, t, short, long, trials = carry
            # The last one is surely no step too far.
            t = jnp.where(trials < TRIALS - 1, t, short)
            tried = columns(z + t * step[:, None])
            left = jnp.sum(step * (a - jnp.sum(form.plan(tried), axis=1)))
            short, long = jnp.where(left > 0, t, short), jnp.where(left > 0, long, t)
            t = jnp.where(jnp.isfinite(long), (short + long) / 2, 2 * t)
            return tried, left, t, short, long, trials + 1

        one, infinite = jnp.ones((), z.dtype), jnp.full((), jnp.inf, z.dtype)
        start = (z, infinite, one, 0 * one, infinite, jnp.int32(0))
        return jax.lax.while_loop(far, search, start)[0]

    def goes_on(carry: Any) -> jax.Array:
        _, left, scale, steps = carry
        return valid & (steps < max_steps) & ((left > tolerance) | (scale < 1))

    def body(carry: Any) -> Any:
        z, left, scale, steps = carry
        grows = (left <= NEAR) & (scale < 1)
        z, scale = jnp.where(grows, 2 * z, z), jnp.where(grows, 2 * scale, scale)
        z = columns(z + form.shift(z, a)[:, None])
        z = newton(z)
        return z, error(z), scale, steps + 1

    finite = jnp.isfinite(s)
    spread = jnp.max(jnp.where(finite, s, -jnp.inf)) - jnp.min(jnp.where(finite, s, jnp.inf))
    halvings = jnp.maximum(jnp.frexp(spread / form.reach(a))[1], 0)
    scale = jnp.ldexp(jnp.ones((), s.dtype), -halvings)
    infinite = jnp.array(jnp.inf, s.dtype)
    z, left, *_ = jax.lax.while_loop(goes_on, body, (scale * s, infinite, scale, jnp.int32(0)))
    return z, valid & (left <= tolerance)


def _laplacian(weight: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """I - R W diag(1 / W' 1) W' R with R = diag(1 / W 1)^(1/2), that R, and 1 / W' 1."""
    rows, columns = jnp.sum(weight, axis=1), jnp.sum(weight, axis=0)
    root = jnp.where(rows > 0, 1 / jnp.sqrt(jnp.where(rows > 0, rows, 1)), 0)
    inverse = jnp.where(columns > 0, 1 / jnp.where(columns > 0, columns, 1), 0)
    half = root[:, None] * weight
    return jnp.diag((rows > 0).astype(weight.dtype)) - (half * inverse) @ half.T, root, inverse


def _differentiable(form: _Form, z: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """The plan of Z with the derivative of f and g, which are zero."""

    def plan(potentials: Any, z: jax.Array) -> jax.Array:
        f, g = potentials
        return form.plan(z + f[:, None] + g)

    def conditions(potentials: Any, z: jax.Array, a: jax.Array, b: jax.Array) -> Any:
        p = plan(potentials, z)
        return jnp.sum(p, axis=1) - a, jnp.sum(p, axis=0) - b

    # Out here: JAX fails where what a solve closes over has a derivative and its system has none.
    weight = form.weight(form.plan(jax.lax.stop_gradient(z)))

    def solve(matvec: Any, r: Any, *, preconditioner: Any) -> tuple[Any, optim.SolveInfo]:
        del matvec, preconditioner  # it is the matrix of W
        matrix, root, inverse = _laplacian(weight)
        by_row = root * (r[0] - weight @ (inverse * r[1]))
        f = root * (jnp.linalg.pinv(matrix, hermitian=True) @ by_row)
        g = inverse * (r[1] - weight.T @ f)
        zero = jnp.zeros((), jnp.int32)
        return (f, g), optim.SolveInfo(zero.astype(a.dtype), zero, zero, jnp.bool_(True))

    start = (jnp.zeros_like(a), jnp.zeros_like(b))
    potentials = attach_root(conditions, start, z, a, b, symmetric=True, solve=solve)
    return plan(potentials, z)
