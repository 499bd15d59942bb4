"""Eigenvalues of a symmetric operator on trees: Lanczos, spectral density, trace, determinant.

From a start `z`, with `v_1 = z / |z|`, Lanczos's `m` steps with a matrix `A` give orthonormal
`v_1 .. v_m` and a tridiagonal `T = V' A V`, of diagonal a and off-diagonal b::

    w = A v_j,  a_j = v_j' w,  w = w - V V' w (twice),  b_j = |w|,  v_{j+1} = w / b_j

T's eigenvalues `t_i`, the Ritz values, are A's at the ends of the spectrum long before m is A's
dimension `n`. With the first entries of T's eigenvectors squared, the weights `w_i`, they are the
nodes of Gauss's rule for the spectrum as z sees it, and with random probes z of E[z z'] = I::

    z' f(A) z = |z|^2 sum_i w_i f(t_i)          exact for polynomials of degree 2 m - 1
    trace f(A) = mean over probes of that       trace: f = t; log-determinant: f = log

*Rate and momentum.* Of the Ritz values' magnitudes, `L` is the largest and `u` the smallest but for
a node that has more than half of all weight, the bulk near zero::

    learning_rate = (2 / (sqrt L + sqrt u))^2
    momentum = ((sqrt L - sqrt u) / (sqrt L + sqrt u))^2

*Differences.* (1) Lanczos: V V' w is subtracted from every w, for all v so far, since without it
Ritz values come up again and again in float32. (2) Rate and momentum are Polyak's for a quadratic
with eigenvalues in [u, L]; in the authors' code the momentum's denominator has u where Polyak has
its square root, which for u < 1 makes the momentum larger. (3) Ritz values of no weight at all,
which Lanczos gives where the start spans less than m dimensions, count neither as smallest nor
towards the median. Only the authors' code was read for this rule.

*Cost.* m products a probe; m vectors like the parameters in memory, whatever the number of probes,
which are taken one after another; 4 m^2 n multiplications for the orthogonality.

*Reference.* Golub and Meurant, Matrices, Moments and Quadrature, 1994; Ubaru, Chen and Saad, Fast
Estimation of tr(f(A)) via Stochastic Lanczos Quadrature, 2017; Granziol, Zohren and Roberts,
Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network
Training, 2022 (arXiv:2006.09092); diegogranziol/GadamX@7ce18a830225, run_ssgdm_fastanddirty.py.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optim import trees

_SMALLEST = ("minimum", "median")


class LanczosFactorization(NamedTuple):
    """What `lanczos` finds; where the start spans only k < m dimensions, all after k is zero."""

    basis: Any  # like the start, with m in front, float32 or wider: orthonormal v_1 .. v_m
    diagonal: jax.Array  # (m,), float32 or wider: a
    off_diagonal: jax.Array  # (m,), same dtype: b, of which the last is the norm of what was left


class Eigenpairs(NamedTuple):
    """What `top_eigenpairs` finds, the largest first."""

    values: jax.Array  # (count,), float32 or wider
    vectors: Any  # like the start, with count in front: of norm 1
    residuals: jax.Array  # (count,): |A x - value x|, by the recurrence; some eigenvalue is as near


class SpectralQuadrature(NamedTuple):
    """Nodes and weights that stand for the spectrum, a row for each probe."""

    nodes: jax.Array  # (probes, m), float32 or wider: Ritz values
    weights: jax.Array  # (probes, m): times |z|^2 / n; 0 where the start sees less than m
    dimension: jax.Array  # (), same dtype: n, the number of floating elements


class HeavyBall(NamedTuple):
    """What `heavy_ball_from_spectrum` finds."""

    learning_rate: jax.Array  # (), float32 or wider
    momentum: jax.Array  # ()
    largest: jax.Array  # (): L
    smallest: jax.Array  # (): u


def lanczos(matvec: Callable[[Any], Any], start: Any, steps: int) -> LanczosFactorization:
    """Lanczos's factorization with full reorthogonalization.

    Args:
      matvec: v -> A v, symmetric, on trees like the start.
      start: z, not zero; a tree of floats.
      steps: m, at most the number of the start's elements.

    Raises:
      ValueError: steps is outside of that.

    >>> import jax.numpy as jnp, optim
    >>> found = optim.lanczos(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2), 2)
    >>> print([f"{x:.3f}" for x in (*found.diagonal, found.off_diagonal[0])])
    ['2.000', '2.000', '1.000']
    """
    _check_steps("lanczos", steps, start)
    start = trees.promote(start)
    dtype = trees.accumulator_dtype(*jax.tree.leaves(start))
    basis = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), start)

    def step(carry: Any, j: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        basis, w, length, scale = carry
        factor = jnp.where(length > 0, 1 / length, 0)
        v = jax.tree.map(lambda x: factor.astype(x.dtype) * x, w)
        basis = jax.tree.map(lambda b, x: b.at[j].set(x), basis, v)
        w = jax.tree.map(lambda x, y: trees.as_dtype(y, x.dtype), v, matvec(v))
        diagonal = jnp.zeros((), dtype)
        for _ in range(2):
            along = _products(basis, w, dtype)
            diagonal += along[j]
            w = jax.tree.map(jnp.subtract, w, _combination(along, basis))
        length = trees.norm(w)
        scale = jnp.maximum(scale, jnp.maximum(abs(diagonal), length))
        length = jnp.where(length > 10 * jnp.finfo(dtype).eps * scale, length, 0)
        return (basis, w, length, scale), (diagonal, length)

    carry: Any = (basis, start, trees.norm(start), jnp.zeros((), dtype))
    (basis, *_), (diagonal, off_diagonal) = jax.lax.scan(step, carry, jnp.arange(steps))
    return LanczosFactorization(basis, diagonal, off_diagonal)


def top_eigenpairs(
    matvec: Callable[[Any], Any], start: Any, count: int, *, steps: int
) -> Eigenpairs:
    """The algebraically largest eigenvalues and their eigenvectors, by Lanczos.

    For the smallest, negate the matvec. Of an eigenvalue that is there twice, one start sees one
    vector; where it sees fewer than `count`, the missing values and residuals are nan.

    Args:
      matvec: v -> A v, symmetric.
      start: z, not zero, and not orthogonal to what is looked for: random.
      count: how many.
      steps: m, from count to the number of the start's elements.

    Raises:
      ValueError: steps or count is outside of that.

    >>> import jax, jax.numpy as jnp, optim
    >>> start = jax.random.normal(jax.random.key(0), (4,))
    >>> matvec = lambda v: jnp.array([1.0, 2.0, 3.0, 10.0]) * v
    >>> print([f"{x:.3f}" for x in optim.top_eigenpairs(matvec, start, 2, steps=4).values])
    ['10.000', '3.000']
    """
    _check_steps("top_eigenpairs", steps, start)
    if not 1 <= count <= steps:
        raise ValueError(
            f"top_eigenpairs: count is {count}; accepted: 1 <= count <= steps, here {steps}."
        )
    found = lanczos(matvec, start, steps)
    values, vectors, seen = _ritz(found)
    order = jnp.flip(jnp.argsort(values)[-count:])  # what is not seen comes first
    values, vectors, seen = values[order], vectors[:, order], seen[order]
    return Eigenpairs(
        jnp.where(seen, values, jnp.nan),
        _combination(jnp.where(seen, vectors, 0).T, found.basis),
        jnp.where(seen, abs(found.off_diagonal[-1] * vectors[-1]), jnp.nan),
    )


def spectral_quadrature(
    matvec: Callable[[Any], Any],
    params: Any,
    key: jax.Array,
    *,
    steps: int = 20,
    probes: int = 1,
    probe: Callable[..., jax.Array] = jax.random.rademacher,
) -> SpectralQuadrature:
    """Stochastic Lanczos quadrature, for `spectral_sum`, `spectral_density` and rate and momentum.

    Args:
      matvec: v -> A v, symmetric, on trees like the parameters.
      params: whose shapes and dtypes are used; a probe is zero on leaves that are not floating.
      key: for the probes.
      steps: m, at most the number of floating elements.
      probes: how many.
      probe: (key, shape, dtype) -> z with E[z z'] = I; +-1 by default.

    Raises:
      ValueError: steps is outside of that, or probes is less than 1.

    >>> import jax, jax.numpy as jnp, optim
    >>> matvec = lambda v: jnp.array([1.0, 2.0, 4.0]) * v
    >>> found = optim.spectral_quadrature(matvec, jnp.zeros(3), jax.random.key(0), steps=3)
    >>> print([f"{x:.3f}" for x in (*found.nodes[0], *found.weights[0])])
    ['1.000', '2.000', '4.000', '0.333', '0.333', '0.333']
    """
    method = "spectral_quadrature"
    _check_steps(method, steps, params)
    trees.check_at_least(method, 1, probes=probes)
    dimension = _size(params)
    own = trees.named_key(key, method)

    def draw(path: tuple[Any, ...], x: ArrayLike, key: jax.Array) -> jax.Array:
        if not _floating(x):
            return trees.zeros_like(x)
        leaf_key = trees.named_key(key, trees.path_string(path))
        return probe(leaf_key, jnp.shape(x), trees.accumulator_dtype(x))

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = jax.tree.map_with_path(lambda path, x: draw(path, x, key), params)
        values, vectors, seen = _ritz(lanczos(matvec, z, steps))
        weights = jnp.square(vectors[0]) * (jnp.square(trees.norm(z)) / dimension)
        return jnp.where(seen, values, 0), jnp.where(seen, weights, 0)

    nodes, weights = jax.lax.map(one, jax.random.split(own, probes))
    return SpectralQuadrature(nodes, weights, jnp.asarray(dimension, nodes.dtype))


def spectral_sum(
    quadrature: SpectralQuadrature, function: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """trace f(A), the sum of f over the eigenvalues, and its standard error over the probes.

    Args:
      quadrature: of A.
      function: f, elementwise: `lambda t: t` for the trace, `jnp.log` for the log-determinant.

    Returns:
      (estimate, standard error); the latter is nan for one probe.

    >>> import jax, jax.numpy as jnp, optim
    >>> matvec, params = lambda v: jnp.array([1.0, 2.0, 4.0]) * v, jnp.zeros(3)
    >>> found = optim.spectral_quadrature(matvec, params, jax.random.key(0), steps=3, probes=2)
    >>> print([f"{x:.3f}" for x in optim.spectral_sum(found, lambda t: t)])
    ['7.000', '0.000']
    """
    values = jnp.where(quadrature.weights > 0, function(quadrature.nodes), 0)
    sums = quadrature.dimension * jnp.sum(quadrature.weights * values, -1)
    return jnp.mean(sums), jnp.std(sums, ddof=1) / math.sqrt(sums.size)


def spectral_density(
    quadrature: SpectralQuadrature, grid: jax.Array, width: ArrayLike
) -> jax.Array:
    """The density of the eigenvalues on a grid, each spread as a normal of that deviation.

    Args:
      quadrature: of A.
      grid: (points,).
      width: standard deviation of the normal.

    Raises:
      ValueError: width is a number that is not positive.

    >>> import jax, jax.numpy as jnp, optim
    >>> found = optim.SpectralQuadrature(jnp.zeros((1, 1)), jnp.ones((1, 1)), jnp.array(1.0))
    >>> print((1e3 * optim.spectral_density(found, jnp.array([-1.0, 0.0, 1.0]), 1.0)).round())
    [242. 399. 242.]
    """
    trees.check_positive("spectral_density", width=width)
    width = trees.as_dtype(width, quadrature.nodes.dtype)
    spread = jax.scipy.stats.norm.pdf(grid[:, None], quadrature.nodes.ravel(), width)
    return spread @ quadrature.weights.ravel() / quadrature.nodes.shape[0]


def heavy_ball_from_spectrum(
    quadrature: SpectralQuadrature, *, smallest: str = "minimum"
) -> HeavyBall:
    """Rate and momentum for SGD from the Ritz values of the loss's Hessian on a large batch.

    The authors take one probe and 20 steps on 1024 examples, anew every 20 epochs. Of several
    probes, L is the largest and u the mean of theirs.

    Args:
      quadrature: of the Hessian.
      smallest: what u is: "minimum" as above, or "median", of all magnitudes.

    Raises:
      ValueError: smallest is something else.

    >>> import jax.numpy as jnp, optim
    >>> nodes, weights = jnp.array([[0.01, 1.0, 4.0]]), jnp.array([[0.8, 0.1, 0.1]])
    >>> found = optim.heavy_ball_from_spectrum(optim.SpectralQuadrature(nodes, weights, 3.0))
    >>> print(f"{found.learning_rate:.4f} {found.momentum:.4f}")  # u = 1, L = 4
    0.4444 0.1111
    """
    if smallest not in _SMALLEST:
        raise ValueError(
            f"heavy_ball_from_spectrum: smallest is {smallest!r}; accepted: "
            f"{', '.join(map(repr, _SMALLEST))}."
        )
    sizes, weights = abs(quadrature.nodes), quadrature.weights
    largest = jnp.max(sizes)
    if smallest == "median":
        least = jnp.nanmedian(jnp.where(weights > 0, sizes, jnp.nan), -1)
    else:
        bulk = weights > jnp.sum(weights, -1, keepdims=True) / 2
        least = jnp.min(jnp.where((weights > 0) & ~bulk, sizes, largest), -1)
    u = jnp.mean(least)
    total, gap = jnp.sqrt(largest) + jnp.sqrt(u), jnp.sqrt(largest) - jnp.sqrt(u)
    return HeavyBall(jnp.square(2 / total), jnp.square(gap / total), largest, u)


def _ritz(found: LanczosFactorization) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ritz values, T's eigenvectors in columns, and which the start sees; the others come first."""
    a, b = found.diagonal, found.off_diagonal[:-1]
    seen = jnp.cumprod(jnp.concatenate([jnp.ones(1, a.dtype), (b > 0).astype(a.dtype)])) > 0
    # Where T is zero since the start is used up, the diagonal goes below all that is seen.
    largest = jnp.max(jnp.concatenate([abs(a), b]))
    below = jnp.where(largest > 0, -4 * largest, -1)
    matrix = jnp.diag(jnp.where(seen, a, below)) + jnp.diag(b, 1) + jnp.diag(b, -1)
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors, jnp.arange(a.size) >= a.size - jnp.sum(seen)


def _products(basis: Any, w: Any, dtype: jnp.dtype) -> jax.Array:
    """V' w, in float32 on accelerators too."""

    def one(b: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.tensordot(b, x, x.ndim, precision="highest").astype(dtype)

    return sum(jax.tree.leaves(jax.tree.map(one, basis, w)), start=jnp.zeros((), dtype))


def _combination(coefficients: jax.Array, basis: Any) -> Any:
    """V c, or V C' for rows of coefficients."""
    return jax.tree.map(
        lambda b: jnp.tensordot(coefficients.astype(b.dtype), b, 1, precision="highest"), basis
    )


def _floating(leaf: ArrayLike) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _size(tree: Any) -> int:
    return sum(jnp.size(x) for x in jax.tree.leaves(tree) if _floating(x))


def _check_steps(method: str, steps: int, tree: Any) -> None:
    if not 1 <= steps <= _size(tree):
        raise ValueError(
            f"{method}: steps is {steps}; accepted: 1 <= steps <= {_size(tree)}, the number of "
            "floating elements."
        )
