"""Tests of how far a batch's gradient is known, each with the batch size that would pass it.

The batch comes in K groups of m samples, m = 1 for single samples, with the mean gradients `g_k`
and their mean `g`. Unbiased estimates over single samples, from those over the groups::

    V_j  = m / (K - 1) sum_k (g_kj - g_j)^2              of coordinate j, and V = sum_j V_j
    V_ip = m / (K - 1) sum_k (<g_k, g> - |g|^2)^2        of the inner product with g
    V_orth = V - V_ip / |g|^2                            of the part that is orthogonal to g

A mean over b samples has variance V / b, so a condition on it asks for a batch size::

    norm                b >= V / (eta^2 |g|^2)
    inner product       b >= V_ip / (theta^2 |g|^4)
    augmented           b >= max(V_ip / (theta^2 |g|^4), V_orth / (nu^2 |g|^2))
    coordinate-wise     b >= max_j V_j / (eta^2 g_j^2)

What has no variance asks for nothing; noise around a mean of zero asks for inf. `|g|^2` counts the
noise of the mean too, V / b on average, so that a batch of pure noise asks for about b / eta^2.

*Differences.*

1. The authors sum V_ip and V_orth over tensors, each projected onto its own part of g. The inner
   product of the definition is that of all parameters, as here; V_orth is the same sum in both.
2. Variances that the authors pool over processes lack the factors that make them unbiased; here
   the pooled moments are those of one pass over all (Chan, Golub and LeVeque).
3. `coordinate_wise_test` is the paper's and not in the authors' code. The means of many
   coordinates lie near zero by chance, and a maximum sees these alone; `share` guards against
   them.

*Cost.* Moments hold two trees like the gradient, in float32 at least, and merging reads both. The
inner products need the groups' gradients a second time, when their mean is known.

*Reference.* Lau, Liu, Kolar, AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods,
2024 (arXiv:2402.11215); timlautk/AdAdaGrad@135b9aad291a, tests.py. The tests of norm and inner
products are of Byrd, Chin, Nocedal, Wu, 2012, and Bollapragada, Byrd, Nocedal, 2018.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optim import trees


class GradientMoments(NamedTuple):
    """Mean and squared deviations of the gradients of equally large groups of samples."""

    groups: jax.Array  # (), float32 or wider, K
    mean: Any  # like a gradient, float32 or wider: g
    squares: Any  # the same: sum over the groups of (g_k - g)^2


def gradient_moments(gradients: Any) -> GradientMoments:
    """The moments of gradients that are there all at once.

    Args:
      gradients: a tree like the gradient, whose leaves have the groups as their leading axis.

    Raises:
      ValueError: there is no leaf, or leading axes are missing, empty or of different lengths.

    >>> import jax.numpy as jnp, optim
    >>> moments = optim.gradient_moments({"w": jnp.array([[1.0, 2.0], [3.0, 2.0]])})
    >>> print(moments.groups, moments.mean["w"], moments.squares["w"])
    2.0 [2. 2.] [2. 0.]
    """
    gradients = trees.promote(gradients)
    leaves = jax.tree.leaves(gradients)
    lengths = [leaf.shape[0] if leaf.ndim else 0 for leaf in leaves]
    if len({*lengths}) != 1 or not lengths[0]:
        raise ValueError(
            f"gradient_moments: gradients has shapes {[leaf.shape for leaf in leaves]}; accepted: "
            "a leading axis of one length, at least 1, on every leaf."
        )
    mean = jax.tree.map(lambda x: jnp.mean(x, 0), gradients)
    squares = jax.tree.map(lambda x, m: jnp.sum(jnp.square(x - m), 0), gradients, mean)
    groups = jnp.asarray(lengths[0], trees.accumulator_dtype(*leaves))
    return GradientMoments(groups, mean, squares)


def merge_moments(left: GradientMoments, right: GradientMoments) -> GradientMoments:
    """The moments of the groups of both, as if they had been there at once.

    Zeros in all fields are the moments of no group, with which a scan over micro-batches starts.

    Args:
      left: moments of some groups.
      right: moments of others, of the same size.

    >>> import jax.numpy as jnp, optim
    >>> one = optim.gradient_moments(jnp.array([[1.0], [3.0]]))
    >>> other = optim.gradient_moments(jnp.array([[8.0]]))
    >>> print(*optim.merge_moments(one, other))  # of 1, 3 and 8
    3.0 [4.] [26.]
    """
    groups = left.groups + right.groups
    weight = right.groups / jnp.where(groups > 0, groups, 1)

    def mean(a: jax.Array, b: jax.Array) -> jax.Array:
        return a + weight.astype(a.dtype) * (b - a)

    def squares(a: jax.Array, b: jax.Array, at: jax.Array, other: jax.Array) -> jax.Array:
        return a + b + (left.groups * weight).astype(a.dtype) * jnp.square(other - at)

    return GradientMoments(
        groups,
        jax.tree.map(mean, left.mean, right.mean),
        jax.tree.map(squares, left.squares, right.squares, left.mean, right.mean),
    )


def norm_test(
    moments: GradientMoments, *, eta: ArrayLike = 0.1, group_size: ArrayLike = 1
) -> jax.Array:
    """The batch size at which the gradient's deviation is eta times its length.

    Args:
      moments: of at least two groups; one leaves the variance unknown, which gives nan.
      eta: accepted relative deviation, in the paper below 1.
      group_size: samples m in each group.

    Returns:
      () of the moments' dtype: the batch size, not rounded.

    Raises:
      ValueError: eta or group_size is not positive, or moments is of fewer than two groups. Traced
        values are not checked.

    >>> import jax.numpy as jnp, optim
    >>> moments = optim.gradient_moments(jnp.array([[1.0, 2.0], [3.0, 2.0]]))
    >>> print(optim.norm_test(moments, eta=0.5))  # a variance of 2 over 0.25 * 8
    1.0
    """
    _check("norm_test", moments, eta=eta, group_size=group_size)
    return _ratio(_total_variance(moments, group_size), trees.squared_norm(moments.mean), eta)


def inner_product_test(
    moments: GradientMoments,
    inner_products: jax.Array,
    *,
    theta: ArrayLike = 0.1,
    group_size: ArrayLike = 1,
) -> jax.Array:
    """The batch size at which the gradient's deviation along itself is theta times its length.

    Args:
      moments: of the groups.
      inner_products: (groups,), of the gradient of each group with `moments.mean`.
      theta: accepted relative deviation.
      group_size: samples m in each group.

    Returns:
      () of the moments' dtype: the batch size, not rounded.

    Raises:
      ValueError: theta or group_size is not positive, or there are fewer than two groups. Traced
        values are not checked.

    >>> import jax, jax.numpy as jnp, optax, optim
    >>> gradients = jnp.array([[1.0, 2.0], [3.0, 2.0]])
    >>> moments = optim.gradient_moments(gradients)
    >>> products = jax.vmap(optax.tree.vdot, (0, None))(gradients, moments.mean)  # 6 and 10
    >>> print(optim.inner_product_test(moments, products, theta=0.5))  # 8 over 0.25 * 8^2
    0.5
    """
    _check("inner_product_test", moments, inner_products, theta=theta, group_size=group_size)
    along = _relative_variance_along(moments, inner_products, group_size)
    return _ratio(along, jnp.ones_like(along), theta)


def augmented_inner_product_test(
    moments: GradientMoments,
    inner_products: jax.Array,
    *,
    theta: ArrayLike = 0.1,
    nu: ArrayLike = 0.1,
    group_size: ArrayLike = 1,
) -> jax.Array:
    """The larger of what the inner product asks for and what the part orthogonal to it does.

    Args:
      moments: of the groups.
      inner_products: (groups,), of the gradient of each group with `moments.mean`.
      theta: accepted deviation along the gradient, relative to its length.
      nu: accepted deviation orthogonal to it, relative to its length.
      group_size: samples m in each group.

    Returns:
      () of the moments' dtype: the batch size, not rounded.

    Raises:
      ValueError: theta, nu or group_size is not positive, or there are fewer than two groups.
        Traced values are not checked.

    >>> import jax, jax.numpy as jnp, optax, optim
    >>> gradients = jnp.array([[2.0, 1.0], [2.0, -1.0]])  # the mean is (2, 0)
    >>> moments = optim.gradient_moments(gradients)
    >>> products = jax.vmap(optax.tree.vdot, (0, None))(gradients, moments.mean)
    >>> print(optim.augmented_inner_product_test(moments, products, nu=0.5))  # 2 over 0.25 * 4
    2.0
    """
    method = "augmented_inner_product_test"
    _check(method, moments, inner_products, theta=theta, nu=nu, group_size=group_size)
    along = _relative_variance_along(moments, inner_products, group_size)
    square = trees.squared_norm(moments.mean)
    # Rounding makes the difference negative where all deviations lie along the mean.
    across = jnp.maximum(_total_variance(moments, group_size) - along * square, 0)
    return jnp.maximum(_ratio(along, jnp.ones_like(along), theta), _ratio(across, square, nu))


def coordinate_wise_test(
    moments: GradientMoments,
    *,
    eta: ArrayLike = 0.1,
    share: float = 1.0,
    group_size: ArrayLike = 1,
) -> jax.Array:
    """The batch size at which a share of the coordinates each pass the norm test of their own.

    Args:
      moments: of at least two groups.
      eta: accepted deviation of a coordinate, relative to its mean.
      share: quantile over the coordinates, interpolated linearly, in (0, 1]. The paper's maximum
        is 1; of d coordinates of noise alone that asks for about d^2 times what their median does.
      group_size: samples m in each group.

    Returns:
      () of the moments' dtype: the batch size, not rounded.

    Raises:
      ValueError: eta or group_size is not positive, share is outside (0, 1], or moments is of
        fewer than two groups. Traced values are not checked.

    >>> import jax.numpy as jnp, optim
    >>> moments = optim.gradient_moments(jnp.array([[1.0, 0.0, 2.0], [3.0, 4.0, 2.0]]))
    >>> print(optim.coordinate_wise_test(moments, eta=0.5))  # 2 and 8 and 0 over 0.25 * 4
    8.0
    >>> print(optim.coordinate_wise_test(moments, eta=0.5, share=0.5))
    2.0
    """
    _check("coordinate_wise_test", moments, eta=eta, group_size=group_size)
    if not 0 < share <= 1:
        raise ValueError(f"coordinate_wise_test: share is {share}; accepted: 0 < share <= 1.")
    dtype = moments.groups.dtype
    scale = _per_sample(moments, group_size)

    def asked(mean: jax.Array, squares: jax.Array) -> jax.Array:
        variance = scale * squares.astype(dtype)
        return _ratio(variance, jnp.square(mean.astype(dtype)), eta).ravel()

    asked_for = jnp.concatenate(jax.tree.leaves(jax.tree.map(asked, moments.mean, moments.squares)))
    return jnp.max(asked_for) if share == 1 else jnp.quantile(asked_for, share)


def next_batch_size(batch_size: int, wanted: float, *, max_batch_size: int) -> int:
    """The batch size, doubled until it is what a test wants or until once more is too much.

    It never shrinks, so a run sees at most 1 + log2(max_batch_size / start) sizes; once twice the
    batch size exceeds the maximum, no test can change it. For host code, between steps.

    Args:
      batch_size: of the last step, at least 1.
      wanted: what a test gave; nan asks for nothing.
      max_batch_size: the largest that is accepted, at least batch_size.

    Raises:
      ValueError: batch_size is less than 1, or max_batch_size is less than batch_size.

    >>> import optim
    >>> [optim.next_batch_size(24, wanted, max_batch_size=200) for wanted in (7.0, 60.0, 1e9)]
    [24, 96, 192]
    """
    trees.check_at_least("next_batch_size", 1, batch_size=batch_size)
    trees.check_at_least("next_batch_size", batch_size, max_batch_size=max_batch_size)
    while batch_size < wanted and 2 * batch_size <= max_batch_size:
        batch_size *= 2
    return batch_size


def _check(
    method: str, moments: GradientMoments, products: Any = None, **values: ArrayLike
) -> None:
    trees.check_positive(method, **values)
    groups = moments.groups
    known = not isinstance(groups, jax.core.Tracer)
    if known and groups < 2:
        raise ValueError(
            f"{method}: moments is of {int(groups)} group; accepted: at least 2, whose gradients "
            "can differ."
        )
    shape = None if products is None else jnp.shape(products)
    if shape is not None and (len(shape) != 1 or shape[0] < 2 or (known and shape[0] != groups)):
        wanted = int(groups) if known else "at least 2"
        raise ValueError(
            f"{method}: inner_products has shape {shape}; accepted: one for each group of moments, "
            f"({wanted},)."
        )


def _per_sample(moments: GradientMoments, group_size: ArrayLike) -> jax.Array:
    """What makes a sum of squared deviations of groups the variance of samples."""
    return trees.as_dtype(group_size, moments.groups.dtype) / (moments.groups - 1)


def _total_variance(moments: GradientMoments, group_size: ArrayLike) -> jax.Array:
    squares = [jnp.sum(x).astype(moments.groups.dtype) for x in jax.tree.leaves(moments.squares)]
    return _per_sample(moments, group_size) * sum(squares)


def _relative_variance_along(
    moments: GradientMoments, inner_products: jax.Array, group_size: ArrayLike
) -> jax.Array:
    """V_ip / |g|^4; the products are divided first, since |g|^4 is soon 0 or inf in float32."""
    square = trees.squared_norm(moments.mean)
    products = trees.as_dtype(inner_products, square.dtype) / jnp.where(square > 0, square, 1)
    deviations = products - jnp.mean(products)
    return _per_sample(moments, group_size) * jnp.sum(jnp.square(deviations))


def _ratio(variance: jax.Array, square: jax.Array, accepted: ArrayLike) -> jax.Array:
    """variance / (accepted^2 square), and 0 where there is no variance."""
    some = variance != 0
    bound = jnp.square(trees.as_dtype(accepted, square.dtype)) * square
    return jnp.where(some, variance / jnp.where(some, bound, 1), 0)
