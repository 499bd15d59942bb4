"""Estimates of the diagonal of a curvature, as functions (params, key) -> tree like params.

With the loss `L`, its Hessian `H`, a probe `z` of mean 0 and covariance 1, the mean `L_y` over B
predictions of their cross entropies with labels y drawn from the model's own distributions, and the
loss `L_i` of example i of n::

    hutchinson              z * H z                     mean: diag H, which may be negative
    gauss_newton_bartlett   B (grad L_y)^2              mean: diag of the Gauss-Newton matrix of L
    empirical_fisher        sum_i (grad L_i)^2 / n      exact: diag of the empirical Fisher

A transformation that takes them (`optim.sophia`, `optim.adahessian`) gets them through
`optim.with_curvature`. The functions given here are called on parameters promoted to float32 at
least, and estimates are in that dtype. Leaves that are not floats are constants, with zeros.

*Averages.* `spatial_average` is how AdaHessian makes its estimates less noisy: absolute values
first, then means over parts of a leaf.

*Differences.* The Bartlett estimate is the one of Sophia-G; its authors keep the factor B, their
number of tokens in a step, out of the estimate and multiply by it where they divide, and they clip
the norm of grad L_y to 1 before it is squared, which is biased and is not done here. B (grad L_y)^2
is unbiased since gradients of different predictions are independent and of mean 0 where labels are
drawn from the model.

*Cost.* In gradients of the loss: 2.2 a probe (`python -m experiments bench curvature`, "jvp of
grad"), 1 for Bartlett; the empirical Fisher holds the gradients of all examples at once.

*Reference.* Hutchinson, A Stochastic Estimator of the Trace of the Influence Matrix, 1989; Bekas,
Kokiopoulou and Saad, An Estimator for the Diagonal of a Matrix, 2007; Liu et al., Sophia, 2023
(arXiv:2305.14342); Yao et al., ADAHESSIAN, 2020 (arXiv:2006.00719).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim import trees
from optim.curvature.space import Space, described, scalar_valued

CurvatureFn = Callable[[Any, jax.Array], Any]  # (params, key) -> tree like params

_DRAWS: dict[str, Callable[..., jax.Array]] = {
    "rademacher": jax.random.rademacher,
    "gaussian": jax.random.normal,
}


def hutchinson(
    loss_fn: Callable[[Any], jax.Array],
    *,
    distribution: str = "rademacher",
    samples: int = 1,
    probe: Callable[[jax.Array, Any], Any] | None = None,
) -> CurvatureFn:
    """z * Hz, an unbiased estimate of the diagonal of the Hessian.

    With the signs of "rademacher", AdaHessian's, it is exact where the Hessian is diagonal; the
    paper of Sophia draws from "gaussian".

    Args:
      loss_fn: params -> scalar loss.
      distribution: of the elements of z: "rademacher" or "gaussian".
      samples: probes whose estimates are averaged, at least 1, one after another.
      probe: (key, params) -> z, a tree like the parameters, to draw otherwise.

    Raises:
      ValueError: distribution is neither, or samples is less than 1.

    >>> import jax, jax.numpy as jnp, optim
    >>> curvature_fn = optim.hutchinson(lambda p: jnp.sum(jnp.array([1.0, 3.0]) * p**2))
    >>> print(curvature_fn(jnp.ones(2), jax.random.key(0)))
    [2. 6.]
    """
    if distribution not in _DRAWS:
        raise ValueError(
            f"hutchinson: distribution is {distribution!r}; accepted: {', '.join(_DRAWS)}."
        )
    trees.check_at_least("hutchinson", 1, samples=samples)

    def curvature_fn(params: Any, key: jax.Array) -> Any:
        space = Space("hutchinson", params)
        loss = scalar_valued("hutchinson", "loss_fn", space.function(loss_fn, params))
        point = space.coordinates(params)

        def draw(key: jax.Array) -> list[jax.Array]:
            if probe is not None:
                return space.coordinates(probe(key, params))
            return [
                _DRAWS[distribution](trees.named_key(key, path), x.shape, x.dtype)
                for path, x in zip(space.floating_paths, point, strict=True)
            ]

        def one(key: jax.Array) -> list[jax.Array]:
            z = draw(key)
            _, product = jax.jvp(jax.grad(loss), (point,), (z,))
            return jax.tree.map(jnp.multiply, z, product)

        key = trees.named_key(key, "hutchinson")
        if samples == 1:
            return space.tree(one(key))
        total, _ = jax.lax.scan(
            lambda total, key: (jax.tree.map(jnp.add, total, one(key)), None),
            jax.tree.map(jnp.zeros_like, point),
            jax.random.split(key, samples),
        )
        return space.tree([t / samples for t in total])

    return curvature_fn


def gauss_newton_bartlett(
    logits_fn: Callable[[Any], jax.Array],
    *,
    sample: Callable[[jax.Array, jax.Array], jax.Array] = jax.random.categorical,
) -> CurvatureFn:
    """B (grad L_y)^2, an unbiased estimate of the diagonal of the Gauss-Newton matrix.

    Of the mean softmax cross entropy of B predictions; its true labels are not needed. Parts of the
    loss that are no cross entropy, a penalty for one, are not in it.

    Args:
      logits_fn: params -> logits (..., classes), B = product of the other axes.
      sample: (key, logits) -> integer labels (...), drawn from the softmax of the logits.

    >>> import jax, jax.numpy as jnp, optim
    >>> curvature_fn = optim.gauss_newton_bartlett(lambda p: p, sample=lambda key, logits: 0)
    >>> print(curvature_fn(jnp.zeros(2), jax.random.key(0)))  # (softmax - label)^2, B = 1
    [0.25 0.25]
    """

    method = "gauss_newton_bartlett"

    def curvature_fn(params: Any, key: jax.Array) -> Any:
        space = Space(method, params)
        key = trees.named_key(key, method)

        def sampled_loss(logits: Any) -> jax.Array:
            labels = jnp.asarray(sample(key, jax.lax.stop_gradient(logits)))
            if labels.shape != logits.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
                raise ValueError(
                    f"{method}: sample returns {labels.dtype}{list(labels.shape)}; accepted: "
                    f"integers of the shape of the logits but their last axis, {logits.shape[:-1]}."
                )
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

        def loss(point: list[jax.Array]) -> tuple[jax.Array, int]:
            logits = _logits(method, space.function(logits_fn, params)(point))
            return sampled_loss(logits), logits.size // logits.shape[-1]

        gradient, count = jax.grad(loss, has_aux=True)(space.coordinates(params))
        return space.tree([count * jnp.square(g) for g in gradient])

    return curvature_fn


def empirical_fisher(example_loss: Callable[[Any, Any], jax.Array], examples: Any) -> CurvatureFn:
    """The mean square of the gradients of all examples, which draws nothing.

    Args:
      example_loss: (params, example) -> scalar loss of one example.
      examples: tree of arrays (n, ...), the examples along the first axis.

    >>> import jax, jax.numpy as jnp, optim
    >>> curvature_fn = optim.empirical_fisher(lambda p, x: p * x, jnp.array([1.0, 3.0]))
    >>> print(curvature_fn(jnp.float32(5.0), jax.random.key(0)))  # (1 + 9) / 2
    5.0
    """

    def curvature_fn(params: Any, key: jax.Array) -> Any:
        del key
        space = Space("empirical_fisher", params)

        def loss(point: list[jax.Array], example: Any) -> jax.Array:
            function = space.function(lambda params: example_loss(params, example), params)
            return scalar_valued("empirical_fisher", "example_loss", function)(point)

        gradients = jax.vmap(jax.grad(loss), (None, 0))(space.coordinates(params), examples)
        return space.tree([jnp.mean(jnp.square(g), axis=0) for g in gradients])

    return curvature_fn


MISSING = object()  # where an argument `curvature` is not given; None says: keep the last estimate


def check_given(method: str, curvature: Any) -> None:
    """Raises ValueError where a transformation that takes `curvature` is not given it."""
    if curvature is MISSING:
        raise ValueError(
            f"{method}: curvature is missing; wrap the whole optimizer, as in "
            f"optim.with_curvature(optim.{method}(learning_rate)), whose update takes curvature_fn "
            "and key."
        )


def _logits(method: str, logits: Any) -> jax.Array:
    shape = described(logits)
    if (
        not isinstance(shape, tuple)
        or not shape
        or 0 in shape
        or not jnp.issubdtype(jnp.result_type(logits), jnp.floating)
    ):
        dtype = getattr(logits, "dtype", "")
        raise ValueError(
            f"{method}: logits_fn returns {dtype}{shape}; accepted: floats (..., classes), the "
            "logits of a classifier."
        )
    return trees.as_dtype(logits, trees.accumulator_dtype(logits))


AVERAGES = ("rows", "windows", "blocks")


def spatial_average(
    leaf: jax.Array,
    rule: str = "rows",
    block_size: int | Mapping[int, int] | None = None,
    layout: str | None = None,
) -> jax.Array:
    """|leaf| with means over parts of it in place of its elements, by one of AdaHessian's rules.

    "rows": over the inputs of a matrix and the window of a convolution (the authors' instruction);
    "windows": over the window of a convolution alone (their image classification); "blocks": over
    blocks of a matrix alone (their translation, in blocks of 32).

    Args:
      leaf: estimates of the diagonal.
      rule: "rows", "windows" or "blocks".
      block_size: of matrices, or by number of axes: the mean is over so many successive elements
        instead, in torch's order (outputs, inputs, window), and has to divide their number.
      layout: a letter an axis, as in `optim.muon`: "m n" an input by an output, "m m m n" a
        convolution, whose window comes before its inputs, "b" in front of it for layers that are
        stacked, each averaged on its own. Without it, a leaf of two axes or more is one of the
        first two kinds.

    Raises:
      ValueError: rule is none of the three, "blocks" has no block_size, or a block does not divide
        a leaf.

    >>> import jax.numpy as jnp, optim
    >>> print(optim.spatial_average(jnp.array([[1.0, -2.0], [-3.0, 4.0]])))
    [[2. 3.]
     [2. 3.]]
    """
    check_average("spatial_average", rule, block_size)
    sizes = {2: block_size} if isinstance(block_size, int) else dict(block_size or {})
    letters = layout.split() if layout else ["m"] * (leaf.ndim - 1) + ["n"] * min(leaf.ndim, 1)
    batch, inputs, outputs = (
        [axis for axis, letter in enumerate(letters) if letter[-1] == kind] for kind in "bmn"
    )
    rank, size = leaf.ndim - len(batch), jnp.abs(leaf)
    if rank in sizes:
        return _block_average(size, sizes[rank], (*batch, *outputs, *inputs[-1:], *inputs[:-1]))
    axes = inputs[:-1] or (inputs if rule == "rows" else [])
    if rule == "blocks" or not axes:
        return size
    return jnp.broadcast_to(jnp.mean(size, axes, keepdims=True), leaf.shape)


def check_average(method: str, rule: Any, block_size: Any) -> None:
    """Raises ValueError where `spatial_average` would whatever the leaf."""
    if rule not in AVERAGES:
        raise ValueError(f"{method}: averaging is {rule!r}; accepted: {', '.join(AVERAGES)}.")
    sizes = block_size.values() if isinstance(block_size, Mapping) else [block_size]
    if any(isinstance(size, int) and size < 1 for size in sizes):
        raise ValueError(f"{method}: block_size is {block_size}; accepted: sizes of at least 1.")
    if rule == "blocks" and not block_size:
        raise ValueError(f"{method}: block_size is {block_size}; averaging = 'blocks' needs one.")


def _block_average(leaf: jax.Array, size: int, order: tuple[int, ...]) -> jax.Array:
    """Means of `size` successive elements of the leaf with its axes in this order."""
    turned = leaf.transpose(order)
    if turned.size % size:
        raise ValueError(
            f"spatial_average: block_size is {size}, which does not divide the {leaf.size} "
            f"elements of a leaf of shape {leaf.shape}."
        )
    blocks = turned.reshape(-1, size)
    means = jnp.broadcast_to(jnp.mean(blocks, 1, keepdims=True), blocks.shape)
    return means.reshape(turned.shape).transpose(sorted(range(leaf.ndim), key=order.__getitem__))
