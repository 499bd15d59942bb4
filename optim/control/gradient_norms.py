"""The norm of every step's gradient, kept in the state: what a refined schedule is made from.

At step t = 0, 1, ..., over all elements of all leaves of the gradient g::

    norms[t] = sqrt(sum g^2)    norm "l2"
    norms[t] = sum |g|          norm "l1"

as long as t < total_steps. The gradients pass through as they are, so this is the first of a chain:
what stands before it, clipping for one, would change the norms.

*Differences.* The paper's authors log norms outside the optimizer; in the state they are saved with
it, and a run that is continued goes on where it was.

*Cost.* 4 bytes a step, and one read of the gradients a step.

*Reference.* Defazio, Cutkosky, Mehta and Mishchenko, When, Why and How Much? Adaptive Learning Rate
Scheduling by Refinement, 2023 (arXiv:2310.07831).
"""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim import trees


class RecordGradientNormsState(NamedTuple):
    """State of `record_gradient_norms`."""

    norms: jax.Array  # (total_steps,), float32 or wider, NaN where no step has been
    steps: jax.Array  # (), int32, steps made


def record_gradient_norms(
    total_steps: int, *, norm: str = "l2"
) -> optax.GradientTransformationExtraArgs:
    """Passes updates through and keeps their norms; the first of a chain.

    Args:
      total_steps: length of the record; later steps leave no trace in it.
      norm: "l2" or "l1", as `optim.refine_schedule` takes it.

    Raises:
      ValueError: total_steps is no int from 1, or the norm is unknown.

    >>> import jax.numpy as jnp, optax, optim
    >>> tx = optax.chain(optim.record_gradient_norms(3), optax.sgd(0.1))
    >>> params = jnp.zeros(2)
    >>> state = tx.init(params)
    >>> for scale in (1.0, 2.0):
    ...     updates, state = tx.update(scale * jnp.array([3.0, 4.0]), state, params)
    >>> state[0].norms.tolist()
    [5.0, 10.0, nan]
    """
    if not isinstance(total_steps, numbers.Integral) or total_steps < 1:
        raise ValueError(
            f"record_gradient_norms: total_steps is {total_steps}; accepted: an int from 1."
        )
    if norm not in ("l2", "l1"):
        raise ValueError(f"record_gradient_norms: norm is {norm!r}; accepted: 'l2', 'l1'.")

    def init(params: optax.Params) -> RecordGradientNormsState:
        dtype = trees.accumulator_dtype(*_inexact(params))
        return RecordGradientNormsState(
            jnp.full((total_steps,), jnp.nan, dtype), jnp.zeros((), jnp.int32)
        )

    def update(
        updates: optax.Updates,
        state: RecordGradientNormsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RecordGradientNormsState]:
        del params, extra_args
        leaves = [leaf.astype(state.norms.dtype) for leaf in _inexact(updates)]
        size = trees.norm(leaves) if norm == "l2" else sum(jnp.sum(jnp.abs(x)) for x in leaves)
        norms = state.norms.at[state.steps].set(jnp.asarray(size, state.norms.dtype), mode="drop")
        return updates, RecordGradientNormsState(norms, optax.safe_increment(state.steps))

    return optax.GradientTransformationExtraArgs(init, update)


def _inexact(tree: Any) -> list[jax.Array]:
    return [
        leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    ]
