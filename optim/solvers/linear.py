"""What the matrix-free linear solves share: what they report, where they start, when they stop.

Every solve of A x = b is called alike, with A given by its products and b any pytree of floats::

    x, info = solve(matvec, b, init=None, preconditioner=None,
                    tolerance=1e-5, absolute_tolerance=0.0, max_steps=1000)

========== =========================== ================== ==============================
solve      A must be                   products a step    what shrinks
========== =========================== ================== ==============================
cg         symmetric positive definite 1                  error in the norm of A
minres     symmetric                   1                  residual
gmres      any                         1 (memory: 30 b)   residual, within a cycle
bicgstab   any                         2                  nothing for certain
normal_cg  any, with a transpose       2                  residual, by the squared condition
neumann    norm(I - step A) < 1        1                  residual, geometrically
dense      any, small                  as many as unknowns, once
========== =========================== ================== ==============================

From a residual r = b - A x, a method's *cycle* finds d with A d about r, and x + d is next. The
residual is then computed anew: a method's own, updated along with x, drifts from the truth, in
float32 at a condition of 1e4 by a factor of some hundreds. So `SolveInfo` holds the residual of the
x that is returned, for one more product, and where a method claimed too much it is called again, as
iterative refinement, for as long as that pays.

*Precision.* Scalars, norms and all vectors but x are float32 or wider; `matvec` and
`preconditioner` are given, and x has, the dtypes of b. Each residual is scaled by a power of two
before its cycle, so that nothing overflows or vanishes where b is as small or as large as its dtype
allows.

*Derivatives.* The loops can be differentiated forward alone; `optim.linear_solve` gives every mode.

*Differences.* jax.scipy.sparse.linalg's solvers answer no information at all, count no products,
believe their own residual, run on where A is not positive definite, and accept complex or
mismatched trees; none of this can be wrapped from outside, so they are not called.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from optim import trees

ROUNDING = 10  # what is below this many units of rounding is not told from zero

Operator = Callable[[Any], Any]
# (product, residual, goal, steps left) -> (correction, steps, products, may another cycle help)
Cycle = Callable[[Operator, Any, jax.Array, jax.Array], tuple[Any, ArrayLike, ArrayLike, ArrayLike]]


class SolveInfo(NamedTuple):
    """What a linear solve did, and how far it got."""

    residual: jax.Array  # (), float32 or wider: norm of b - A x, computed from the x returned
    iterations: jax.Array  # (), int32: steps of the method
    products: jax.Array  # (), int32: products with A or its transpose, that of `residual` included
    converged: jax.Array  # (), bool: residual <= max(tolerance norm(b), absolute_tolerance)


def solve(
    method: str,
    matvec: Operator,
    b: Any,
    cycle: Cycle,
    *,
    init: Any,
    tolerance: ArrayLike,
    absolute_tolerance: ArrayLike,
    max_steps: ArrayLike,
    falls: float = 0.5,
) -> tuple[Any, SolveInfo]:
    """Calls a method's cycle on the residual until that is small, or the cycle no longer helps.

    Args:
      method: the name in errors.
      matvec: v -> A v.
      b: right-hand side.
      cycle: one run of the method, from zero.
      init: start of x, or None for zeros.
      tolerance: norm of the residual to reach, relative to the norm of b.
      absolute_tolerance: norm of the residual that is small enough whatever b is.
      max_steps: most steps of all cycles together.
      falls: another cycle is tried where the last one multiplied the residual by less than this.
    """
    trees.check_at_least(method, 0, tolerance=tolerance, absolute_tolerance=absolute_tolerance)
    trees.check_at_least(method, 1, max_steps=max_steps)
    most = jnp.asarray(max_steps, jnp.int32)
    b = floats(method, b)
    product = checked(method, "matvec", matvec, b)
    _, _, norm = scaled(trees.promote(b))
    given = (norm > 0) & jnp.isfinite(norm)  # the solution for zero is zero
    goal = jnp.maximum(
        trees.as_dtype(tolerance, norm.dtype) * norm,
        trees.as_dtype(absolute_tolerance, norm.dtype),
    )

    def residual(x: Any) -> Any:
        return jax.tree.map(jnp.subtract, trees.promote(b), product(x))

    if init is None:
        x, r, products = jax.tree.map(jnp.zeros_like, b), trees.promote(b), jnp.int32(0)
    else:
        init = like(method, "init", init, b)
        x = jax.tree.map(lambda v: jnp.where(given, v, 0), init)
        r = jax.lax.cond(given, residual, lambda _: trees.promote(b), x)
        products = given.astype(jnp.int32)

    def goes_on(carry: Any) -> jax.Array:
        _, (_, _, norm), steps, _, helps = carry
        return (norm > goal) & jnp.isfinite(norm) & (steps < most) & helps

    def body(carry: Any) -> Any:
        x, (scale, r, old), steps, products, _ = carry
        d, used, spent, helps = cycle(product, r, goal / scale, most - steps)
        moved = axpy(scale, d, trees.promote(x))
        x = jax.tree.map(lambda v, w: v.astype(w.dtype), moved, x)
        after = scaled(residual(x))
        return x, after, steps + used, products + spent + 1, helps & (after[2] < falls * old)

    carry = (x, scaled(r), jnp.int32(0), products, jnp.bool_(True))
    x, (_, _, norm), steps, products, _ = jax.lax.while_loop(goes_on, body, carry)
    finite = jnp.isfinite(norm)
    # Zeros in answer to a NaN would pass for a solution.
    x = jax.tree.map(lambda v: jnp.where(finite, v, jnp.nan), x)
    return x, SolveInfo(norm, steps, products, finite & (norm <= goal))


def floats(method: str, b: Any, name: str = "b") -> Any:
    """The argument as arrays; an error if one is not real and floating."""

    def one(path: tuple[Any, ...], leaf: ArrayLike) -> jax.Array:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{method}: {name}{_at(path)} is of {dtype}; accepted: real floats.")
        return trees.as_dtype(leaf, dtype)

    return jax.tree.map_with_path(one, b)


def checked(method: str, name: str, function: Operator, b: Any) -> Operator:
    """The operator on trees of any float dtype: given those of b, answers float32 or wider."""

    def operator(v: Any) -> Any:
        out = function(jax.tree.map(lambda x, like: x.astype(like.dtype), v, b))
        check_like(method, f"{name} gives", out, b)
        return jax.tree.map(lambda x, like: trees.as_dtype(x, like.dtype), out, trees.promote(b))

    return operator


def preconditioning(method: str, preconditioner: Operator | None, b: Any) -> Operator:
    """The preconditioner as an operator, the identity for None."""
    if preconditioner is None:
        return lambda r: r
    return checked(method, "preconditioner", preconditioner, floats(method, b))


def no_preconditioner(method: str, preconditioner: Operator | None) -> None:
    """Raises ValueError if there is one."""
    if preconditioner is not None:
        raise ValueError(
            f"{method}: preconditioner is {preconditioner!r}; accepted: None; "
            "cg, minres, gmres, bicgstab and neumann take one."
        )


def like(method: str, name: str, tree: Any, b: Any) -> Any:
    """The tree in the dtypes of b; an error if it is not shaped as b is."""
    check_like(method, f"{name} is", tree, b)
    return jax.tree.map(lambda v, w: trees.as_dtype(v, w.dtype), tree, b)


def check_like(method: str, what: str, tree: Any, b: Any, name: str = "b") -> None:
    """Raises ValueError if the tree is not one of floats shaped as b, which the error names."""
    structure: Any = jax.tree.structure(tree)
    wanted: Any = jax.tree.structure(b)
    if structure != wanted:
        raise ValueError(
            f"{method}: {what} {structure}; accepted: the structure of {name}, {wanted}."
        )
    for (path, leaf), x in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(b), strict=True):
        dtype = jnp.result_type(leaf)
        if jnp.shape(leaf) != jnp.shape(x) or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{method}: {what} {dtype}{[*jnp.shape(leaf)]}{_at(path)}; "
                f"accepted: a float of the shape that {name} has, {[*jnp.shape(x)]}."
            )


def _at(path: tuple[Any, ...]) -> str:
    return f" at {trees.path_string(path)!r}" if path else ""


def vdot(x: Any, y: Any) -> jax.Array:
    """The inner product of two trees in their widest dtype.

    Without a matrix product, whose factors an accelerator may round.
    """
    leaves = [jnp.sum(u * v) for u, v in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)]
    dtype = trees.accumulator_dtype(*leaves)
    return sum((leaf.astype(dtype) for leaf in leaves), start=jnp.zeros((), dtype))


def norm(x: Any) -> jax.Array:
    """The Euclidean norm of a tree that is scaled as a cycle's residual is."""
    return jnp.sqrt(vdot(x, x))


