"""AdaGrad-Norm: one rate for all parameters, from the norms of all gradients so far.

With gradient `g`, its norm |g| over all leaves, rate `lr`, parameters `p` and the accumulator `s`
(at the start `initial_accumulator_value`)::

    s = s + |g|^2
    p = p - lr g / sqrt(s)

*Differences.* There is no eps, as in the papers; where s is 0 no gradient has been, and there is
no step. The code beside the paper on adaptive batch sizes has an accumulator for each row of a
matrix (for each output channel of a convolution), that of the row and the coordinate for a bias,
adds 1e-10 to the root, and multiplies its weight decay by the gradient; here there is one number,
and no decay.

*Cost.* 4 bytes in all. One pass over the gradient for its norm.

*Reference.* Ward, Wu, Bottou, AdaGrad stepsizes: sharp convergence over nonconvex landscapes, 2018
(arXiv:1806.01811), whose b_0 is the root of the initial value; Streeter, McMahan, Less Regret via
Online Conditioning, 2010 (arXiv:1002.4862). The default start is that of
timlautk/AdAdaGrad@135b9aad291a, adagradnorm.py.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees


class ScaleByAdagradNormState(NamedTuple):
    """State of `scale_by_adagrad_norm`."""

    sum_of_squares: jax.Array  # (), float32 or wider: s


def scale_by_adagrad_norm(
    initial_accumulator_value: ArrayLike = 0.01,
) -> optax.GradientTransformationExtraArgs:
    """The gradient over the root of the sum of the squared norms of all gradients so far.

    Args:
      initial_accumulator_value: the sum at the start, b_0^2 in the paper.

    Raises:
      ValueError: initial_accumulator_value is a negative number.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_adagrad_norm(0.0)
    >>> gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}  # of norm 5
    >>> updates, _ = tx.update(gradient, tx.init(gradient))
    >>> print(updates["a"], updates["b"])
    [0.6] [0.8]
    """
    trees.check_at_least("adagrad_norm", 0, initial_accumulator_value=initial_accumulator_value)

    def init(params: optax.Params) -> ScaleByAdagradNormState:
        dtype = trees.accumulator_dtype(*jax.tree.leaves(params))
        return ScaleByAdagradNormState(jnp.array(initial_accumulator_value, dtype))

    def update(
        updates: optax.Updates,
        state: ScaleByAdagradNormState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdagradNormState]:
        del params, extra_args
        total = state.sum_of_squares
        total = total + trees.squared_norm(updates).astype(total.dtype)
        factor = jnp.where(total > 0, jax.lax.rsqrt(jnp.where(total > 0, total, 1)), 0)

        def rule(g: jax.Array) -> tuple[jax.Array]:
            return (g * factor.astype(g.dtype),)

        return trees.map_leaves(rule, updates)[0], ScaleByAdagradNormState(total)

    return optax.GradientTransformationExtraArgs(init, update)


def adagrad_norm(
    learning_rate: optax.ScalarOrSchedule, *, initial_accumulator_value: ArrayLike = 0.01
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad-Norm.

    Args:
      learning_rate: rate lr, or a schedule of it.
      initial_accumulator_value: the sum of squares at the start, b_0^2 in the paper.

    Raises:
      ValueError: initial_accumulator_value is a negative number.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.adagrad_norm(0.5, initial_accumulator_value=9.0)
    >>> params = jnp.zeros(1)
    >>> print(tx.update(jnp.array([4.0]), tx.init(params), params)[0])  # -0.5 * 4 / 5
    [-0.4]
    """
    return optax.chain(
        scale_by_adagrad_norm(initial_accumulator_value),
        optax.scale_by_learning_rate(learning_rate),
    )
