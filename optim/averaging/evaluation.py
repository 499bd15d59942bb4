"""The parameters to evaluate, save and export: those that are trained, or those a method serves.

A method that trains other parameters than it serves (an average, the iterate of a schedule-free
method) has a state with a method `evaluation_params(params)`, which gets all parameters and returns
a tree like them, without the leaves that the method does not hold. The state may stand anywhere: in
a chain, behind a mask or a group, inside a wrapper. `optax.contrib.schedule_free` is served too.

*Cost.* That of the method's own function; nothing where there is none.
"""

from collections.abc import Iterator
from typing import Any

import jax
import optax

from optim.trees import path_string


def evaluation_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    """What the one serving method in `state` serves, or `params` where there is none.

    Args:
      state: the state of any transformation.
      params: the parameters that are trained; the result has their structure and dtypes. Leaves
        that the method does not hold (masked, or of another group) are taken from here.

    Raises:
      ValueError: two methods in `state` serve parameters.

    >>> import jax.numpy as jnp, optax, optim
    >>> params = jnp.array([1.0])
    >>> optim.evaluation_params(optax.adam(1e-3).init(params), params).tolist()
    [1.0]
    """
    serving = list(_serving(state, ()))
    if not serving:
        return params
    if len(serving) > 1:
        names = " and ".join(f"{type(node).__name__} at {path!r}" for path, node in serving)
        raise ValueError(
            f"evaluation_params: state has {len(serving)} methods that serve parameters, {names}; "
            f"accepted: one."
        )
    [(_, node)] = serving
    if isinstance(node, optax.contrib.ScheduleFreeState):
        held = jax.tree.map(lambda z, p: z if _masked(z) else p, node.z, params, is_leaf=_masked)
        served = optax.contrib.schedule_free_eval_params(node, held)
    else:
        served = node.evaluation_params(params)
    return jax.tree.map(
        lambda s, p: p if _masked(s) else s.astype(p.dtype), served, params, is_leaf=_masked
    )


def _masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _serves(node: Any) -> bool:
    return hasattr(node, "evaluation_params") or isinstance(node, optax.contrib.ScheduleFreeState)


def _serving(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """The serving states at and below a node, with their paths."""
    if _serves(node):
        yield path_string(path), node
    below = jax.tree.leaves_with_path(node, is_leaf=lambda x: x is not node and _serves(x))
    for step, child in below:
        if child is not node and _serves(child):
            yield from _serving(child, (*path, *step))
