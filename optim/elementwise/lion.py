"""Lion: the sign of an interpolated momentum.

With gradient `g`, momentum `m` (0 at the start), parameters `p`, rate `lr` and decay `wd`::

    u = sign(b1 m + (1 - b1) g)
    p = p - lr (u + wd p)
    m = b2 m + (1 - b2) g

*Differences.* From the authors' code: none in exact arithmetic; they multiply p by 1 - lr wd first,
which is the same step rounded elsewhere. From `optax.lion`: weight decay is 0 by default (1e-3
there), and momentum and arithmetic are float32 for bfloat16 parameters (bfloat16 there) unless
`mu_dtype` asks otherwise. The authors' default rate is 1e-4; here, as in optax, it has to be given.

*Cost.* One momentum: 4 bytes a parameter, 2 with `mu_dtype="bfloat16"`. No matrix product, no
extra pass.

*Reference.* Chen et al., Symbolic Discovery of Optimization Algorithms, 2023 (arXiv:2302.06675);
google/automl@6a54c8741e7c, lion/lion_pytorch.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optim import trees


class ScaleByLionState(NamedTuple):
    """State of `scale_by_lion`."""

    mu: optax.Updates  # like the parameters, float32 or wider (or mu_dtype): momentum m


def scale_by_lion(
    b1: ArrayLike = 0.9, b2: ArrayLike = 0.99, *, mu_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """The direction u of Lion, a tree of -1, 0 and 1, without rate or weight decay.

    A leaf of the gradient that is None leaves its momentum as it is; a float0 leaf, which is what
    `jax.grad(..., allow_int=True)` gives for integer parameters, counts as zeros.

    Args:
      b1: weight of the momentum in the direction, in [0, 1).
      b2: decay of the momentum, in [0, 1).
      mu_dtype: dtype of the momentum; by default the parameter's, float32 at least.

    Raises:
      ValueError: b1 or b2 is a number outside [0, 1). Traced values are not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_lion()
    >>> params = jnp.array([1.0, 2.0, 3.0])
    >>> updates, state = tx.update(jnp.array([0.5, 0.0, -4.0]), tx.init(params), params)
    >>> print(updates, state.mu)
    [ 1.  0. -1.] [ 0.005  0.    -0.04 ]
    """
    trees.check_fractions("lion", b1=b1, b2=b2)

    def init(params: optax.Params) -> ScaleByLionState:
        return ScaleByLionState(trees.zeros_like(params, mu_dtype))

    def update(
        updates: optax.Updates,
        state: ScaleByLionState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLionState]:
        del params, extra_args

        def rule(g: jax.Array, m: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.sign(trees.average(b1, m, g)), trees.average(b2, m, g)

        updates, (mu,) = trees.map_leaves(rule, updates, (state.mu,))
        return updates, ScaleByLionState(mu)

    return optax.GradientTransformationExtraArgs(init, update)


def lion(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    mu_dtype: DTypeLike | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion; the weight decay is multiplied by the rate, as the authors do.

    Args:
      learning_rate: length lr of the step of every coordinate, or a schedule of it.
      b1: weight of the momentum in the direction, in [0, 1).
      b2: decay of the momentum, in [0, 1).
      mu_dtype: dtype of the momentum; by default the parameter's, float32 at least.
      weight_decay: decoupled decay wd, or a schedule of it.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.

    Raises:
      ValueError: b1 or b2 is a number outside [0, 1). Traced values are not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.lion(0.01, weight_decay=0.1)
    >>> params = jnp.array([1.0, 2.0])
    >>> updates, state = tx.update(jnp.array([0.5, -4.0]), tx.init(params), params)
    >>> print(optim.apply_updates(params, updates))
    [0.989 2.008]
    """
    return optax.chain(
        scale_by_lion(b1, b2, mu_dtype=mu_dtype),
        trees.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