def times(a: jax.Array, x: Any) -> Any:
    """a x, leaf by leaf in the dtype of x."""
    return jax.tree.map(lambda u: a.astype(u.dtype) * u, x)


def axpy(a: jax.Array, x: Any, y: Any) -> Any:
    """a x + y, leaf by leaf in the dtype of y."""
    return jax.tree.map(lambda u, v: a.astype(v.dtype) * u + v, x, y)


def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 where b is 0."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def ravel(x: Any) -> tuple[jax.Array, Operator]:
    """The tree as one vector of its widest dtype, and the way back."""
    structure: Any
    leaves, structure = jax.tree.flatten(x)
    dtype = trees.accumulator_dtype(*leaves)
    flat = jnp.concatenate([jnp.zeros(0, dtype), *(leaf.ravel().astype(dtype) for leaf in leaves)])
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1].tolist()

    def unravel(flat: jax.Array) -> Any:
        parts = zip(jnp.split(flat, ends), leaves, strict=True) if leaves else ()
        return structure.unflatten([p.reshape(v.shape).astype(v.dtype) for p, v in parts])

    return flat, unravel


def scaled(x: Any) -> tuple[jax.Array, Any, jax.Array]:
    """A power of two, the tree divided by it, whose largest entry is in [1, 2), and its norm."""
    dtype = trees.accumulator_dtype(*jax.tree.leaves(x))
    largest = jnp.zeros((), dtype)
    for leaf in jax.tree.leaves(x):
        largest = jnp.maximum(largest, jnp.max(jnp.abs(leaf), initial=0).astype(dtype))
    ordinary = jnp.isfinite(largest) & (largest > 0)
    exponent = jnp.frexp(jnp.where(ordinary, largest, 1))[1]
    scale = jnp.where(ordinary, jnp.ldexp(jnp.ones((), dtype), exponent - 1), 1)
    x = jax.tree.map(lambda leaf: leaf / scale.astype(leaf.dtype), x)
    return scale, x, scale * norm(x)
