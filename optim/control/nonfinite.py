"""Steps that are not finite are left out.

An update or a new state that holds inf or nan is dropped: the update is zero, the state stays, and
two counters say so. It never gives in; whoever runs the steps decides how many in a row are too
many.

*Differences* from `optax.apply_if_finite`: that one looks at the incoming gradients alone, and
after a number of errors lets them through. Here the outgoing update and the new state are
compared, since a finite gradient can still overflow a second moment or meet a curvature that is
not finite. A state that held inf or nan before (a running maximum's start) is no new fault.

*Cost.* 8 bytes; one read of update and state, and the old state lives until the new one is judged,
so that a donated state is not updated in place.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim import trees


class KeepIfFiniteState(NamedTuple):
    """State of `keep_if_finite`."""

    consecutive: jax.Array  # (), int32, steps left out in a row up to now
    total: jax.Array  # (), int32, steps left out
    inner_state: optax.OptState


def keep_if_finite(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """`inner`, without the steps whose update or new state is not finite.

    Args:
      inner: any transformation; put this outermost, so that all that is computed is judged.

    >>> import jax.numpy as jnp, optax, optim
    >>> tx = optim.keep_if_finite(optax.sgd(0.5))
    >>> params = jnp.array([1.0, 2.0])
    >>> updates, state = tx.update(jnp.array([jnp.nan, 1.0]), tx.init(params), params)
    >>> updates.tolist(), int(state.consecutive), int(state.total)
    ([0.0, 0.0], 1, 1)
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> KeepIfFiniteState:
        return KeepIfFiniteState(
            jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), inner.init(params)
        )

    def update(
        updates: optax.Updates,
        state: KeepIfFiniteState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, KeepIfFiniteState]:
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        bad = ~trees.all_finite(updates)
        bad |= trees.any_element(_new_fault, inner_state, state.inner_state)
        updates = jax.tree.map(lambda u: jnp.where(bad, jnp.zeros_like(u), u), updates)

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            # A key that the inner transformation has spent may not be drawn from again.
            spent = jnp.issubdtype(jnp.result_type(new), jax.dtypes.prng_key)
            return new if spent else jax.lax.select(bad, old, new)

        kept = jax.tree.map(keep, inner_state, state.inner_state)
        consecutive = jnp.where(bad, optax.safe_increment(state.consecutive), 0)
        total = jnp.where(bad, optax.safe_increment(state.total), state.total)
        return updates, KeepIfFiniteState(consecutive, total, kept)

    return optax.GradientTransformationExtraArgs(init, update)


def _new_fault(new: jax.Array, old: jax.Array) -> jax.Array:
    return ~jnp.isfinite(new) & jnp.isfinite(old)
