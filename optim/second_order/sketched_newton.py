"""AdaSketch-Newton: Newton's method for equality constraints, its system solved by sketches.

Minimizes f(x) subject to c(x) = 0. With multipliers `λ`, L = f + c.λ, the Jacobian `G` of c, and
H the Hessian of L in x, a step solves the Newton system of the first-order conditions in part::

    (B  G') d = -(∇L)     B = H + t I,  t = 0, or xi_B + |H| where the smallest eigenvalue of
    (G  0 )      (c )         H on the null space of G is below `curvature_floor`

by projections onto random combinations of its rows. With A d = b for the system, r = A d - b, and
a random vector s, normal for GV or a unit vector for RK (`kaczmarz_sketch`)::

    d = d - A's (s.r) / |A's|^2      until  |A| Psi |r| <= theta delta |b|

Accuracy and penalties follow from a merit function M, the exact augmented Lagrangian, whose minima
are those of the problem for a large `eta1` and a small `eta2`::

    M = f + c.λ + eta1/2 |c|^2 + eta2/2 |∇L|^2
    ∇M = (∇L + eta2 H ∇L + eta1 G'c,  c + eta2 G ∇L)
    Psi = 20 max(|B|^2, 1) / (min(xi_G, 1) min(xi_B, 1)),    xi_G the smallest eigenvalue of G G'
    Upsilon = max(|G|, |H|, 1)
    delta = min(delta, (1/2 - beta) eta2 / ((1 + eta1 + eta2) Upsilon^2 Psi^2))

While d does not descend, ∇M.d > -eta2/2 |b|^2, eta1 is multiplied by nu^2, eta2 divided by nu,
delta by nu^4 (and bounded as above), and the projections go on. Then (x, λ) moves by alpha d, alpha
the first of 1, 1/2, 1/4, ... with M lower by beta alpha |∇M.d| at least. Norms of matrices are
Frobenius's. theta = 1 gives linear, theta falling to 0 superlinear convergence.

*Differences.* 1. The authors' code has the Hessian of f where the paper's gradient of M has that
of L; here the paper's, with `variant="code"` the code's. 2. Their first residual is b instead of
-b, so that their first projection goes the wrong way, which the next ones repair. 3. The code's
safeguards are kept: delta is at least 1e-6, penalties stop at eta1 > 1e8 or eta2 < 1e-8, a solve
stops after `max_sketches`, and a step needs xi_G >= `rank_floor`; where the code then gives up with
NaN, the state stays and `info.regular` is False, as where the system is not finite. For logistic
regression it has 1e-2 in place of `curvature_floor` and 10^6 in place of `max_sketches`. 4. Ours:
where the last penalties leave an ascending direction, which the paper's never do, a step along it
must lower M, while the code lets M rise by beta alpha ∇M.d; the line search allows for the rounding
of M, and ends after 50 halvings, without a step; projections end as well where r is at the rounding
of A d, which in float32 is soon. Step lengths and |(∇L, c)| of the authors' runs on CUTEst problems
are met to 1e-8 wherever no solve of theirs was cut off.

*Cost.* Dense matrices of (n + m)^2, hence at most a few thousand unknowns; a step computes H (n
products, forward over reverse), eigenvalues of G G' and of H on the null space, a QR of G'. A
projection is two products with A, a trial of the line search one gradient of L.

*Reference.* Hong, Na, Mahoney, Kolar, Constrained Optimization via Exact Augmented Lagrangian and
Randomized Iterative Sketching, 2023 (arXiv:2305.18379); IlgeeHong/AdaSketch-Newton@d7e0c227fc1b,
CUTEst/AdaSketchNewtonGV/AdaSketchNewtonGV.jl, CUTEst/Parameter/Param.jl.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike, DTypeLike

from optim import trees

Sketch = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]

_SMALLEST_DELTA = 1e-6
_LARGEST_ETA1, _SMALLEST_ETA2 = 1e8, 1e-8
_MOST_HALVINGS = 50

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "beta": (lambda value: 0 < value < 0.5, "0 < beta < 1/2"),
    "nu": (lambda value: value > 1, "nu > 1"),
    "theta": (lambda value: 0 < value <= 1, "0 < theta <= 1"),
    "max_sketches": (lambda value: value >= 1, "max_sketches >= 1"),
}


class SketchedNewtonState(NamedTuple):
    """State of `sketched_newton`."""

    params: optax.Params  # x, in the dtypes that were given
    multipliers: Any  # like the value of the constraint: λ
    eta1: jax.Array  # (), like x: penalty of the constraint
    eta2: jax.Array  # (), like x: penalty of the gradient of the Lagrangian
    delta: jax.Array  # (), like x: accuracy of the direction
    steps: jax.Array  # (), int32, steps made
    key: jax.Array  # (), typed key of all sketches


class SketchedNewtonInfo(NamedTuple):
    """What a step of `sketched_newton` found; the first three at the point that it ends in."""

    value: jax.Array  # f
    infeasibility: jax.Array  # |c|
    residual: jax.Array  # |(∇L, c)|, zero where the first-order conditions hold
    step_size: jax.Array  # alpha; 0 where no step was made
    shift: jax.Array  # t, 0 where H is positive on the null space of G
    linear_residual: jax.Array  # |A d - b| / |b|
    sketches: jax.Array  # int32, projections of this step
    penalty_updates: jax.Array  # int32, changes of eta1, eta2 and delta in this step
    merit_evaluations: jax.Array  # int32, each one value and gradient of f and one of c
    smallest_eigenvalue: jax.Array  # xi_G
    regular: jax.Array  # bool: xi_G was not below rank_floor, and A, b and ∇M were finite
    descends: jax.Array  # bool: ∇M.d <= -eta2/2 |b|^2 at the last penalties
    accepted: jax.Array  # bool: the line search found a step


class SketchedNewton(NamedTuple):
    """An algorithm over (x, λ)."""

    init: Callable[..., SketchedNewtonState]  # (params, key, multipliers=None) -> state
    update: Callable[..., tuple[SketchedNewtonState, SketchedNewtonInfo]]  # (state, batch=None)


def kaczmarz_sketch(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """RK: a unit vector of uniform direction, so that a projection is onto one row.

    >>> import jax, jax.numpy as jnp, optim
    >>> print(optim.kaczmarz_sketch(jax.random.key(0), (4,), jnp.float32).sum())
    1.0
    """
    (size,) = shape
    return jax.nn.one_hot(jax.random.randint(key, (), 0, size), size, dtype=dtype)


class _Settings(NamedTuple):
    beta: ArrayLike
    nu: ArrayLike
    xi_B: ArrayLike
    max_sketches: int
    curvature_floor: ArrayLike
    rank_floor: ArrayLike
    sketch: Sketch
    variant: str


class _Problem(NamedTuple):
    """f and c of one vector x, and how long x is."""

    objective: Callable[[jax.Array], jax.Array]
    constraint: Callable[[jax.Array], jax.Array]
    size: int


class _System(NamedTuple):
    """A d = b, what its accuracy is measured by, and the gradient of M by its terms."""

    matrix: jax.Array  # (n + m, n + m): A
    target: jax.Array  # (n + m,): b
    norm: jax.Array  # |A|
    psi: jax.Array
    upsilon: jax.Array
    shift: jax.Array  # t
    smallest: jax.Array  # xi_G
    slopes: jax.Array  # (3, n + m): ∇M = (1, eta1, eta2) @ slopes
    regular: jax.Array  # bool: xi_G is large enough, and nothing above is infinite or NaN


class _Search(NamedTuple):
    """The state of the loop over penalties."""

    direction: jax.Array  # (n + m,): d
    residual: jax.Array  # (n + m,): r
    eta1: jax.Array
    eta2: jax.Array
    delta: jax.Array
    slope: jax.Array  # ∇M.d
    sketches: jax.Array
    updates: jax.Array
    done: jax.Array


class _Merit(NamedTuple):
    """M at a point, its parts, and how large the terms are that it adds up."""

    value: jax.Array  # M
    objective: jax.Array  # f
    infeasibility: jax.Array  # |c|
    residual: jax.Array  # |(∇L, c)|
    scale: jax.Array


def sketched_newton(
    objective: Callable[[Any], jax.Array],
    constraint: Callable[[Any], Any],
    *,
    eta1: ArrayLike = 1.0,
    eta2: ArrayLike = 0.1,
    delta: ArrayLike = 0.1,
    xi_B: ArrayLike = 0.1,
    beta: ArrayLike = 0.1,
    nu: ArrayLike = 1.5,
    theta: optax.ScalarOrSchedule = 1.0,
    sketch: Sketch = jax.random.normal,
    max_sketches: int = 100_000,
    curvature_floor: ArrayLike = 1e-6,
    rank_floor: ArrayLike = 1e-2,
    variant: str = "paper",
) -> SketchedNewton:
    """AdaSketch-Newton; `update` is traceable, and makes one Newton step.

    `init(params, key, multipliers=None)` starts at λ = 0 unless given; `update(state)` returns the
    new state and a `SketchedNewtonInfo`, whose `residual` says when to stop. A second argument of
    `update`, a batch, is let through unread: f and c are the same at every step.

    Args:
      objective: params -> f, a scalar.
      constraint: params -> c, an array or a tree of them, of 1 to n elements in all.
      eta1: penalty of |c|^2 at the start, positive.
      eta2: penalty of |∇L|^2 at the start, positive.
      delta: accuracy of the first direction, positive.
      xi_B: least shift of a Hessian that is not positive, positive.
      beta: share of the predicted decrease that a step has to make, in (0, 1/2).
      nu: growth of the penalties, above 1.
      theta: factor of the accuracy in (0, 1], or a schedule of it.
      sketch: (key, shape, dtype) -> s; normal for GV, `optim.kaczmarz_sketch` for RK.
      max_sketches: most projections for one accuracy, at least 1.
      curvature_floor: H is shifted where its smallest eigenvalue on the null space of G is below.
      rank_floor: no step is made where the smallest eigenvalue of G G' is below, positive.
      variant: "paper", or "code" for the Hessian of f in the gradient of M.

    Raises:
      ValueError: a number or the variant is not accepted; at init, parameters that are not
        float32 or float64, a value of f that is no scalar, constraints of which there are none or
        more than unknowns, or multipliers that are not like them.

    >>> import jax, jax.numpy as jnp, optim
    >>> algorithm = optim.sketched_newton(lambda x: x @ x / 2, lambda x: x.sum() - 3.0)
    >>> state = algorithm.init(jnp.zeros(3), jax.random.key(0))
    >>> update = jax.jit(algorithm.update)
    >>> for _ in range(5):
    ...     state, info = update(state)
    >>> print(jnp.round(state.params, 3), info.residual < 1e-3)
    [1. 1. 1.] True
    """
    trees.check_positive(
        "sketched_newton", eta1=eta1, eta2=eta2, delta=delta, xi_B=xi_B, rank_floor=rank_floor
    )
    _check_numbers(variant, beta=beta, nu=nu, theta=theta, max_sketches=max_sketches)
    settings = _Settings(beta, nu, xi_B, max_sketches, curvature_floor, rank_floor, sketch, variant)

    def init(params: optax.Params, key: jax.Array, multipliers: Any = None) -> SketchedNewtonState:
        dtype = _checked_dtype(params)
        shapes = _checked_shapes(objective, constraint, params, multipliers)
        if multipliers is None:
            multipliers = jax.tree.map(lambda c: jnp.zeros(c.shape, c.dtype), shapes)
        copies = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
        return SketchedNewtonState(
            params=copies,
            multipliers=jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), multipliers),
            eta1=jnp.asarray(eta1, dtype),
            eta2=jnp.asarray(eta2, dtype),
            delta=jnp.asarray(delta, dtype),
            steps=jnp.zeros((), jnp.int32),
            key=trees.named_key(key, "sketched_newton"),
        )

    def update(
        state: SketchedNewtonState, batch: Any = None
    ) -> tuple[SketchedNewtonState, SketchedNewtonInfo]:
        del batch
        x, to_params = ravel_pytree(state.params)
        multipliers, to_multipliers = ravel_pytree(state.multipliers)
        problem = _Problem(
            lambda x: objective(to_params(x)),
            lambda x: ravel_pytree(constraint(to_params(x)))[0].astype(x.dtype),
            x.size,
        )
        # Products in less than the arithmetic's precision would end the projections early.
        with jax.default_matmul_precision("highest"):
            point, search, info = _step(
                problem,
                jnp.concatenate([x, multipliers.astype(x.dtype)]),
                (state.eta1, state.eta2, state.delta),
                trees.value_at(theta, state.steps, x.dtype),
                settings,
                jax.random.fold_in(state.key, state.steps),
            )
        new = SketchedNewtonState(
            params=to_params(point[: x.size]),
            multipliers=to_multipliers(point[x.size :]),
            eta1=search.eta1,
            eta2=search.eta2,
            delta=search.delta,
            steps=optax.safe_increment(state.steps),
            key=state.key,
        )
        return new, info

    return SketchedNewton(init, update)


def _step(
    problem: _Problem,
    point: jax.Array,
    penalties: tuple[jax.Array, jax.Array, jax.Array],
    theta: jax.Array,
    settings: _Settings,
    key: jax.Array,
) -> tuple[jax.Array, _Search, SketchedNewtonInfo]:
    """From (x, λ) to the next one."""
    system = _linearize(problem, point, settings)
    search = _direction(system, penalties, theta, settings, key)
    point, alpha, merit, trials = _line_search(problem, point, search, settings)
    length = jnp.linalg.norm(system.target)
    info = SketchedNewtonInfo(
        value=merit.objective,
        infeasibility=merit.infeasibility,
        residual=merit.residual,
        step_size=jnp.where(system.regular, alpha, 0),
        shift=system.shift,
        linear_residual=jnp.linalg.norm(search.residual) / jnp.where(length > 0, length, 1),
        sketches=search.sketches,
        penalty_updates=search.updates,
        merit_evaluations=1 + trials,
        smallest_eigenvalue=system.smallest,
        regular=system.regular,
        descends=search.slope <= -search.eta2 / 2 * length**2,
        accepted=system.regular & (alpha > 0),
    )
    return point, search, info


def _linearize(problem: _Problem, point: jax.Array, settings: _Settings) -> _System:
    n, m = problem.size, point.size - problem.size
    x, multipliers = point[:n], point[n:]

    def lagrangian(x: jax.Array) -> jax.Array:
        return problem.objective(x) + problem.constraint(x) @ multipliers

    c, jacobian = problem.constraint(x), jax.jacrev(problem.constraint)(x)
    gradient, hessian = jax.grad(lagrangian)(x), jax.hessian(lagrangian)(x)
    of_merit = hessian if settings.variant == "paper" else jax.hessian(problem.objective)(x)
    smallest = jnp.linalg.eigvalsh(jacobian @ jacobian.T)[0]
    size, xi = jnp.linalg.norm(hessian), trees.as_dtype(settings.xi_B, x.dtype)
    shift = jnp.zeros((), x.dtype)
    if m < n:
        null = jnp.linalg.qr(jacobian.T, mode="complete")[0][:, m:]
        curvature = jnp.linalg.eigvalsh(null.T @ hessian @ null)[0]
        shift = jnp.where(curvature < settings.curvature_floor, xi + size, shift)
    shifted = hessian + shift * jnp.eye(n, dtype=x.dtype)
    matrix = jnp.block([[shifted, jacobian.T], [jacobian, jnp.zeros((m, m), x.dtype)]])
    largest = jnp.maximum(jnp.linalg.norm(shifted) ** 2, 1)
    slopes = [
        jnp.concatenate([gradient, c]),
        jnp.concatenate([jacobian.T @ c, jnp.zeros_like(c)]),
        jnp.concatenate([of_merit @ gradient, jacobian @ gradient]),
    ]
    finite = jnp.isfinite(matrix).all() & jnp.isfinite(jnp.stack(slopes)).all()
    return _System(
        matrix=matrix,
        target=-slopes[0],
        norm=jnp.linalg.norm(matrix),
        psi=20 * largest / (jnp.minimum(smallest, 1) * jnp.minimum(xi, 1)),
        upsilon=jnp.maximum(jnp.maximum(jnp.linalg.norm(jacobian), size), 1),
        shift=shift,
        smallest=smallest,
        slopes=jnp.stack(slopes),
        regular=finite & (smallest >= settings.rank_floor),
    )


def _direction(
    system: _System,
    penalties: tuple[jax.Array, jax.Array, jax.Array],
    theta: jax.Array,
    settings: _Settings,
    key: jax.Array,
) -> _Search:
    """Projections, penalties and accuracy until d descends; d is 0 where nothing is regular."""
    dtype = system.target.dtype
    beta, nu = (trees.as_dtype(v, dtype) for v in (settings.beta, settings.nu))
    length = jnp.linalg.norm(system.target)

    def bounded(delta: jax.Array, eta1: jax.Array, eta2: jax.Array) -> jax.Array:
        most = (0.5 - beta) * eta2 / ((1 + eta1 + eta2) * (system.upsilon * system.psi) ** 2)
        return jnp.maximum(jnp.minimum(delta, most), _SMALLEST_DELTA)

    def attempt(old: _Search) -> _Search:
        direction, residual, sketches = _project(
            system,
            (old.direction, old.residual),
            theta * old.delta * length / (system.norm * system.psi),
            settings,
            jax.random.fold_in(key, old.updates),
        )
        slope = jnp.stack([jnp.ones((), dtype), old.eta1, old.eta2]) @ system.slopes @ direction
        descends = slope <= -old.eta2 / 2 * length**2
        done = descends | (old.eta1 > _LARGEST_ETA1) | (old.eta2 < _SMALLEST_ETA2)
        done = done | ~jnp.isfinite(slope)  # an overflow is no reason for larger penalties
        eta1 = jnp.where(done, old.eta1, old.eta1 * nu**2)
        eta2 = jnp.where(done, old.eta2, old.eta2 / nu)
        return _Search(
            direction=direction,
            residual=residual,
            eta1=eta1,
            eta2=eta2,
            delta=jnp.where(done, old.delta, bounded(old.delta / nu**4, eta1, eta2)),
            slope=slope,
            sketches=old.sketches + sketches,
            updates=old.updates + jnp.where(done, 0, 1),
            done=done,
        )

    eta1, eta2, delta = penalties
    none = jnp.zeros((), jnp.int32)
    start = _Search(
        direction=jnp.zeros_like(system.target),
        residual=-system.target,
        eta1=eta1,
        eta2=eta2,
        delta=jnp.where(system.regular, bounded(delta, eta1, eta2), delta),
        slope=jnp.zeros((), dtype),
        sketches=none,
        updates=none,
        done=~system.regular,
    )
    return jax.lax.while_loop(lambda search: ~search.done, attempt, start)


def _project(
    system: _System,
    start: tuple[jax.Array, jax.Array],
    accuracy: jax.Array,
    settings: _Settings,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Projections from (d, r) until |r| is below the accuracy or the rounding of A d."""
    matrix, target = system.matrix, system.target
    rounding = jnp.finfo(target.dtype).eps

    def unfinished(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        d, r, count = carry
        reachable = rounding * (system.norm * jnp.linalg.norm(d) + jnp.linalg.norm(target))
        far = jnp.linalg.norm(r) > jnp.maximum(accuracy, reachable)
        return far & (count < settings.max_sketches)

    def project(
        carry: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        d, r, count = carry
        s = settings.sketch(jax.random.fold_in(key, count), target.shape, target.dtype)
        row = matrix.T @ s
        square = row @ row
        d = d - row * (s @ r) / jnp.where(square > 0, square, 1)
        return d, matrix @ d - target, count + 1

    return jax.lax.while_loop(unfinished, project, (*start, jnp.zeros((), jnp.int32)))


def _merit(problem: _Problem, point: jax.Array, eta1: jax.Array, eta2: jax.Array) -> _Merit:
    x, multipliers = point[: problem.size], point[problem.size :]
    value, gradient = jax.value_and_grad(problem.objective)(x)
    c, pull = jax.vjp(problem.constraint, x)
    gradient = gradient + pull(multipliers)[0]
    squares = jnp.sum(c**2), jnp.sum(gradient**2)
    penalty = eta1 / 2 * squares[0] + eta2 / 2 * squares[1]
    return _Merit(
        value=value + c @ multipliers + penalty,
        objective=value,
        infeasibility=jnp.sqrt(squares[0]),
        residual=jnp.sqrt(squares[0] + squares[1]),
        scale=jnp.abs(value) + jnp.abs(c) @ jnp.abs(multipliers) + penalty,
    )


def _line_search(
    problem: _Problem, point: jax.Array, search: _Search, settings: _Settings
) -> tuple[jax.Array, jax.Array, _Merit, jax.Array]:
    """The next point, alpha (0 where none was found), M there and the number of trials."""
    start = _merit(problem, point, search.eta1, search.eta2)
    share = trees.as_dtype(settings.beta, point.dtype) * jnp.minimum(search.slope, 0)
    # Where M rises along d at first, a later fall has to be more than rounding.
    rounding = 8 * jnp.finfo(point.dtype).eps * start.scale
    slack = jnp.where(search.slope <= 0, rounding, -rounding)

    def trial(alpha: jax.Array) -> _Merit:
        return _merit(problem, point + alpha * search.direction, search.eta1, search.eta2)

    def decreased(alpha: jax.Array, merit: _Merit) -> jax.Array:
        enough = merit.value <= start.value + alpha * share + slack
        return enough & jnp.isfinite(merit.value)

    def unfinished(carry: tuple[jax.Array, _Merit, jax.Array]) -> jax.Array:
        alpha, merit, halvings = carry
        return ~decreased(alpha, merit) & (halvings < _MOST_HALVINGS)

    def halve(
        carry: tuple[jax.Array, _Merit, jax.Array],
    ) -> tuple[jax.Array, _Merit, jax.Array]:
        alpha, _, halvings = carry
        return alpha / 2, trial(alpha / 2), halvings + 1

    one = jnp.ones((), point.dtype)
    first = (one, trial(one), jnp.zeros((), jnp.int32))
    alpha, merit, halvings = jax.lax.while_loop(unfinished, halve, first)
    found = decreased(alpha, merit)
    merit = jax.tree.map(lambda new, old: jnp.where(found, new, old), merit, start)
    moved = jnp.where(found, point + alpha * search.direction, point)
    return moved, jnp.where(found, alpha, 0), merit, 1 + halvings


def _check_numbers(variant: str, **values: Any) -> None:
    """Schedules, traced values and arrays are not checked."""
    if variant not in ("paper", "code"):
        raise ValueError(f"sketched_newton: variant is {variant!r}; accepted: 'paper' or 'code'.")
    for name, value in values.items():
        accepted, words = _RANGES[name]
        if isinstance(value, numbers.Real) and not accepted(value):
            raise ValueError(f"sketched_newton: {name} is {value}; accepted: {words}.")


def _checked_dtype(params: Any) -> jnp.dtype:
    """The common dtype of the parameters."""
    for path, leaf in jax.tree.leaves_with_path(params):
        if jnp.result_type(leaf) not in (jnp.float32, jnp.float64):
            raise ValueError(
                f"sketched_newton: the parameter {trees.path_string(path)!r} is "
                f"{jnp.result_type(leaf)}; accepted: float32 or float64."
            )
    return trees.accumulator_dtype(*jax.tree.leaves(params))


def _checked_shapes(objective: Any, constraint: Any, params: Any, multipliers: Any) -> Any:
    """Shapes of the constraint's value."""
    value, shapes = jax.eval_shape(lambda p: (objective(p), constraint(p)), params)
    if jnp.shape(value) != ():
        raise ValueError(
            f"sketched_newton: objective returns the shape {jnp.shape(value)}; accepted: a scalar."
        )
    m = sum(math.prod(c.shape) for c in jax.tree.leaves(shapes))
    n = sum(jnp.size(p) for p in jax.tree.leaves(params))
    if not 1 <= m <= n:
        raise ValueError(
            f"sketched_newton: constraint returns {m} elements for {n} unknowns; accepted: 1 to "
            f"{n}."
        )
    if multipliers is not None:
        given, expected = (jax.tree.map(jnp.shape, tree) for tree in (multipliers, shapes))
        if given != expected:
            raise ValueError(
                f"sketched_newton: multipliers have the shapes {given}; accepted: those of the "
                f"constraint, {expected}."
            )
    return shapes
