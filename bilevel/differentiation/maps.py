"""Maps whose fixed point is the solution of a problem; each is also a step towards it.

Each is a function of y alone, for `bilevel.custom_fixed_point` or to be iterated, and closes over
what it is to be differentiated by. With s the step and f the objective, or F the root's function::

    proximal gradient   prox_s(y - s grad f(y))          for the least f(y) + g(y)
    projected gradient  P(y - s grad f(y))               for the least f over a set
    mirror descent      P_phi(grad phi(y) - s grad f(y)) the same, in the geometry of phi
    block proximal      proximal gradient, block j with its own s_j
    Frank-Wolfe         projected gradient in the weights of atoms, on the simplex
    Newton              y - s [dF(y)]^-1 F(y)            for F(y) = 0

The fixed points are the same for every s > 0; the step alters the condition of I - dT alone. With
1 / s near the largest eigenvalue of the Hessian of f that condition is about the best. I - dT is
not symmetric in general. Newton's is s I.

*Mirror descent by entropy.* On the simplex, softmax(log y - s grad f(y)) is computed as
y exp(-s grad f(y)), divided by its sum, which has a derivative where y_i = 0 too. Such a y_i stays
zero whatever the gradient: a fixed point is a solution only where it was reached from inside.

*Derivatives.* What grad f and prox have; where a number is at the kink of prox there is none.

*Differences.* From jaxopt: (1) the step is an argument. (2) Its mirror map by entropy is a softmax
of a logarithm, whose derivative is NaN where y_i = 0. (3) Its Frank-Wolfe form is no function.

*Cost.* A gradient and a prox; Newton's a linear solve.

*Reference.* Blondel et al., Efficient and modular implicit differentiation, 2022, table 1;
Beck and Teboulle, Mirror descent and nonlinear projected subgradient methods, 2003.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

import optim
from bilevel import checks
from optim import trees

Objective = Callable[[Any], jax.Array]
Map = Callable[[Any], Any]


def proximal_gradient_map(
    objective_fn: Objective, prox_fn: Callable[[Any, ArrayLike], Any], step: ArrayLike = 1.0
) -> Map:
    """A gradient step on the smooth part, then the operator of the other.

    Args:
      objective_fn: y -> a scalar, differentiable.
      prox_fn: (y, scaling) -> a tree like y, such as `lambda y, s: bilevel.prox_lasso(y, 0.1, s)`.
      step: positive.

    >>> import jax, bilevel
    >>> def solution(strength):  # the least (y - 3)^2 / 2 + strength |y|, which one step finds
    ...     step = bilevel.proximal_gradient_map(
    ...         lambda y: (y - 3) ** 2 / 2, lambda y, s: bilevel.prox_lasso(y, strength, s)
    ...     )
    ...     return bilevel.custom_fixed_point(step)(step)(0.0)
    >>> print(solution(1.0), jax.grad(solution)(1.0))
    2.0 -1.0
    """
    trees.check_positive("proximal_gradient_map", step=step)
    gradient_fn = jax.grad(objective_fn)
    return lambda y: prox_fn(descended(y, gradient_fn(y), step), step)


def projected_gradient_map(
    objective_fn: Objective, projection_fn: Map, step: ArrayLike = 1.0
) -> Map:
    """A gradient step, then the projection.

    Args:
      objective_fn: y -> a scalar, differentiable.
      projection_fn: y -> the nearest point of the set, such as `optax.projections` has.
      step: positive.

    >>> import bilevel, optax
    >>> step = bilevel.projected_gradient_map(
    ...     lambda y: (y + 3) ** 2 / 2, optax.projections.projection_non_negative
    ... )
    >>> print(step(1.0))
    0.0
    """
    trees.check_positive("projected_gradient_map", step=step)
    return proximal_gradient_map(objective_fn, lambda y, _: projection_fn(y), step)


def mirror_descent_map(
    objective_fn: Objective,
    projection_fn: Map | None = None,
    mapping_fn: Map | None = None,
    step: ArrayLike = 1.0,
) -> Map:
    """A gradient step in the coordinates of a mirror map, then the projection back.

    Args:
      objective_fn: y -> a scalar, differentiable.
      projection_fn: from those coordinates to the point of the set that is nearest by the map's
        divergence. None, with no mapping_fn: the simplex by entropy, in each leaf's last axis.
      mapping_fn: grad phi; the identity by default.
      step: positive.

    Raises:
      ValueError: step is not positive, or there is a mapping_fn and no projection_fn. The map
        raises one where a leaf without axes is to be on a simplex.

    >>> import bilevel, jax.numpy as jnp
    >>> step = bilevel.mirror_descent_map(lambda y: -jnp.log(4.0) * y[0])
    >>> print(step(jnp.array([0.5, 0.5])))
    [0.8 0.2]
    """
    method = "mirror_descent_map"
    trees.check_positive(method, step=step)
    if projection_fn is None and mapping_fn is not None:
        raise ValueError(
            f"{method}: projection_fn is None with the mapping_fn {mapping_fn!r}; "
            "accepted: both, projection_fn alone, or neither."
        )
    gradient_fn = jax.grad(objective_fn)
    if projection_fn is None:
        return lambda y: jax.tree.map(
            lambda leaf, g: _entropic(method, leaf, g, step), y, gradient_fn(y)
        )

    def mirrored(y: Any) -> Any:
        dual = y if mapping_fn is None else mapping_fn(y)
        return projection_fn(descended(dual, gradient_fn(y), step))

    return mirrored


def block_proximal_map(
    objective_fn: Objective,
    block_prox_fn: Callable[[jax.Array, jax.Array], jax.Array],
    steps: ArrayLike = 1.0,
) -> Map:
    """A proximal gradient step on every block at once.

    Args:
      objective_fn: (n, ...) -> a scalar, differentiable.
      block_prox_fn: (block, scaling) -> a block; the blocks are the rows of y.
      steps: (n,) or one number, positive.

    >>> import bilevel, jax.numpy as jnp
    >>> step = bilevel.block_proximal_map(
    ...     lambda y: jnp.sum((y - 3) ** 2) / 2, bilevel.prox_ridge, jnp.array([1.0, 0.5])
    ... )
    >>> print(step(jnp.zeros(2)))  # 3 / (1 + 1) and 1.5 / (1 + 0.5)
    [1.5 1. ]
    """
    trees.check_positive("block_proximal_map", steps=steps)
    gradient_fn = jax.grad(objective_fn)

    def stepped(y: jax.Array) -> jax.Array:
        s = jnp.broadcast_to(trees.as_dtype(steps, trees.accumulator_dtype(y)), y.shape[:1])

        def one(y: jax.Array, g: jax.Array, s: jax.Array) -> jax.Array:
            return block_prox_fn(descended(y, g, s), s)

        return jax.vmap(one)(y, gradient_fn(y), s)

    return stepped


def frank_wolfe_map(objective_fn: Objective, atoms: Any, step: ArrayLike = 1.0) -> Map:
    """A projected gradient step on weights w, where the point is sum_i w_i atom_i.

    For what Frank-Wolfe or another method with a linear oracle has found: the few atoms, and their
    weights. I - dT is regular where the atoms of positive weight are affinely independent, and f is
    strongly convex.

    Args:
      objective_fn: the point, a tree like one atom -> a scalar, differentiable.
      atoms: a tree of arrays whose first axis counts atoms, such as the vertices of a polytope.
      step: positive.

    Returns:
      A function of the weights, one for each atom.

    >>> import bilevel, jax.numpy as jnp
    >>> atoms = jnp.array([0.0, 1.0])
    >>> step = bilevel.frank_wolfe_map(lambda x: (x - 0.75) ** 2 / 2, atoms)
    >>> print(step(jnp.array([0.5, 0.5])))
    [0.375 0.625]
    """
    trees.check_positive("frank_wolfe_map", step=step)

    def objective(weights: jax.Array) -> jax.Array:
        return objective_fn(jax.tree.map(lambda a: jnp.tensordot(weights, a, 1), atoms))

    return projected_gradient_map(objective, optax.projections.projection_simplex, step)


def newton_map(
    root_fn: Map,
    step: ArrayLike = 1.0,
    solve: Callable[..., tuple[Any, optim.SolveInfo]] = optim.dense_solve,
) -> Map:
    """A step of Newton's method; on an objective, `root_fn` is its gradient.

    Args:
      root_fn: F, y -> a tree like y.
      step: positive.
      solve: of the linear system, such as `optim.cg` where its matrix is symmetric and positive
        definite, or `optim.gmres`.

    >>> import bilevel
    >>> print(f"{bilevel.newton_map(lambda y: y**2 - 4)(3.0):.4f}")  # 3 - 5 / 6
    2.1667
    """
    trees.check_positive("newton_map", step=step)

    def stepped(y: Any) -> Any:
        def conditions(y: Any) -> Any:
            return checks.like("newton_map", "root_fn", root_fn(y), y)

        value, product = jax.linearize(conditions, checks.floats("newton_map", "y", y))
        direction, _ = optim.linear_solve(product, value, solver=solve)
        return descended(y, direction, step)

    return stepped


def descended(y: Any, direction: Any, step: ArrayLike) -> Any:
    """y - step direction, in the dtypes of y."""

    def one(y: ArrayLike, d: ArrayLike) -> jax.Array:
        dtype = trees.accumulator_dtype(y)
        moved = trees.as_dtype(y, dtype) - trees.as_dtype(step, dtype) * trees.as_dtype(d, dtype)
        return moved.astype(jnp.result_type(y))

    return jax.tree.map(one, y, direction)


def _entropic(method: str, y: ArrayLike, gradient: jax.Array, step: ArrayLike) -> jax.Array:
    if jnp.ndim(y) == 0:
        raise ValueError(f"{method}: y has a leaf of shape (); accepted: axes, the last a simplex.")
    dtype = trees.accumulator_dtype(y)
    x = trees.as_dtype(y, dtype)
    exponent = -trees.as_dtype(step, dtype) * trees.as_dtype(gradient, dtype)
    inside = x > 0
    largest = jnp.max(exponent, axis=-1, keepdims=True, where=inside, initial=-jnp.inf)
    exponent = exponent - jax.lax.stop_gradient(largest)
    # What is zero stays zero; its exponent, which may be large, must not overflow.
    x = x * jnp.exp(jnp.where(inside, exponent, jnp.minimum(exponent, 0)))
    return (x / jnp.sum(x, axis=-1, keepdims=True)).astype(jnp.result_type(y))
