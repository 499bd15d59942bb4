"""Newton's method, regularized by the gradient, with a radius that is searched for.

With loss `f`, gradient `g`, curvature `H` (exact or not) and radius `gamma` (1 at the start), in
the norms |x| = sqrt(x'B x) and |g|* = sqrt(g'B^-1 g), at most 40 times::

    lambda = |g|* / (gamma + eps)
    d = -(H + lambda B)^-1 g
    if f(p) - f(p + d) >= |g(p + d)|*^2 / (8 lambda):
        p = p + d,   gamma = max(2 gamma, gamma_min),   and the step is done
    otherwise gamma = gamma / 2

|d| <= gamma wherever H is positive semidefinite. The search finds, up to a factor, the paper's
*gradient-normalized smoothness*: the radius within which g + H d is g(p + d) to a fraction. Exact
Hessians, Gauss-Newton, Fisher and diagonal matrices differ in `hessian_fn` and `solve` alone; with
H = 0 it is gradient descent.

It calls the loss, so it has to be outermost, as optax's line searches are, and sees all of the
parameters. Loss, gradient and H have to be those of one and the same data within a step.

*Differences.* From the authors' code: (1) where 40 tries are not enough the parameters stay; there,
the last rejected point is taken (and without warnings a 41st is tried). (2) Where H + lambda B is
not positive definite the try is rejected and lambda grows; there, the loop ends with an older step.
(3) A try is rejected whose step, loss or gradient is not finite. Where the given loss or gradient
is not, nothing is tried, nor is it kept: the state's loss becomes inf, so that the next step
computes both. Where the largest lambda, |g|* / eps, has no step either, gamma stays: H is at fault.
(4) gamma never starts a step below gamma_min; there, only where it was accepted, and lambda cannot
tell (eps is 10 times gamma_min). Nor above the square root of the dtype's largest number: losses
that each step minimizes without rounding double it for ever. (5) Where g is zero nothing is tried;
there, 0 / 0 is rejected.

*Cost.* A gradient, kept for the next step: 4 bytes a parameter. A step evaluates H once and each
try a loss, a gradient and a solve; where gamma is right, there are two tries a step.

*Reference.* Semenov, Jaggi, Doikov, Gradient-Normalized Smoothness for Optimization with
Approximate Hessians, 2025 (arXiv:2506.13710), Algorithms 1 and 3; epfml/grad-norm-smooth@9f4ca00,
src/methods.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optim import trees
from optim.solvers import linear
from optim.solvers.shifted import Metric, Shifted, restrict, shifted_dense


class RegularizedNewtonState(NamedTuple):
    """State of `regularized_newton`; `optax.value_and_grad_from_state` reads value and grad."""

    gamma: jax.Array  # (), float32 or wider: radius that the next step tries first
    value: jax.Array  # (), float32 or wider: loss after the step; inf where it is not known
    grad: optax.Updates  # like the parameters, float32 or wider: gradient there
    accepted: jax.Array  # (), bool: whether the last step moved
    tries: jax.Array  # (), int32: tries of the last step
    evaluations: jax.Array  # (), int32: tries up to now, each a loss, a gradient and a solve
    curvatures: jax.Array  # (), int32: evaluations of H up to now, one a step


class _Search(NamedTuple):
    tries: jax.Array
    gamma: jax.Array
    accepted: jax.Array
    direction: Any
    value: jax.Array
    gradient: Any


def regularized_newton(
    *,
    solve: Callable[[Any, Any, Metric | None], Shifted] = shifted_dense,
    metric: Metric | None = None,
    gamma: ArrayLike = 1.0,
    eps: ArrayLike = 1e-8,
    gamma_min: ArrayLike = 1e-9,
    max_tries: int = 40,
) -> optax.GradientTransformationExtraArgs:
    """Gradient-regularized Newton steps with the search for the radius; put this outermost.

    `update` takes the gradient, the state, the parameters, and by name

    - `value`: the loss at the parameters;
    - `value_fn`: parameters -> loss, a scalar;
    - `hessian_fn`: parameters -> what `solve` takes as curvature: for `optim.shifted_dense`, the
      default, v -> H v, with v like the parameters, or a matrix over the gradient's numbers in
      order (`jax.hessian(loss)` for parameters that are one vector). It is given the parameters in
      float32 or wider. Where a parameter has no gradient v is zero (float0 for integers), and what
      comes out is dropped.

    `optax.value_and_grad_from_state(loss)(params, state=state)` gives gradient and value without
    computing them again, where the next step is on the same data.

    Args:
      solve: (curvature, b, metric) -> shift -> (H + shift B)^-1 b: `optim.shifted_dense`,
        `optim.shifted_diagonal`, `optim.shifted_rank_one` or `optim.shifted_by(optim.cg)`.
      metric: B, an `optim.Metric`; the identity by default.
      gamma: the first radius tried, in units of the parameters.
      eps: added to gamma.
      gamma_min: least gamma at the start of a step, from the second on.
      max_tries: most tries a step.

    Raises:
      ValueError: gamma, eps or gamma_min is not positive, or max_tries is below 1 (traced values
        are not checked); `update` is called without the parameters or what it takes by name, or
        the loss is not a scalar.

    >>> import jax, jax.numpy as jnp, optim
    >>> def loss(params):
    ...     return 1.5 * jnp.sum(params**2)
    >>> tx, params = optim.regularized_newton(gamma=15.0), jnp.array([3.0, 4.0])
    >>> value, gradient = jax.value_and_grad(loss)(params)
    >>> given = {"value": value, "value_fn": loss, "hessian_fn": jax.hessian(loss)}
    >>> updates, state = tx.update(gradient, tx.init(params), params, **given)
    >>> print(optim.apply_updates(params, updates), state.tries, state.gamma)
    [0.75 1.  ] 1 30.0
    """
    trees.check_positive("regularized_newton", gamma=gamma, eps=eps, gamma_min=gamma_min)
    trees.check_at_least("regularized_newton", 1, max_tries=max_tries)

    def init(params: optax.Params) -> RegularizedNewtonState:
        dtype = trees.accumulator_dtype(*jax.tree.leaves(params))
        return RegularizedNewtonState(
            gamma=trees.as_dtype(gamma, dtype),
            value=jnp.full((), jnp.inf, dtype),
            grad=trees.zeros_like(params),
            accepted=jnp.zeros((), bool),
            # Each its own buffer, so that the first state can be donated.
            tries=jnp.zeros((), jnp.int32),
            evaluations=jnp.zeros((), jnp.int32),
            curvatures=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: optax.Updates,
        state: RegularizedNewtonState,
        params: optax.Params | None = None,
        *,
        value: ArrayLike | None = None,
        value_fn: Callable[[optax.Params], jax.Array] | None = None,
        hessian_fn: Callable[[optax.Params], Any] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RegularizedNewtonState]:
        del extra_args
        if params is None or value is None or value_fn is None or hessian_fn is None:
            raise _missing(params=params, value=value, value_fn=value_fn, hessian_fn=hessian_fn)
        _check_scalar(value, value_fn, params)
        dtype = state.gamma.dtype
        value, g = trees.as_dtype(value, dtype), _vector(updates, params)
        curvature = _restricted(hessian_fn(_promoted(params)), g, params)
        shifted = solve(curvature, jax.tree.map(jnp.negative, g), metric)
        norm = _dual_norm(g, metric, dtype)
        given = (norm > 0) & jnp.isfinite(norm) & jnp.isfinite(value)

        def goes_on(search: _Search) -> jax.Array:
            return given & ~search.accepted & (search.tries < max_tries)

        def attempt(search: _Search) -> _Search:
            shift = norm / (search.gamma + trees.as_dtype(eps, dtype))
            d = restrict(shifted(shift), g)
            new, gradient = jax.value_and_grad(value_fn, allow_int=True)(_moved(params, d))
            new, gradient = trees.as_dtype(new, dtype), restrict(gradient, g)
            wanted = jnp.square(_dual_norm(gradient, metric, dtype)) / (8 * shift)
            # A comparison with nan is false; a fall to -inf is none.
            enough = _is_step(d) & jnp.isfinite(new) & (value - new >= wanted)
            radius = search.gamma * jnp.where(enough, jnp.array(2, dtype), jnp.array(0.5, dtype))
            return _Search(search.tries + 1, radius, enough, d, new, gradient)

        def is_sound() -> jax.Array:
            """Whether the largest shift has a step: if not, H is at fault, and not the radius."""
            return _is_step(shifted(norm / trees.as_dtype(eps, dtype)))

        nothing = jax.tree.map(jnp.zeros_like, g)
        start = _Search(jnp.int32(0), state.gamma, jnp.zeros((), bool), nothing, value, g)
        found = jax.lax.while_loop(goes_on, attempt, start)
        learnt = jax.lax.cond(found.accepted, lambda: jnp.ones((), bool), is_sound)
        most = float(jnp.finfo(dtype).max) ** 0.5
        radius = jnp.clip(found.gamma, trees.as_dtype(gamma_min, dtype), most)

        def kept(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda x, y: jnp.where(found.accepted, x, y), new, old)

        known = jnp.isfinite(norm) & jnp.isfinite(value)
        gradient = _filled(kept(found.gradient, g), state.grad)
        after = RegularizedNewtonState(
            gamma=jnp.where(given & learnt, radius, state.gamma),
            value=jnp.where(known, kept(found.value, value), jnp.inf),
            grad=jax.tree.map(lambda x, y: jnp.where(known, x, y), gradient, state.grad),
            accepted=found.accepted,
            tries=found.tries,
            evaluations=state.evaluations + found.tries,
            curvatures=optax.safe_increment(state.curvatures),
        )
        return _as_update(kept(found.direction, nothing), updates), after

    return optax.GradientTransformationExtraArgs(init, update)


def _is_step(direction: Any) -> jax.Array:
    """An infinite H may answer with zeros."""
    length = trees.norm(direction)
    return jnp.isfinite(length) & (length > 0)


def _missing(**given: Any) -> ValueError:
    name = next(name for name, what in given.items() if what is None)
    return ValueError(
        f"regularized_newton: {name} is missing; pass tx.update(gradient, state, params, "
        f"value=loss(params), value_fn=loss, hessian_fn=jax.hessian(loss))."
    )


def _check_scalar(value: ArrayLike, value_fn: Callable[..., Any], params: optax.Params) -> None:
    for name, shape in (
        ("value", jnp.shape(value)),
        ("value_fn", jax.eval_shape(value_fn, params).shape),
    ):
        if shape != ():
            raise ValueError(
                f"regularized_newton: {name} gives the shape {shape}; accepted: a scalar, ()."
            )


# Vectors are trees like the gradient, with None also where the gradient is float0.


def _map(rule: Callable[..., Any], *trees_: Any) -> Any:
    return jax.tree.map(rule, *trees_, is_leaf=lambda x: x is None)


def _vector(updates: optax.Updates, params: optax.Params) -> Any:
    """The gradient in the parameters' dtypes or wider, without what cannot move."""

    def one(u: Any, p: Any) -> Any:
        if u is None or jnp.result_type(u) == jax.dtypes.float0:
            return None
        return trees.as_dtype(u, trees.accumulator_dtype(u, p))

    return _map(one, updates, params)


