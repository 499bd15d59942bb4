"""The parameters to evaluate, save and export: those that are trained, or those a method serves.

A method that trains other parameters than it serves (an average, the iterate of a schedule-free
method) has a state with a method `evaluation_params(params)`. It may stand anywhere in a state: in
a chain, behind a mask or a group, inside a wrapper.

*Cost.* That of the method's own function; nothing where there is none.
"""

from typing import Any

import jax
import optax


def evaluation_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    """The parameters that the one serving method in `state` serves, or else `params`.

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

    def serves(node: Any) -> bool:
        return hasattr(node, "evaluation_params") or isinstance(
            node, optax.contrib.ScheduleFreeState
        )

    serving = [node for node in jax.tree.leaves(state, is_leaf=serves) if serves(node)]
    if not serving:
        return params
    if len(serving) > 1:
        names = " and ".join(type(node).__name__ for node in serving)
        raise ValueError(
            f"evaluation_params: {len(serving)} methods in state serve parameters ({names}); "
            f"one can be evaluated."
        )
    node = serving[0]
    if isinstance(node, optax.contrib.ScheduleFreeState):
        served = optax.contrib.schedule_free_eval_params(node, params)
    else:
        served = node.evaluation_params(params)
    return jax.tree.map(
        lambda s, p: p if isinstance(s, optax.MaskedNode) else s.astype(p.dtype),
        served,
        params,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
