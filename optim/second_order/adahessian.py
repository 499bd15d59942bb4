"""AdaHessian: Adam with the averaged diagonal of the Hessian in place of the gradient's square.

With gradient `g`, estimate `c` of the diagonal of the Hessian, D = |c| averaged over parts of each
leaf, moments `m` and `v` (0 at the start), parameters `p`, rate `lr` and decay `wd`::

    m = b1 m + (1 - b1) g
    v = b2 v + (1 - b2) D^2                               at steps with a new estimate
    u = m / (1 - b1^t) / ((v / (1 - b2^n))^(k / 2) + eps)
    p = p - lr (u + wd p)

t counts steps from 1 and n estimates; with one a step, as the authors have it, they are the same.
The averages are those of `optim.spatial_average`; k is `hessian_power`.

*Differences.*

1. Estimates may be made at some steps only (the paper's "Hessian computation frequency", which its
   code lacks); v is corrected by their own number.
2. Before the first estimate u is 0, and one with an element that is not finite is left out whole.
3. The authors' three programs differ in what they average, and all three rules are here. That for
   images gives a leaf of three axes what it had for the leaf before, by mistake; here it averages
   the window. Across devices they drop the average of their traces; here a mean is a mean.
4. They take |H z| for |z * H z|, which it is for signs z alone.

*Cost.* Two moments: 8 bytes a parameter. An estimate with `optim.hutchinson` costs 2.2 gradients.

*Reference.* Yao et al., ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning, 2020
(arXiv:2006.00719); amirgholami/adahessian@85ebc00ce873, instruction/adahessian.py,
image_classification/optim_adahessian.py, transformer/fairseq/optim/adahessian.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from optim.curvature.diagonal import MISSING, check_average, check_given, spatial_average
from optim.matrices import Matrices, layouts


class ScaleByAdahessianState(NamedTuple):
    """State of `scale_by_adahessian`."""

    steps: jax.Array  # (), int32, steps made: t
    estimates: jax.Array  # (), int32, estimates taken: n
    mu: optax.Updates  # like the parameters, float32 or wider: first moment m
    nu: optax.Updates  # like the parameters, float32 or wider: mean square v of the diagonal


def scale_by_adahessian(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-4,
    *,
    hessian_power: ArrayLike = 1.0,
    averaging: str = "rows",
    block_size: int | Mapping[int, int] | None = None,
    matrices: Matrices = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction u of AdaHessian, without rate or weight decay.

    `update` takes `curvature`, an estimate like the parameters, or None to keep the last one.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the mean square of the diagonal, in [0, 1), an estimate.
      eps: added to the divisor.
      hessian_power: k, in [0, 1]; 1 is the whole diagonal, 0 none of it.
      averaging: a rule of `optim.spatial_average`.
      block_size: of the rule: of matrices, or by number of axes.
      matrices: pattern for the whole path -> layout, as in `optim.spatial_average`, or None, where
        nothing is averaged; by default what has two axes or more is a matrix or a convolution.

    Raises:
      ValueError: b1 or b2 is a number outside [0, 1), eps is negative, hessian_power is outside
        [0, 1], averaging or block_size is none that `optim.spatial_average` takes, a pattern or
        layout of matrices does not fit, or update is called without curvature. Traced values are
        not checked.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.scale_by_adahessian(eps=0.0)
    >>> gradient, curvature = jnp.array([1.0, -6.0]), jnp.array([2.0, -3.0])
    >>> updates, _ = tx.update(gradient, tx.init(gradient), curvature=curvature)
    >>> print([f"{u:.3f}" for u in updates])
    ['0.500', '-2.000']
    """
    trees.check_fractions("adahessian", b1=b1, b2=b2)
    trees.check_at_least("adahessian", 0, eps=eps, hessian_power=hessian_power)
    if isinstance(hessian_power, int | float) and hessian_power > 1:
        raise ValueError(
            f"adahessian: hessian_power is {hessian_power}; accepted: 0 <= hessian_power <= 1."
        )
    check_average("adahessian", averaging, block_size)

    def averaged(curvature: Any) -> Any:
        structure: Any
        leaves, structure = jax.tree.flatten(trees.promote(curvature))
        declared = layouts("adahessian", curvature, matrices)
        return structure.unflatten(
            [
                spatial_average(x, averaging, block_size, layout)
                if layout or jnp.ndim(x) < 2
                else jnp.abs(x)
                for x, layout in zip(leaves, declared, strict=True)
            ]
        )

    def init(params: optax.Params) -> ScaleByAdahessianState:
        layouts("adahessian", params, matrices)
        return ScaleByAdahessianState(
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            trees.zeros_like(params),
            trees.zeros_like(params),
        )

    def update(
        updates: optax.Updates,
        state: ScaleByAdahessianState,
        params: optax.Params | None = None,
        *,
        curvature: Any = MISSING,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdahessianState]:
        del params, extra_args
        check_given("adahessian", curvature)
        steps, estimates = optax.safe_increment(state.steps), state.estimates
        accepted = jnp.zeros((), bool)
        consumed: tuple[Any, ...] = ()
        if curvature is not None:
            accepted = trees.all_finite(curvature)
            estimates = jnp.where(accepted, optax.safe_increment(estimates), estimates)
            consumed = (averaged(curvature),)

        def rule(g: jax.Array, m: jax.Array, v: jax.Array, *d: jax.Array) -> tuple[jax.Array, ...]:
            dtype = g.dtype
            m = trees.average(b1, m, g)
            if d:
                v = jnp.where(accepted, trees.average(b2, v, jnp.square(d[0])), v)
            correction = trees.bias_correction(b2, jnp.maximum(estimates, 1), dtype)
            root = jnp.sqrt(v / correction) ** trees.as_dtype(hessian_power, dtype)
            divisor = root + trees.as_dtype(eps, dtype)
            u = m / trees.bias_correction(b1, steps, dtype) / divisor
            return jnp.where((estimates > 0) & (m != 0), u, 0), m, v

        updates, (mu, nu) = trees.map_leaves(rule, updates, (state.mu, state.nu), *consumed)
        return updates, ScaleByAdahessianState(steps, estimates, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def adahessian(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-4,
    hessian_power: ArrayLike = 1.0,
    averaging: str = "rows",
    block_size: int | Mapping[int, int] | None = None,
    matrices: Matrices = None,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: optax.Params | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaHessian; the weight decay is multiplied by the rate, as the authors do.

    The authors' rate is 0.15; their decay for images, 5e-4 / lr, is one of 5e-4 a step.

    Args:
      learning_rate: lr, or a schedule of it.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the mean square of the diagonal, in [0, 1), an estimate.
      eps: added to the divisor.
      hessian_power: k, in [0, 1]; 1 is the whole diagonal, 0 none of it.
      averaging: a rule of `optim.spatial_average`.
      block_size: of the rule: of matrices, or by number of axes.
      matrices: pattern for the whole path -> layout, as in `optim.spatial_average`, or None.
      weight_decay: decoupled decay wd, or a schedule of it.
      mask: tree of booleans like the parameters (or a function from them to it): what decays.

    Raises:
      ValueError: as `scale_by_adahessian`.

    >>> import jax, jax.numpy as jnp, optim
    >>> tx = optim.with_curvature(optim.adahessian(0.5, eps=0.0))
    >>> loss_fn = lambda params: jnp.sum(jnp.array([1.0, 3.0]) * params**2)
    >>> params = jnp.array([1.0, -2.0])
    >>> extras = {"curvature_fn": optim.hutchinson(loss_fn), "key": jax.random.key(0)}
    >>> updates, _ = tx.update(jax.grad(loss_fn)(params), tx.init(params), params, **extras)
    >>> print([f"{p:.3f}" for p in optim.apply_updates(params, updates)])  # half of Newton's step
    ['0.500', '-1.000']
    """
    return optax.chain(
        scale_by_adahessian(
            b1,
            b2,
            eps,
            hessian_power=hessian_power,
            averaging=averaging,
            block_size=block_size,
            matrices=matrices,
        ),
        trees.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
