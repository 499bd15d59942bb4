"""A linear solve that can be differentiated, in every mode, whatever the solver.

With A x = b, the derivative is one more solve with the same A, and reverse mode one with A'::

    dx = A^-1 (db - dA x),   b_bar = A'^-1 x_bar,   A_bar = -b_bar x'

*Differences.* None from `jax.lax.custom_linear_solve`, which this is, but for one: there, reverse
mode fails where only some leaves of b, or of A x, depend on what is differentiated. Here every leaf
depends on every other, by a zero.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optim import trees
from optim.solvers import linear
from optim.solvers.cg import cg
from optim.solvers.minres import minres


def linear_solve(
    matvec: linear.Operator,
    b: Any,
    *,
    solver: Callable[..., tuple[Any, linear.SolveInfo]] = cg,
    symmetric: bool | None = None,
    init: Any = None,
    preconditioner: linear.Operator | None = None,
    **options: Any,
) -> tuple[Any, linear.SolveInfo]:
    """Solves A x = b so that x can be differentiated by all that `matvec` and b depend on.

    The report is of the solve for x alone, and its derivative is zero: what the solves for a
    derivative do is seen by nobody, and each is as accurate as the tolerance lets it be. Where that
    matters, solve for the derivative yourself. Check a `symmetric=True` of your own by comparing
    `jax.grad` with `jax.jvp`: where A is not symmetric, the first alone is wrong.

    Args:
      matvec: v -> A v on trees like b; it may close over what is differentiated.
      b: right-hand side, a pytree of floats.
      solver: such as `optim.cg`, `optim.gmres`, or a function that is called alike.
      symmetric: whether A is its own transpose; None, where the solver is `optim.cg` or
        `optim.minres`, which are for such matrices alone, or a `functools.partial` of them.
      init: where x starts. Derivatives are zero by it. Forward derivatives start there as well,
        to no gain; the transposed solve of reverse mode starts from zeros.
      preconditioner: as the solver takes it, linear; it is transposed where A is not symmetric.
      **options: for the solver: tolerance, max_steps, ...

    Returns:
      (x, info): x like b, and its `optim.SolveInfo`.

    >>> import jax, jax.numpy as jnp, optim
    >>> def loss(scale):
    ...     x, _ = optim.linear_solve(lambda v: scale * v, jnp.array([2.0, 4.0]))
    ...     return x.sum()
    >>> print(jax.grad(loss)(2.0))
    -1.5
    """
    b = linear.floats("linear_solve", b)
    if symmetric is None:
        symmetric = getattr(solver, "func", solver) in (cg, minres)
    if init is not None:
        init = jax.lax.stop_gradient(init)

    def product(v: Any) -> Any:
        out = matvec(_coupled(v))
        return _coupled(linear.like("linear_solve", "what matvec gives", out, b))

    def transposed(r: Any) -> Any:
        assert preconditioner is not None
        return jax.linear_transpose(same, b)(r)[0]

    def same(r: Any) -> Any:
        assert preconditioner is not None
        return linear.like("linear_solve", "what preconditioner gives", preconditioner(r), b)

    call = functools.partial(solver, **options)
    other = None if preconditioner is None else (preconditioner if symmetric else transposed)
    x, info = jax.lax.custom_linear_solve(
        product,
        _coupled(b),
        solve=functools.partial(call, init=init, preconditioner=preconditioner),
        transpose_solve=functools.partial(call, preconditioner=other),
        symmetric=symmetric,
        has_aux=True,
    )
    return _coupled(x), info


def _coupled(tree: Any) -> Any:
    """The tree, each leaf with zero times a number of every other added.

    Derivatives that a leaf does not have are otherwise constants, which JAX does not transpose.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size]
    if len(leaves) < 2:
        return tree
    dtype = trees.accumulator_dtype(*leaves)
    zero = sum((0 * leaf[(0,) * leaf.ndim].astype(dtype) for leaf in leaves), jnp.zeros((), dtype))
    return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), tree)
