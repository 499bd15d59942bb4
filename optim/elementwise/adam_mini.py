"""Adam-mini: Adam with one second moment for each block of a leaf.

With gradient `g`, momentum `m` and one mean of squares `v` for each block (0 at the start) after
`t` steps, parameters `p`, rate `lr` and decay `wd`::

    m = b1 m + (1 - b1) g
    v = b2 v + (1 - b2) mean(g^2)                         the mean over the block
    p = p - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + wd p)

**Blocks** are declared as numbers along the axes of a leaf, `*` where every index is a block::

    "1 *"    a block for each index of the last axis: the neurons of a flax kernel (in, out)
    "* 1"    a block for each index of the first: the tokens of a flax embedding (tokens, features)
    "1 12"   12 blocks of neighbouring neurons: the heads of a query or key kernel
    "* 1 *"  the neurons of every layer of stacked kernels (layers, in, out)
    "1"      one block, for a leaf of any shape
    "*"      a block for each element, for a leaf of any shape: Adam

`adam_mini_blocks` declares them by the names that the authors' code looks for.

*Differences.*

1. Layouts are flax's, where the authors' rows are those of a torch matrix (out, in).
2. The authors' code goes by names alone, and what it does not recognise is one block: a query
   kernel called `c_attn` too, which the paper warns of. Here blocks have to be given; what no
   pattern matches is one block.
3. The authors' code multiplies p by 1 - lr wd first, which is the same step rounded elsewhere.

*Cost.* One momentum, 4 bytes a parameter, and 4 bytes a block. No matrix product; one extra pass
over the gradient for the means.

*Reference.* Zhang et al., Adam-mini: Use Fewer Learning Rates To Gain More, 2024
(arXiv:2406.16793); zyushun/Adam-mini@402aadfed237, adam_mini/adam_mini.py (version 1.1.1).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees

Blocks = Mapping[str, str] | Iterable[tuple[str, str]] | Callable[[optax.Params], Any]

# The names by which the authors' code knows a leaf; parts of names, so that `wo` is in `word`, too.
_HEADS = ("k_proj", "q_proj", "wq", "wk", "query", "key")
_TOKENS = ("embed", "embd", "wte")
_NEURONS = (
    *("lm_head", "output", "final_layer"),
    *("v_proj", "wv", "value"),
    *("feed_forward", "linear", "mlp"),
    *("o_proj", "wo", "attn.proj", "attn/proj"),
)
_NO_DECAY = ("norm", "ln", "bias")


class ScaleByAdamMiniState(NamedTuple):
    """State of `scale_by_adam_mini`."""

    steps: jax.Array  # (), int32, steps made
    mu: optax.Updates  # like the parameters, float32 or wider: momentum m
    nu: optax.Updates  # for each leaf its numbers of blocks as shape: mean squares v


def _decays(params: optax.Params) -> Any:
    """False where the authors do not decay: norms and biases, by name."""
    return jax.tree.map_with_path(lambda path, _: not _named(path, _NO_DECAY), params)


def scale_by_adam_mini(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    blocks: Blocks,
) -> optax.GradientTransformationExtraArgs:
    """The direction of Adam-mini, without rate or weight decay.

    Args:
      b1: decay of the momentum, in [0, 1).
      b2: decay of the mean squares, in [0, 1).
      eps: added to the corrected root of the mean squares.
      blocks: numbers of blocks, as the module says, by patterns for the whole path of a leaf; or a
        function from the parameters to a tree of them, such as `adam_mini_blocks` gives.

    Raises:
      ValueError: b1 or b2 is a number outside [0, 1); or, at init, a pattern matches nothing, two
        differ over one leaf, or a number of blocks does not divide its axis.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_adam_mini(blocks={"kernel": "1 *"})
    >>> params = {"kernel": jnp.ones((3, 2)), "scale": jnp.ones(4)}
    >>> [nu.shape for nu in tx.init(params).nu.values()]
    [(1, 2), (1,)]
    """
    trees.check_fractions("adam_mini", b1=b1, b2=b2)
    given = blocks if callable(blocks) or isinstance(blocks, Mapping) else tuple(blocks)

    def declared(params: optax.Params) -> Any:
        if callable(given):
            return given(params)
        return trees.labels_by_path("adam_mini: blocks", params, given, "1")

    def init(params: optax.Params) -> ScaleByAdamMiniState:
        def zeros(path: tuple[Any, ...], p: ArrayLike, layout: str) -> jax.Array:
            shape = _block_counts(trees.path_string(path), jnp.shape(p), layout)
            return jnp.zeros(shape, trees.accumulator_dtype(p))

        nu = jax.tree.map_with_path(zeros, params, declared(params))
        return ScaleByAdamMiniState(jnp.zeros((), jnp.int32), trees.zeros_like(params), nu)

    def update(
        updates: optax.Updates,
        state: ScaleByAdamMiniState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdamMiniState]:
        del params, extra_args
        steps = optax.safe_increment(state.steps)

        def rule(g: jax.Array, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, ...]:
            mu = trees.average(b1, mu, g)
            nu = trees.average(b2, nu, _block_means(jnp.square(g), nu.shape))
            root = jnp.sqrt(nu / trees.bias_correction(b2, steps, g.dtype))
            mean = mu / trees.bias_correction(b1, steps, g.dtype)
            return _divide(mean, root + trees.as_dtype(eps, g.dtype)), mu, nu

        updates, (mu, nu) = trees.map_leaves(rule, updates, (state.mu, state.nu))
        return updates, ScaleByAdamMiniState(steps, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def adam_mini(
    learning_rate: optax.ScalarOrSchedule,
    *,
    blocks: Blocks,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = _decays,
) -> optax.GradientTransformationExtraArgs:
    """Adam-mini; the authors' default rate, 1e-3, has to be given.

    Args:
      learning_rate: rate lr, or a schedule of it.
      blocks: numbers of blocks, as the module says, by patterns for the whole path of a leaf; or a
        function from the parameters to a tree of them, such as `adam_mini_blocks` gives.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the mean squares, in [0, 1).
      eps: added to the corrected root of the mean squares.
      weight_decay: decoupled decay wd, or a schedule of it.
      mask: tree of booleans like the parameters (or a function from them to it): what decays. By
        default, as in the authors' code, what has none of `norm`, `ln` and `bias` in its path; None
        for everything.

    Raises:
      ValueError: b1 or b2 is a number outside [0, 1); or, at init, a pattern matches nothing, two
        differ over one leaf, or a number of blocks does not divide its axis.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.adam_mini(0.1, blocks={"w": "1 *"})
    >>> params = {"w": jnp.zeros((2, 2))}
    >>> gradients = {"w": jnp.array([[1.0, 7.0], [7.0, 1.0]])}  # both neurons of mean square 25
    >>> print(tx.update(gradients, tx.init(params), params)[0]["w"].round(4))
    [[-0.02 -0.14]
     [-0.14 -0.02]]
    """
    return optax.chain(
        scale_by_adam_mini(b1, b2, eps, blocks=blocks),
        trees.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def adam_mini_blocks(*, dim: int, num_heads: int) -> Callable[[optax.Params], Any]:
    """The blocks of a transformer by the authors' names, for kernels (in, out) as flax has them.

    The first of these parts of a path, in lower case, decides: `bias` is Adam; `q_proj`, `k_proj`,
    `wq`, `wk`, `query`, `key` have a block for each head; `embed`, `embd`, `wte` one for each token
    (the first axis, or the last of a leaf called `kernel`); `lm_head`, `output`, `final_layer`,
    `v_proj`, `wv`, `value`, `feed_forward`, `linear`, `mlp`, `o_proj`, `wo`, `attn/proj` one for
    each neuron (the last axis); everything else, and what has fewer than two axes, is one block.

    Args:
      dim: width d of the model.
      num_heads: number h of its query heads; a head of a query or key kernel has d^2 / h elements,
        so that a kernel of fewer key heads has as many blocks as heads.

    Returns:
      A function from the parameters to the `blocks` of `adam_mini`.

    Raises:
      ValueError: when called, a named leaf has more than two axes, or its heads do not divide it.

    >>> import jax.numpy as jnp, optim
    >>> params = {"query": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}, "norm": jnp.ones(8)}
    >>> optim.adam_mini_blocks(dim=8, num_heads=2)(params)
    {'norm': '1', 'query': {'bias': '*', 'kernel': '1 2'}}
    """
    trees.check_at_least("adam_mini_blocks", 1, dim=dim, num_heads=num_heads)

    def label(path: tuple[Any, ...], leaf: ArrayLike) -> str:
        shape, name = jnp.shape(leaf), trees.path_string(path)
        if _named(path, ("bias",)):
            return "*"
        if len(shape) < 2 or not _named(path, (*_HEADS, *_TOKENS, *_NEURONS)):
            return "1"
        if len(shape) > 2:
            raise ValueError(
                f"adam_mini_blocks: {name!r} has shape {shape}; accepted: two axes for a leaf that "
                f"is divided, or blocks that are declared by pattern."
            )
        if _named(path, _HEADS):
            heads, rest = divmod(math.prod(shape) * num_heads, dim * dim)
            if rest or shape[1] % max(heads, 1):
                raise ValueError(
                    f"adam_mini_blocks: {name!r} has shape {shape}; accepted: (in, out) with "
                    f"whole heads of {dim}^2 / {num_heads} elements along out."
                )
            return f"1 {heads}"
        tokens = _named(path, _TOKENS) and name.rpartition("/")[2] != "kernel"
        return "* 1" if tokens else "1 *"

    return lambda params: jax.tree.map_with_path(label, params)


def _named(path: tuple[Any, ...], parts: tuple[str, ...]) -> bool:
    name = trees.path_string(path).lower()
    return any(part in name for part in parts)


def _block_counts(name: str, shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The numbers of blocks along the axes."""
    words = layout.split() if isinstance(layout, str) else []
    words = words * len(shape) if len(words) == 1 and words[0] in ("1", "*") else words
    counts = [size if w == "*" else int(w) if w.isdecimal() else 0 for w, size in zip(words, shape)]
    fits = len(words) == len(shape) and all(
        word == "*" or (count > 0 and size % count == 0)
        for word, count, size in zip(words, counts, shape)
    )
    if not fits and (shape or layout not in ("1", "*")):
        raise ValueError(
            f"adam_mini: blocks is {layout!r} for {name!r} of shape {shape}; accepted: for each "
            f"axis `*` or a number that divides it, or `1` or `*` alone."
        )
    return tuple(counts)


def _split(shape: tuple[int, ...], counts: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with every axis as (blocks, size of a block)."""
    return tuple(n for k, d in zip(counts, shape) for n in (k, d // max(k, 1)))


def _block_means(x: jax.Array, counts: tuple[int, ...]) -> jax.Array:
    axes = tuple(range(1, 2 * x.ndim, 2))
    total = jnp.sum(x.reshape(_split(x.shape, counts)), axis=axes)
    return total / max(x.size // max(math.prod(counts), 1), 1)


def _divide(x: jax.Array, blocks: jax.Array) -> jax.Array:
    """Every element divided by the value of its block."""
    divisors = blocks.reshape([n for k in blocks.shape for n in (k, 1)])
    return (x.reshape(_split(x.shape, blocks.shape)) / divisors).reshape(x.shape)
