"""Hybrid gradients: exact for some leaves, by back-propagation, and estimated for the rest.

    g = grad(loss) for the leaves that `exact` selects,  sum over j of c_j z_j  for the others

With the top layers exact, back-propagation ends where they begin: it keeps their activations alone,
and everything below runs at the memory of inference.

*Differences.* From Revisiting's hybrid, of which no code was found: both parts are found at the
same parameters, and the probe leaves the exact leaves where they are.

*Cost.* A value and gradient of the selected leaves, and the estimator's losses.

*Reference.* Zhang et al., Revisiting Zeroth-Order Optimization for Memory-Efficient LLM
Fine-Tuning, 2024 (arXiv:2402.11592).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from zeroth_order.directions import Direction, map_directed
from zeroth_order.estimates import Estimator, LossFn, promoted
from zeroth_order.gradients import materialize


def hybrid_value_and_grad(
    loss_fn: LossFn, estimator: Estimator, along: Direction, *, exact: Any
) -> Callable[[optax.Params, ArrayLike], tuple[jax.Array, Any]]:
    """(params, seed) -> (value, gradient) for any optax transformation.

    Args:
      loss_fn: as the estimator takes it, and differentiable in what is exact.
      estimator: of the direction, such as `zeroth_order.spsa(along)`.
      along: a direction that leaves out what is exact, by its `select`.
      exact: True or False by patterns of paths, as `zeroth_order.direction` takes `select`.

    Raises:
      ValueError: where it is called: nothing is exact, or a leaf is exact and perturbed.

    >>> import jax.numpy as jnp, zeroth_order
    >>> along = zeroth_order.direction(select={"low": True})
    >>> fn = zeroth_order.hybrid_value_and_grad(
    ...     lambda p: p["low"] * p["top"], zeroth_order.spsa(along), along, exact={"top": True})
    >>> value, gradient = fn({"low": jnp.array(2.0), "top": jnp.array(3.0)}, 0)
    >>> print(f"{gradient['low']:.2f} {gradient['top']:.2f}")
    3.00 2.00
    """
    rules = list(exact.items() if hasattr(exact, "items") else exact)

    def found(params: optax.Params, seed: ArrayLike) -> tuple[jax.Array, Any]:
        chosen = trees.labels_by_path("hybrid_value_and_grad: exact", params, rules, False)
        _check_apart(along(params), chosen)
        leaves, treedef = jax.tree.flatten(params)
        which = [i for i, one in enumerate(jax.tree.leaves(chosen)) if one]

        def loss(selected: list[Any]) -> jax.Array:
            merged = list(leaves)
            for i, value in zip(which, selected, strict=True):
                merged[i] = value
            losses = loss_fn(jax.tree.unflatten(treedef, merged))
            return jnp.mean(promoted("hybrid_value_and_grad", losses))

        value, gradients = jax.value_and_grad(loss)([leaves[i] for i in which])
        estimate = estimator(loss_fn, params, seed)
        written = jax.tree.leaves(materialize(along, estimate.gradient, params))
        for i, gradient in zip(which, gradients, strict=True):
            written[i] = gradient.astype(written[i].dtype)
        return value, jax.tree.unflatten(treedef, written)

    return found


def _check_apart(leaves: Any, chosen: Any) -> None:
    both = map_directed(lambda leaf, one: leaf is not None and one, leaves, chosen)
    for path, found in jax.tree.leaves_with_path(both):
        if found:
            raise ValueError(
                f"hybrid_value_and_grad: {trees.path_string(path)!r} is exact and perturbed; "
                f"accepted: a direction whose `select` leaves it out."
            )
    if not any(jax.tree.leaves(chosen)):
        raise ValueError("hybrid_value_and_grad: exact selects nothing; accepted: a leaf or more.")
