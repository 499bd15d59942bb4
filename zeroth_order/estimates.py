"""What estimators share: what they find, what they accept as a loss, and how it is written out."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from zeroth_order.directions import Direction
from zeroth_order.gradients import SeededGradient, materialize

LossFn = Callable[[optax.Params], jax.Array]  # parameters -> (), or (examples,)


class Estimate(NamedTuple):
    """What an estimator found, the gradient to be read through its direction."""

    value: jax.Array  # (), float32 or wider: mean loss
    gradient: SeededGradient
    evaluations: jax.Array  # (), int32: losses


class Estimator(Protocol):
    """What finds a gradient from losses alone."""

    def __call__(
        self, loss_fn: LossFn, params: optax.Params, seed: ArrayLike, step: ArrayLike = 0
    ) -> Estimate:
        """At these parameters, along the directions of the seeds that begin with `seed`.

        `step` counts the steps of a run, for estimators that grow with it.
        """


def value_and_grad(
    loss_fn: LossFn, estimator: Estimator, along: Direction
) -> Callable[[optax.Params, ArrayLike], tuple[jax.Array, Any]]:
    """(params, seed) -> (value, gradient), the estimate written out for any optax transformation.

    Args:
      loss_fn: as the estimator takes it.
      estimator: such as `zeroth_order.spsa(along)`.
      along: the direction to read its gradients through.

    >>> import jax.numpy as jnp, zeroth_order
    >>> along = zeroth_order.direction()
    >>> estimator = zeroth_order.spsa(along, samples=4)
    >>> fn = zeroth_order.value_and_grad(lambda p: jnp.sum(p["w"] ** 2), estimator, along)
    >>> value, gradient = fn({"w": jnp.array([3.0])}, 0)
    >>> print(gradient["w"].round(2))
    [6.]
    """

    def found(params: optax.Params, seed: ArrayLike) -> tuple[jax.Array, Any]:
        estimate = estimator(loss_fn, params, seed)
        return estimate.value, materialize(along, estimate.gradient, params)

    return found


def scale_dtype(params: optax.Params) -> jnp.dtype:
    """The dtype of the size of a probe: float32, or the widest of the parameters' floats."""
    leaves = jax.tree.leaves(params)
    floats = [x for x in leaves if jnp.issubdtype(jnp.result_type(x), jnp.floating)]
    return trees.accumulator_dtype(*floats)


def promoted(caller: str, losses: Any) -> jax.Array:
    """A loss, or those of all examples, in float32 or wider."""
    shape, dtype = jnp.shape(losses), jnp.result_type(losses)
    if len(shape) > 1 or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{caller}: the loss has the shape {shape} and the dtype {dtype}; accepted: floats, a "
            f"scalar or a vector with an element for each example."
        )
    return trees.as_dtype(losses, trees.accumulator_dtype(losses))
