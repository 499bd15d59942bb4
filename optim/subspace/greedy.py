"""Block coordinate descent: the block that promises the largest decrease moves, the rest stays.

The gradient `g` is a vector over the n coordinates of all leaves. Blocks `b` are fixed, a partition
given beforehand, or variable, any `size` coordinates. A rule gives each block a score and the block
with the largest score moves (of variable blocks: the coordinates with the `size` largest)::

    gauss_southwell             GS    sum of g_i^2 over b
    gauss_southwell_lipschitz   GSL   sum of g_i^2 over b, divided by L_b         fixed blocks alone
    gauss_southwell_diagonal    GSD   sum of g_i^2 / D_i over b
    gauss_southwell_quadratic   GSQ   g_b . H_b^-1 g_b                            see 3. below
    cyclic_blocks, random_blocks      one after the other; with equal probability

    p_b = p_b - lr g_b / L_b          or, with newton=True,   p_b = p_b - lr H_b^-1 g_b

`H_b` is the block of the Hessian `H`, or of a matrix that is larger than it everywhere, `L_b` its
largest eigenvalue or a larger number, and `D` a diagonal that is larger than H_b, such as
size * H_ii or the sum over j of |H_ij|. At lr = 1 a step that fits its rule takes at least half the
score off the loss, and no other block promises more::

    GS, GSL   f(p) - f(p') >= |g_b|^2 / (2 L_b)
    GSD       f(p) - f(p') >= sum of g_i^2 / (2 D_i) over b,  where p_i moves by -g_i / D_i
    GSQ       f(p) - f(p') >= g_b . H_b^-1 g_b / 2            equal to it if f is quadratic

*Differences.* 1. From the authors' code: its GS, GSL and GSD add up |g_i|, |g_i| / sqrt(L_b) and
|g_i| / sqrt(D_i) over a fixed block; here, as in the paper, the squares, which is what the bounds
above hold for. For variable blocks the two agree. 2. For variable blocks the figures of the paper
call GSL what is GSD here with the sums of |H_ij| as D; the code has no GSL for them. 3. GSQ over
variable blocks is a search of exponential size. Both replace it by ten steps of iterative hard
thresholding on g.d + d.Hd / 2; here in z_i = d_i sqrt(H_ii), so that the choice does not depend on
the coordinates' units, from the minimum of the diagonal model with the length 1 / max over i of the
sum over j of |H_ij| / sqrt(H_ii H_jj), there in d itself, from +g_i / sqrt(H_ii), with the length
1 / the largest eigenvalue. 4. H_b^-1 is a pseudo-inverse: eigenvalues below rounding count as
infinite. 5. cyclic_blocks takes variable blocks in the order of the coordinates; the code permutes
them anew after n steps. 6. As a plain transformation this is the rule without the saving: it is
given a whole gradient, of which it reads all, to move a part.

*Cost.* A counter; what is given of L, D and H. A step reads the gradient once; GSQ takes one
product with every H_b (variable blocks: eleven with H), `newton` with variable blocks and
`lr / L_b` without `lipschitz` one eigendecomposition of one H_b. Given to the constructor, fixed
blocks of H are decomposed once, there; given to the update, all of them at every step.

*Reference.* Nutini, Laradji, Schmidt, Let's Make Block Coordinate Descent Converge Faster: Faster
Greedy Rules, Message-Passing, Active-Set Complexity, and Superlinear Convergence, 2017
(arXiv:1712.08859); IssamLaradji/BlockCoordinateDescent@322066b270eb, src/selection_rules,
src/update_rules.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optim import trees

Blocks = ArrayLike | Sequence[Sequence[int]]

_THRESHOLDING_STEPS = 10


class ScaleByGreedyBlockDescentState(NamedTuple):
    """State of `scale_by_greedy_block_descent`."""

    steps: jax.Array  # (), int32, steps made


class BlockProblem(NamedTuple):
    """What a rule looks at. Coordinates are numbered through the leaves in their order."""

    gradient: jax.Array  # (n,), float32 or wider
    size: int  # coordinates in a block
    blocks: jax.Array | None  # (blocks, size), int32, fixed blocks; None: any coordinates form one
    lipschitz: jax.Array | None  # (blocks,) or (): L_b
    diagonal: jax.Array | None  # (n,): D
    inverse: jax.Array | None  # (blocks, size, size): pseudo-inverses of H_b of fixed blocks
    hessian: jax.Array | None  # (n, n): H, for variable blocks
    steps: jax.Array  # (), int32, steps made before this one
    key: jax.Array | None  # of this step


def gauss_southwell(problem: BlockProblem) -> jax.Array:
    """GS: the squared norm of the gradient's part.

    Every rule takes a `BlockProblem` and returns a score for each fixed block or, where
    `problem.blocks` is None, for each coordinate.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_greedy_block_descent(2, select=optim.gauss_southwell)
    >>> print(tx.update(jnp.array([1.0, -4.0, 2.0, 0.0]), tx.init(jnp.zeros(4)))[0])
    [ 0. -4.  2.  0.]
    """
    return _total(problem, jnp.square(problem.gradient))


def gauss_southwell_lipschitz(problem: BlockProblem) -> jax.Array:
    """GSL: the squared norm divided by L_b, for fixed blocks.

    >>> import jax.numpy as jnp, optim
    >>> constants = jnp.array([1.0, 9.0])
    >>> tx = optim.scale_by_greedy_block_descent(
    ...     [[0], [1]], select=optim.gauss_southwell_lipschitz, lipschitz=constants
    ... )
    >>> print(tx.update(jnp.array([1.0, 2.0]), tx.init(constants))[0])  # 1 / 1 > 4 / 9
    [1. 0.]
    """
    if problem.blocks is None:
        raise ValueError(
            "greedy_block_descent: select is gauss_southwell_lipschitz and blocks is a size; "
            "accepted: a partition, or gauss_southwell_diagonal for variable blocks."
        )
    constants = _given("gauss_southwell_lipschitz", "lipschitz or hessian", problem.lipschitz)
    return _ratio(gauss_southwell(problem), constants)


def gauss_southwell_diagonal(problem: BlockProblem) -> jax.Array:
    """GSD: every squared coordinate divided by its own D_i.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_greedy_block_descent(
    ...     1, select=optim.gauss_southwell_diagonal, newton=True
    ... )
    >>> curvature = jnp.array([1.0, 9.0])
    >>> print(tx.update(jnp.array([1.0, 2.0]), tx.init(curvature), curvature=curvature)[0])
    [1. 0.]
    """
    scales = _given("gauss_southwell_diagonal", "diagonal", problem.diagonal)
    return _total(problem, _ratio(jnp.square(problem.gradient), scales))


def gauss_southwell_quadratic(problem: BlockProblem) -> jax.Array:
    """GSQ: twice the decrease that the quadratic model of a block promises.

    Over variable blocks, whose best one cannot be found cheaply, the lengths of the coordinates
    after ten steps of iterative hard thresholding on that model, scaled to a unit diagonal.

    >>> import jax.numpy as jnp, optim
    >>> hessian = jnp.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    >>> blocks, rule = [[0, 1], [1, 2]], optim.gauss_southwell_quadratic
    >>> tx = optim.scale_by_greedy_block_descent(blocks, select=rule, newton=True, hessian=hessian)
    >>> updates, _ = tx.update(jnp.array([3.0, 0.0, 2.0]), tx.init(jnp.zeros(3)))
    >>> print(jnp.round(updates, 3))  # 9 * 2/3 = 6 > 4
    [ 2. -1.  0.]
    """
    g = problem.gradient
    if problem.blocks is not None:
        inverse = _given("gauss_southwell_quadratic", "hessian", problem.inverse)
        parts = g[problem.blocks]
        return jnp.einsum("bi,bij,bj->b", parts, inverse, parts)
    hessian = _given("gauss_southwell_quadratic", "hessian", problem.hessian)
    # z_i = d_i sqrt(H_ii): what is small is then what matters little, in whatever units.
    scale = jnp.sqrt(_ratio(jnp.ones((), g.dtype), jnp.diagonal(hessian)))
    length = _ratio(jnp.ones((), g.dtype), (scale * (jnp.abs(hessian) @ scale)).max())

    def sharpen(_: jax.Array, z: jax.Array) -> jax.Array:
        z = z - length * scale * (g + hessian @ (scale * z))
        kept = jax.lax.top_k(jnp.abs(z), problem.size)[1]
        return jnp.zeros_like(z).at[kept].set(z[kept])

    return jnp.abs(jax.lax.fori_loop(0, _THRESHOLDING_STEPS, sharpen, -scale * g))


def cyclic_blocks(problem: BlockProblem) -> jax.Array:
    """One block after the other; variable blocks in the order of the coordinates.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_greedy_block_descent(1, select=optim.cyclic_blocks)
    >>> _, state = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
    >>> print(tx.update(jnp.ones(3), state)[0])
    [0. 1. 0.]
    """
    dtype = problem.gradient.dtype
    if problem.blocks is not None:
        number = len(problem.blocks)
        return (jnp.arange(number) == problem.steps % number).astype(dtype)
    n = problem.gradient.size
    start = problem.steps % -(-n // problem.size) * problem.size
    return ((jnp.arange(n) - start) % n < problem.size).astype(dtype)


def random_blocks(problem: BlockProblem) -> jax.Array:
    """Every block with the same probability; the update takes a `key`, new for every step.

    >>> import jax, jax.numpy as jnp, optim
    >>> tx = optim.scale_by_greedy_block_descent(2, select=optim.random_blocks)
    >>> updates, _ = tx.update(jnp.ones(5), tx.init(jnp.ones(5)), key=jax.random.key(0))
    >>> print(updates.sum())
    2.0
    """
    if problem.key is None:
        raise ValueError(
            "greedy_block_descent: select is random_blocks and key is missing; pass "
            "tx.update(gradient, state, params, key=jax.random.fold_in(run_key, step))."
        )
    candidates = problem.gradient if problem.blocks is None else problem.blocks
    return jax.random.uniform(problem.key, (len(candidates),), problem.gradient.dtype)


def scale_by_greedy_block_descent(
    blocks: Blocks,
    *,
    select: Callable[[BlockProblem], jax.Array] = gauss_southwell,
    newton: bool = False,
    lipschitz: ArrayLike | None = None,
    diagonal: optax.Params | None = None,
    hessian: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of the chosen block, g_b / L_b or H_b^-1 g_b, and zeros for all others.

    `update` takes `curvature`, a tree like the parameters, in place of `diagonal`; `hessian` in
    place of this one, for a Newton step at these parameters; and `key` for `random_blocks`.

    Args:
      blocks: for variable blocks, how many coordinates one has; for fixed ones, integers of shape
        (blocks, size), the coordinates of each, such as `np.argsort(L).reshape(-1, size)`.
      select: the rule, from a `BlockProblem` to the scores of the blocks.
      newton: divide by H_b or, without `hessian`, by D; otherwise by L_b.
      lipschitz: L_b for each fixed block, or one number for all; without it the largest eigenvalue
        of H_b, and without `hessian` 1, which leaves the length to the rate.
      diagonal: D, a tree like the parameters.
      hessian: H, (n, n); or of fixed blocks the H_b, (blocks, size, size).

    Raises:
      ValueError: an argument has a shape that does not fit, or the rule or the step lacks one.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_greedy_block_descent(1, lipschitz=4.0)
    >>> print(tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))[0])
    [ 0.  -0.5]
    """
    size, fixed = _checked_blocks(blocks)
    constant = None if hessian is None else _model(jnp.asarray(hessian), fixed, size)

    def init(params: optax.Params) -> ScaleByGreedyBlockDescentState:
        del params
        return ScaleByGreedyBlockDescentState(jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates,
        state: ScaleByGreedyBlockDescentState,
        params: optax.Params | None = None,
        *,
        curvature: optax.Params | None = None,
        hessian: ArrayLike | None = None,
        key: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByGreedyBlockDescentState]:
        del params, extra_args
        gradient, scatter = _flatten(updates, updates)
        scales = diagonal if curvature is None else curvature
        model = constant if hessian is None else _model(jnp.asarray(hessian), fixed, size)
        model = model or _Model()
        bound = model.lipschitz if lipschitz is None else jnp.asarray(lipschitz)
        problem = BlockProblem(
            gradient=gradient,
            size=size,
            blocks=None if fixed is None else jnp.asarray(fixed, jnp.int32),
            lipschitz=_like(gradient, bound),
            diagonal=None if scales is None else _like(gradient, _flatten(updates, scales)[0]),
            inverse=_like(gradient, model.inverse),
            hessian=_like(gradient, model.hessian),
            steps=state.steps,
            key=None if key is None else trees.named_key(key, "greedy_block_descent"),
        )
        _check_shapes(problem, fixed)
        moved = _direction(problem, select(problem), newton)
        return scatter(moved), ScaleByGreedyBlockDescentState(optax.safe_increment(state.steps))

    return optax.GradientTransformationExtraArgs(init, update)


