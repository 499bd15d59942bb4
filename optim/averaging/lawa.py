"""LAWA: the mean of the latest k checkpoints of the parameters, to be evaluated in their place.

With parameters `p` after step t, a checkpoint every `interval` steps and k slots::

    slot[(t / interval - 1) mod k] = p         t = interval, 2 interval, ...
    served = mean of the slots filled

so that from step k interval on the k newest checkpoints are averaged, equally, and before the first
one the parameters themselves are served.

*Differences.* The paper takes checkpoints at the ends of epochs and forms their mean from files;
here the interval is in steps and the checkpoints are in the state. `optim.latest_weights` and
`optim.combine_checkpoints` do it from files. Checkpoints are in float32 at the least, before the
rounding that `optim.apply_updates` does. Integer parameters are served as they are.

*Cost.* 4 k bytes a parameter; a step that takes no checkpoint costs nothing. The mean is one pass
over all slots, when it is served.

*Reference.* Kaddour, Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest
Weight Averaging, 2022 (arXiv:2209.14981).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


class ParamsLawaState(NamedTuple):
    """State of `params_lawa`."""

    steps: jax.Array  # (), int32, steps made: t
    taken: jax.Array  # (), int32, checkpoints taken
    slots: optax.Params  # (k, ...) like the parameters, float32 or wider, without integer leaves

    def evaluation_params(self, params: optax.Params) -> optax.Params:
        """The mean of the checkpoints, or the parameters while there is none."""

        def mean(slots: jax.Array | optax.MaskedNode, p: ArrayLike) -> Any:
            if isinstance(slots, optax.MaskedNode):
                return slots
            filled = (jnp.arange(len(slots)) < self.taken).astype(slots.dtype)
            total = jnp.tensordot(filled, slots, 1)
            served = total / jnp.maximum(filled.sum(), 1)
            return jnp.where(self.taken > 0, served, jnp.asarray(p, slots.dtype))

        return jax.tree.map(
            mean, self.slots, params, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
        )


def params_lawa(latest: int, interval: int) -> optax.GradientTransformationExtraArgs:
    """Passes updates through and keeps the newest checkpoints; the last of a chain.

    `optim.evaluation_params(state, params)` gives their mean.

    Args:
      latest: k, how many checkpoints are averaged, at least 1.
      interval: steps between checkpoints, at least 1; those of an epoch in the paper.

    Raises:
      ValueError: latest or interval is less than 1, or the update is called without params.

    >>> import jax.numpy as jnp, optax, optim
    >>> tx = optax.chain(optax.sgd(1.0), optim.params_lawa(latest=2, interval=2))
    >>> params = jnp.array([9.0])
    >>> state = tx.init(params)
    >>> for _ in range(7):
    ...     updates, state = tx.update(jnp.array([1.0]), state, params)
    ...     params = optim.apply_updates(params, updates)
    >>> print(params, optim.evaluation_params(state, params))  # (5 + 3) / 2, of steps 4 and 6
    [2.] [4.]
    """
    trees.check_at_least("params_lawa", 1, latest=latest, interval=interval)

    def init(params: optax.Params) -> ParamsLawaState:
        slots = jax.tree.map(
            lambda p: jnp.zeros((latest, *p.shape), p.dtype), trees.float_copy(params)
        )
        return ParamsLawaState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), slots)

    def update(
        updates: optax.Updates,
        state: ParamsLawaState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ParamsLawaState]:
        del extra_args
        moved = trees.moved_floats("params_lawa", params, updates)
        steps = optax.safe_increment(state.steps)

        def take() -> tuple[jax.Array, optax.Params]:
            slot = state.taken % latest
            kept = jax.tree.map(lambda s, m: s.at[slot].set(m), state.slots, moved)
            return optax.safe_increment(state.taken), kept

        taken, slots = jax.lax.cond(steps % interval == 0, take, lambda: (state.taken, state.slots))
        return updates, ParamsLawaState(steps, taken, slots)

    return optax.GradientTransformationExtraArgs(init, update)
