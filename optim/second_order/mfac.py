"""M-FAC: the gradient times the inverse of the Fisher matrix of the last m gradients.

With gradient `g`, decay `wd`, parameters `p`, rate `lr`, and a window of the last m gradients
(`window_size`), zeros at the start::

    g = g + wd p
    window: g in place of its oldest
    F = damping I + (1 / m) sum over the window of g_i g_i'
    u = F^-1 g
    v = momentum v + (1 - momentum) u
    p = p - lr v

All leaves together are one vector, and m divides from the first step on. g itself is in the
window, hence, with the window's gradients as rows of G and K = G G' kept up to date::

    u = m G' (K + m damping I)^-1 e_newest

*Differences.* From the authors' code:

1. That form of u, equal in exact arithmetic. Theirs is a difference of g / damping and nearly the
   same, and a difference loses |g|^2 / damping: in float32, for |g| = 10, gradients of cosine 0.95
   and the default damping, Woodbury's is off by a tenth to a third of u, this form by 3e-4 at most.
2. Any m; their kernels want m <= 1024, divisible by 32.
3. A gradient that is not finite makes the update nan and leaves the state as it is, where it would
   spoil m steps.
4. Where rounding leaves K + m damping I indefinite, its damping is raised (see
   `optim.solvers.windowed_inverse`).
5. No `sparse`, which leaves out weights that are zero at the start; multiply gradients by a mask.
6. Parameters without a gradient in a step (None) count as having zeros there, and stay. Integers
   have no part in the window.

*Cost.* 4 m bytes a parameter: at the default m = 1024, 4 KB for each; 2 m with
`buffer_dtype="bfloat16"`; 4 more with momentum; 4 m^2 altogether. A step reads the window twice and
factors a matrix of m x m; donate the state, or it is copied, too. Leaves of the window are sharded
as the parameters are.

`optim.keep_if_finite` outside would hold two windows. Around what follows it serves as well:
`optax.chain(optim.scale_by_mfac(), optim.keep_if_finite(optax.scale_by_learning_rate(lr)))`.

*Reference.* Frantar, Kurtic, Alistarh, M-FAC: Efficient Matrix-Free Approximations of Second-Order
Information, 2021 (arXiv:2107.03356); IST-DASLab/M-FAC@8116367fb537, optim.py.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optim import trees
from optim.solvers.windowed_inverse import Window, empty_window, newest_product, replace_oldest


class ScaleByMfacState(NamedTuple):
    """State of `scale_by_mfac`."""

    window: optax.Updates  # (m, *shape) a leaf, float32 or wider (or buffer_dtype): G
    gram: jax.Array  # (m, m), float32 or wider: K
    oldest: jax.Array  # (), int32, the row of the window that is replaced next
    mu: optax.Updates | None  # like the parameters, float32 or wider: v; None if momentum is 0


def scale_by_mfac(
    window_size: int = 1024,
    damping: ArrayLike = 1e-5,
    *,
    momentum: ArrayLike = 0.0,
    buffer_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction v of M-FAC for gradients that contain the weight decay.

    Args:
      window_size: number m of gradients, at least 1.
      damping: of the Fisher matrix, positive.
      momentum: decay of the average of directions, which is not corrected for its start, in [0, 1);
        the number 0 stores none.
      buffer_dtype: dtype of the window; by default the parameter's, float32 at least.

    Raises:
      ValueError: window_size is no integer of at least 1, damping is a number that is not positive,
        or momentum is a number outside [0, 1). Traced values are not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_mfac(2, damping=0.5)
    >>> params = jnp.array([1.0, 2.0])
    >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)
    >>> print(updates)  # g / (damping + |g|^2 / m)
    [0.23076925 0.30769232]
    """
    if not isinstance(window_size, numbers.Integral) or window_size < 1:
        raise ValueError(f"mfac: window_size is {window_size}; accepted: an integer, at least 1.")
    trees.check_positive("mfac", damping=damping)
    trees.check_fractions("mfac", momentum=momentum)
    without_momentum = isinstance(momentum, numbers.Real) and momentum == 0

    def init(params: optax.Params) -> ScaleByMfacState:
        floats = jax.tree.map(_without_integers, params)
        mu = None if without_momentum else trees.zeros_like(floats)
        return ScaleByMfacState(*empty_window(floats, int(window_size), buffer_dtype), mu)

    def update(
        updates: optax.Updates,
        state: ScaleByMfacState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByMfacState]:
        del params, extra_args
        gradient = jax.tree.map(_for_window, updates, state.window, is_leaf=_is_none)
        whole = jax.tree.map(_zeros_for_none, state.window, gradient)
        window, taken = replace_oldest(Window(state.window, state.gram, state.oldest), whole)
        direction = newest_product(window, damping * window_size)

        def rule(g: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
            *v, u = others
            u = jnp.where(taken, window_size * u, jnp.nan)
            if not v:
                return (u,)
            moved = trees.average(momentum, v[0], u)
            return moved, jnp.where(taken, moved, v[0])

        old = () if state.mu is None else (state.mu,)
        found, new = trees.map_leaves(rule, gradient, old, direction)
        moves = jax.tree.map(_zeros_for_integers, updates, found, is_leaf=_is_none)
        return moves, ScaleByMfacState(*window, *(new or (None,)))

    return optax.GradientTransformationExtraArgs(init, update)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _without_integers(leaf: jax.Array) -> jax.Array | optax.MaskedNode:
    return leaf if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else optax.MaskedNode()


def _for_window(g: Any, rows: Any) -> Any:
    """The gradient of a leaf, or what the window has in place of integers."""
    return rows if isinstance(rows, optax.MaskedNode) else g


def _zeros_for_none(rows: jax.Array, g: ArrayLike | None) -> ArrayLike:
    return jnp.zeros_like(rows[0]) if g is None else g


def _zeros_for_integers(g: Any, u: Any) -> Any:
    """The update of a leaf: zeros where the window has no gradient of it."""
    return jnp.zeros(jnp.shape(g), jnp.float32) if isinstance(u, optax.MaskedNode) else u


def mfac(
    learning_rate: optax.ScalarOrSchedule,
    *,
    window_size: int = 1024,
    damping: ArrayLike = 1e-5,
    momentum: ArrayLike = 0.0,
    buffer_dtype: DTypeLike | None = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """M-FAC; the weight decay is added to the gradient and enters the window, as the authors' does.

    The defaults are the authors', who give 1e-3 as the rate, and take a window of 512 for a
    ResNet-20.

    Args:
      learning_rate: factor lr of the direction, or a schedule of it.
      window_size: number m of gradients, at least 1; each parameter holds as many numbers.
      damping: of the Fisher matrix, positive.
      momentum: decay of the average of directions, which is not corrected for its start, in [0, 1);
        the number 0 stores none.
      buffer_dtype: dtype of the window; by default the parameter's, float32 at least.
      weight_decay: decay wd, or a schedule of it.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.

    Raises:
      ValueError: window_size is no integer of at least 1, damping is a number that is not positive,
        or momentum is a number outside [0, 1). Traced values are not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.mfac(1.0, window_size=2, damping=0.5)
    >>> params = jnp.array([1.0, 2.0])
    >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)
    >>> print(optim.apply_updates(params, updates))
    [0.7692307 1.6923077]
    """
    return optax.chain(
        trees.add_decayed_weights(weight_decay, mask),
        scale_by_mfac(window_size, damping, momentum=momentum, buffer_dtype=buffer_dtype),
        optax.scale_by_learning_rate(learning_rate),
    )
