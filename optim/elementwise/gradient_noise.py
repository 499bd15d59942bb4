"""Gradient noise: a normal draw is added to the gradient, and less of it from step to step.

With gradient `g` and `t` steps before this one::

    g = g + sqrt(eta / (1 + t)^gamma) z,    z ~ N(0, 1)

*Differences.* From the paper: none; its authors try eta of 0.01, 0.3 and 1, with gamma 0.55, and
published no code. From `optax.add_noise`: the key is an argument of the update instead of a part
of the state, so that a step draws what its key says, whatever was done before; a leaf's draw
depends on its path, not on its place among the leaves; the distribution is an argument; noise and
sum are float32 for bfloat16 gradients (bfloat16 there).

*Cost.* No state but a counter. One draw an element.

*Reference.* Neelakantan et al., Adding Gradient Noise Improves Learning for Very Deep Networks,
2015 (arXiv:1511.06807); optax 0.2.8, transforms/_adding.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


class GradientNoiseState(NamedTuple):
    """State of `gradient_noise`."""

    steps: jax.Array  # (), int32, steps made


def gradient_noise(
    eta: ArrayLike = 0.01,
    gamma: ArrayLike = 0.55,
    *,
    noise: Callable[..., jax.Array] = jax.random.normal,
) -> optax.GradientTransformationExtraArgs:
    """Adds noise to the gradient; the update takes a `key`, a new one for every step.

    Args:
      eta: variance of the noise at the first step.
      gamma: exponent of its decay; 0 for none.
      noise: (key, shape, dtype) -> z, normal by default.

    Raises:
      ValueError: eta or gamma is a negative number, or update is called without key.

    >>> import jax, jax.numpy as jnp, optim
    >>> tx = optim.gradient_noise(4.0, 2.0, noise=lambda key, shape, dtype: jnp.ones(shape, dtype))
    >>> state = tx.init(jnp.zeros(2))
    >>> for step in range(2):
    ...     key = jax.random.fold_in(jax.random.key(0), step)
    ...     updates, state = tx.update(jnp.array([0.0, 10.0]), state, key=key)
    ...     print(updates)
    [ 2. 12.]
    [ 1. 11.]
    """
    trees.check_at_least("gradient_noise", 0, eta=eta, gamma=gamma)

    def init(params: optax.Params) -> GradientNoiseState:
        del params
        return GradientNoiseState(jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates,
        state: GradientNoiseState,
        params: optax.Params | None = None,
        *,
        key: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GradientNoiseState]:
        del params, extra_args
        if key is None:
            raise ValueError(
                "gradient_noise: key is None; accepted: a key for this step, as in "
                "update(updates, state, params, key=jax.random.fold_in(run_key, step))."
            )
        steps = optax.safe_increment(state.steps)
        own = trees.named_key(key, "gradient_noise")

        def add(path: tuple[Any, ...], g: ArrayLike | None) -> jax.Array | None:
            if g is None:
                return None
            dtype = trees.accumulator_dtype(g)
            decay = trees.as_dtype(steps, dtype) ** trees.as_dtype(gamma, dtype)
            deviation = jnp.sqrt(trees.as_dtype(eta, dtype) / decay)
            leaf_key = trees.named_key(own, trees.path_string(path))
            return trees.as_dtype(g, dtype) + deviation * noise(leaf_key, jnp.shape(g), dtype)

        updates = jax.tree.map_with_path(add, updates, is_leaf=lambda g: g is None)
        return updates, GradientNoiseState(steps)

    return optax.GradientTransformationExtraArgs(init, update)
