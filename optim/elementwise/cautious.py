"""Cautious steps: only the coordinates where the update and the gradient have the same sign.

With gradient `g` and the update `u` that the inner transformation makes of it, by leaf::

    mask  = 1 where u g > 0, else 0
    scale = 1 / max(mean(mask), 1e-3)       rescale="mean", what C-AdamW does
            size / (sum(mask) + 1)          rescale="count", what the paper and C-Lion do
    u     = scale mask u

so that a step is about as long as it was. A coordinate where either is zero stands still.

*Differences.*

1. The authors' C-AdamW compares the momentum with the gradient. Its outgoing update has the sign of
   the momentum, and so has Lion's, so that what a wrapper sees is the same mask. For an inner
   transformation that mixes coordinates (a rotated or orthogonalized one) it is the mask of the
   update, which is what the paper defines.
2. Weight decay is not masked in the authors' code: add it after `cautious`, and the rate last. An
   update that goes against the gradient, as one that was multiplied by a negative rate does, would
   be masked where it should not be; `init` tries a small step and raises. It cannot tell where the
   inner transformation cannot take that step (it needs other arguments, shapes or names, draws
   random numbers, or has hyper-parameters that are traced), or where it stands still.
3. C-AdamW adds eps to the corrected root of the second moment on its default path, as
   `optax.scale_by_adam` does, and to the uncorrected one with foreach=False.
4. For C-Lion the authors' defaults are b1 = 0.95 and b2 = 0.98, not Lion's.

*Cost.* No state. One extra pass over update and gradient.

*Reference.* Liang et al., Cautious Optimizers: Improving Training with One Line of Code, 2024
(arXiv:2411.16085); kyleliang919/C-Optim@2c0517c4db2e, c_adamw.py and c_lion.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim import trees

_LEAST_MEAN = 1e-3  # so that a leaf with hardly a coordinate left is not sent far


def cautious(
    inner: optax.GradientTransformation, *, rescale: str = "mean"
) -> optax.GradientTransformationExtraArgs:
    """`inner`, whose updates are masked where their sign is not that of the gradient.

    The state is that of `inner`.

    Args:
      inner: a transformation before rate and weight decay, such as `optim.scale_by_lion()`.
      rescale: "mean" or "count": by what the rest of a leaf is scaled up.

    Raises:
      ValueError: rescale is something else; or, at init, inner turns a gradient around, as aliases
        and rates do.

    >>> import jax.numpy as jnp, optax, optim
    >>> tx = optim.cautious(optax.trace(0.5))
    >>> params = jnp.zeros(2)
    >>> _, state = tx.update(jnp.array([1.0, -4.0]), tx.init(params), params)
    >>> tx.update(jnp.array([1.0, 1.0]), state, params)[0].tolist()  # of 1.5 and -1
    [3.0, 0.0]
    """
    if rescale not in ("mean", "count"):
        raise ValueError(f"cautious: rescale is {rescale!r}; accepted: 'mean' or 'count'.")
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> optax.OptState:
        if _turns_around(inner):
            raise ValueError(
                "cautious: inner gives updates against the gradient, as one that holds a learning "
                "rate does; accepted: a transformation such as optim.scale_by_lion(), with weight "
                "decay and rate after cautious."
            )
        return inner.init(params)

    def rule(u: jax.Array, g: jax.Array) -> tuple[jax.Array]:
        # The sign first: a product of two small numbers may be zero.
        mask = jnp.sign(u) * g > 0
        kept = jnp.sum(mask, dtype=u.dtype)
        if rescale == "mean":
            scale = 1 / jnp.maximum(kept / max(mask.size, 1), _LEAST_MEAN)
        else:
            scale = mask.size / (kept + 1)
        return (jnp.where(mask, scale * u, 0),)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        gradients = updates
        updates, state = inner.update(gradients, state, params, **extra_args)
        return trees.map_leaves(rule, updates, (), gradients)[0], state

    return optax.GradientTransformationExtraArgs(init, update)


def _turns_around(inner: optax.GradientTransformationExtraArgs) -> bool:
    """Whether two steps of `inner` along a gradient of ones go down it, as far as can be known."""
    try:
        # Two, since the first rate of a schedule may be zero.
        with jax.ensure_compile_time_eval():
            ones = jnp.ones((2, 2), jnp.float32)
            state = inner.init(ones)
            if any(_is_key(leaf) for leaf in jax.tree.leaves(state)):
                return False
            first, state = inner.update(ones, state, ones)
            second, _ = inner.update(ones, state, ones)
            return bool((first + second < 0).all())
    except Exception:  # whatever keeps it from taking this step says nothing about its sign
        return False


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
