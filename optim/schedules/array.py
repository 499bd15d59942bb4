"""A schedule from a table: one value a step, or fewer or more that are interpolated.

With values v_0, ..., v_{n-1}, peak `p` and total steps `T`, step t has::

    p v_t                                     T = n
    p v(t (n - 1) / (T - 1)), v between       T != n
    p v_{n-1}                                 t >= T

where v(x) is the line through the values: the first step has the first value and the last step the
last, and every value that falls on a step is met exactly.

*Differences.* None; this is how the authors of refined schedules stretch theirs.

*Cost.* The values of all T steps are held in the program, 4 bytes each; one look-up a step.

*Reference.* Defazio, Cutkosky, Mehta and Mishchenko, When, Why and How Much? Adaptive Learning Rate
Scheduling by Refinement, 2023 (arXiv:2310.07831).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optim import trees
from optim.schedules.steps import steps_of


def array_schedule(
    values: ArrayLike, *, peak_value: ArrayLike = 1.0, total_steps: int | None = None
) -> optax.Schedule:
    """The values in turn, multiplied by `peak_value`.

    Args:
      values: (n,) one of each step, such as `optim.refine_schedule` makes.
      peak_value: the factor.
      total_steps: steps of the run over which the values are stretched; None for n.

    Raises:
      ValueError: values that are no vector or not finite (traced ones are not checked), or
        total_steps that is no int from 1.

    >>> import optim
    >>> schedule = optim.array_schedule([1.0, 0.5, 0.0], peak_value=0.2, total_steps=5)
    >>> [round(float(schedule(t)), 3) for t in range(7)]
    [0.2, 0.15, 0.1, 0.05, 0.0, 0.0, 0.0]
    """
    table = jnp.asarray(values)
    if table.ndim != 1 or not table.size:
        raise ValueError(
            f"array_schedule: values has shape {table.shape}; accepted: (n,) with n from 1."
        )
    if not any(isinstance(value, jax.core.Tracer) for value in jax.tree.leaves(values)):
        known = np.asarray(values, float)
        bad = np.flatnonzero(~np.isfinite(known))
        if bad.size:
            raise ValueError(
                f"array_schedule: values[{bad[0]}] is {known[bad[0]]}; accepted: finite numbers."
            )
    table = table.astype(trees.accumulator_dtype(table))
    total = len(table) if total_steps is None else total_steps
    steps_of("array_schedule", "total_steps", total, total)
    if total != len(table):
        table = _stretched(table, total)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        return jnp.multiply(peak_value, table[jnp.clip(jnp.asarray(count, int), 0, total - 1)])

    return schedule


def _stretched(table: jax.Array, total: int) -> jax.Array:
    """The table at `total` places; these are computed apart, in integers, to be met exactly."""
    step, last = np.arange(total, dtype=np.int64), max(total - 1, 1)
    left, rest = np.divmod(step * (len(table) - 1), last)
    right = np.minimum(left + 1, len(table) - 1)
    share = jnp.asarray(rest / last, table.dtype)
    return (1 - share) * table[left] + share * table[right]