def greedy_block_descent(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    blocks: Blocks,
    select: Callable[[BlockProblem], jax.Array] = gauss_southwell,
    newton: bool = False,
    lipschitz: ArrayLike | None = None,
    diagonal: optax.Params | None = None,
    hessian: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Block coordinate descent; `update` takes what `scale_by_greedy_block_descent` takes.

    Args:
      learning_rate: lr, or a schedule of it; the paper's is 1.
      blocks: for variable blocks, how many coordinates one has; for fixed ones, integers of shape
        (blocks, size), the coordinates of each, such as `np.argsort(L).reshape(-1, size)`.
      select: the rule, from a `BlockProblem` to the scores of the blocks.
      newton: divide by H_b or, without `hessian`, by D; otherwise by L_b.
      lipschitz: L_b for each fixed block, or one number for all; without it the largest eigenvalue
        of H_b, and without `hessian` 1, which leaves the length to the rate.
      diagonal: D, a tree like the parameters.
      hessian: H, (n, n); or of fixed blocks the H_b, (blocks, size, size).

    Raises:
      ValueError: an argument has a shape that does not fit, or the rule or the step lacks one.

    >>> import jax, jax.numpy as jnp, optim
    >>> hessian = jnp.diag(jnp.array([1.0, 2.0, 4.0]))
    >>> tx = optim.greedy_block_descent(blocks=2, newton=True, hessian=hessian)
    >>> params = jnp.ones(3)
    >>> updates, state = tx.update(hessian @ params, tx.init(params), params)
    >>> print(optim.apply_updates(params, updates))  # the two largest entries of the gradient
    [1. 0. 0.]
    """
    return optax.chain(
        scale_by_greedy_block_descent(
            blocks,
            select=select,
            newton=newton,
            lipschitz=lipschitz,
            diagonal=diagonal,
            hessian=hessian,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )


class _Model(NamedTuple):
    """What follows from a Hessian: of fixed blocks the first two, else the third."""

    lipschitz: jax.Array | None = None
    inverse: jax.Array | None = None
    hessian: jax.Array | None = None


def _model(hessian: jax.Array, fixed: Any, size: int) -> _Model:
    hessian = trees.promote(hessian)
    if fixed is None:
        if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1]:
            raise ValueError(
                f"greedy_block_descent: hessian has the shape {hessian.shape}; accepted for "
                f"variable blocks: (n, n)."
            )
        return _Model(hessian=hessian)
    stack = (len(fixed), size, size)
    if hessian.ndim == 2:
        _check_range(fixed, len(hessian))
        hessian = hessian[fixed[:, :, None], fixed[:, None, :]]
    if hessian.shape != stack:
        raise ValueError(
            f"greedy_block_descent: hessian has the shape {hessian.shape}; accepted for these "
            f"blocks: (n, n) or {stack}."
        )
    values, inverse = _spectrum(hessian)
    return _Model(values[:, -1], inverse)


def _spectrum(hessian: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues, ascending, and the pseudo-inverse of a symmetric matrix or a stack of them."""
    values, vectors = jnp.linalg.eigh(hessian)
    rounding = hessian.shape[-1] * jnp.finfo(hessian.dtype).eps * values[..., -1:]
    inverted = jnp.where(values > rounding, _ratio(jnp.ones_like(values), values), 0)
    return values, (vectors * inverted[..., None, :]) @ jnp.swapaxes(vectors, -1, -2)


def _direction(problem: BlockProblem, scores: jax.Array, newton: bool) -> jax.Array:
    """The vector that the rate multiplies: zero but for the chosen block."""
    g = problem.gradient
    number = jnp.argmax(scores) if problem.blocks is not None else None
    if problem.blocks is not None:
        block = problem.blocks[number]
    else:
        block = jax.lax.top_k(scores, problem.size)[1]
    part = g[block]
    if newton and problem.inverse is not None:
        part = problem.inverse[number] @ part
    elif newton and problem.hessian is not None:
        part = _spectrum(problem.hessian[block][:, block])[1] @ part
    elif newton:
        part = _ratio(part, _given("newton", "hessian or diagonal", problem.diagonal)[block])
    elif problem.lipschitz is not None:
        bound = problem.lipschitz[number] if problem.lipschitz.ndim else problem.lipschitz
        part = _ratio(part, bound)
    elif problem.hessian is not None:
        part = _ratio(part, jnp.linalg.eigvalsh(problem.hessian[block][:, block])[-1])
    return jnp.zeros_like(g).at[block].set(part)


def _total(problem: BlockProblem, scores: jax.Array) -> jax.Array:
    """Scores of coordinates, added up over fixed blocks."""
    return scores if problem.blocks is None else scores[problem.blocks].sum(axis=1)


def _ratio(over: jax.Array, under: jax.Array) -> jax.Array:
    """over / under; 0 where there is no curvature, hence no gradient either."""
    return jnp.where(under > 0, over / jnp.where(under > 0, under, 1), 0)


def _given(what: str, name: str, value: jax.Array | None) -> jax.Array:
    if value is None:
        raise ValueError(
            f"greedy_block_descent: {what} needs {name}, and it is missing; pass "
            f"greedy_block_descent({name.split()[-1]}=...)."
        )
    return value


def _like(gradient: jax.Array, value: jax.Array | None) -> jax.Array | None:
    return None if value is None else trees.as_dtype(value, gradient.dtype)


def _flatten(updates: Any, tree: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """One vector of the tree's leaves where `updates` has a gradient, and the way back."""
    structure: Any
    gradients, structure = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    leaves = structure.flatten_up_to(tree)
    moves = [g is not None and jnp.issubdtype(jnp.result_type(g), jnp.inexact) for g in gradients]
    dtype = trees.accumulator_dtype(*(g for g, m in zip(gradients, moves, strict=True) if m))
    parts = [
        jnp.ravel(trees.as_dtype(leaf, dtype)) for leaf, m in zip(leaves, moves, strict=True) if m
    ]

    def scatter(vector: jax.Array) -> Any:
        start, out = 0, []
        for g, m in zip(gradients, moves, strict=True):
            if not m:
                zero = None if g is None else jnp.zeros(jnp.shape(g), trees.accumulator_dtype(g))
                out.append(zero)
                continue
            stop = start + np.size(g)
            part = vector[start:stop].reshape(jnp.shape(g))
            out.append(part.astype(trees.accumulator_dtype(g)))
            start = stop
        return structure.unflatten(out)

    return jnp.concatenate([jnp.zeros(0, dtype), *parts]), scatter


def _checked_blocks(blocks: Blocks) -> tuple[int, Any]:
    """The size of a block, and the partition or None."""
    given = blocks if isinstance(blocks, jax.Array) else np.asarray(blocks)
    integers = jnp.issubdtype(given.dtype, jnp.integer)
    if integers and given.ndim == 0 and given >= 1:
        return int(given), None
    if integers and given.ndim == 2 and given.size:
        return given.shape[1], given
    what = blocks if given.ndim == 0 else f"an array of shape {given.shape} and {given.dtype}"
    raise ValueError(
        f"greedy_block_descent: blocks is {what}; accepted: an integer >= 1, or integers of the "
        f"shape (blocks, size)."
    )


def _check_shapes(problem: BlockProblem, fixed: Any) -> None:
    n = problem.gradient.size
    if fixed is not None:
        _check_range(fixed, n)
    elif problem.size > n:
        raise ValueError(
            f"greedy_block_descent: blocks is {problem.size}; accepted: at most the {n} "
            f"coordinates of the gradient."
        )
    if problem.hessian is not None and len(problem.hessian) != n:
        raise ValueError(
            f"greedy_block_descent: hessian has {len(problem.hessian)} rows; accepted: the {n} "
            f"coordinates of the gradient."
        )
    accepted = [(), (len(fixed),)] if fixed is not None else [()]
    if problem.lipschitz is not None and problem.lipschitz.shape not in accepted:
        raise ValueError(
            f"greedy_block_descent: lipschitz has the shape {problem.lipschitz.shape}; accepted: "
            f"{' or '.join(map(str, accepted))}."
        )


def _check_range(fixed: Any, n: int) -> None:
    """Traced blocks are not checked."""
    if isinstance(fixed, jax.core.Tracer):
        return
    low, high = int(fixed.min()), int(fixed.max())
    if low < 0 or high >= n:
        raise ValueError(
            f"greedy_block_descent: blocks holds coordinate {low if low < 0 else high}; accepted: "
            f"0 to {n - 1}, the coordinates of the gradient."
        )