def _filled(vector: Any, tree: Any) -> Any:
    """The vector with the leaves that it lacks from the tree."""
    return _map(lambda v, x: x if v is None else trees.as_dtype(v, x.dtype), vector, tree)


def _moved(params: optax.Params, direction: Any) -> Any:
    """The parameters after the step, as `optim.apply_updates` rounds them."""

    def one(d: Any, p: Any) -> Any:
        return p if d is None else (trees.as_dtype(p, d.dtype) + d).astype(jnp.result_type(p))

    return _map(one, direction, params)


def _promoted(params: optax.Params) -> Any:
    def one(p: ArrayLike) -> ArrayLike:
        floats = jnp.issubdtype(jnp.result_type(p), jnp.inexact)
        return trees.as_dtype(p, trees.accumulator_dtype(p)) if floats else p

    return jax.tree.map(one, params)


def _restricted(curvature: Any, vector: Any, params: optax.Params) -> Any:
    """A curvature that is a function, on vectors; anything else as it is."""
    if not callable(curvature):
        return curvature

    def zero(p: Any) -> Any:
        if p is None or jnp.issubdtype(jnp.result_type(p), jnp.inexact):
            return None if p is None else jnp.zeros_like(p, dtype=trees.accumulator_dtype(p))
        return np.zeros(jnp.shape(p), jax.dtypes.float0)

    def restricted(v: Any) -> Any:
        whole = _map(lambda x, p: zero(p) if x is None else x, v, params)
        return restrict(curvature(whole), vector)

    return restricted


def _dual_norm(g: Any, metric: Metric | None, dtype: jnp.dtype) -> jax.Array:
    """sqrt(g'B^-1 g)."""
    if metric is None:
        return trees.as_dtype(trees.norm(g), dtype)
    return jnp.sqrt(trees.as_dtype(linear.vdot(g, restrict(metric.solve(g), g)), dtype))


def _as_update(direction: Any, updates: optax.Updates) -> Any:
    """The direction with zeros where the gradient is float0."""
    return _map(
        lambda d, u: trees.promote(u) if d is None and u is not None else d, direction, updates
    )
