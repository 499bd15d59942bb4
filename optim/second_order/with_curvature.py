"""A curvature estimate every so many steps, for the transformation inside.

At steps t = start, start + every, start + 2 every, ... (from 0)::

    curvature = curvature_fn(p_t, key)

is handed on before the step is made; at all others `curvature` is None, by which a transformation
keeps the estimate that it has. The two kinds of steps, where there are two, are the branches of one
`lax.cond`: the second neither computes an estimate nor writes anything for one. Under `vmap` over
something that the number of steps depends on, both are computed.

An estimate that is not finite is for the transformation inside to leave out; ours do.

*Differences.* The authors of Sophia refresh after step k - 1 of every k, on the batch that comes
next: that is `every=k, start=k` here, on this step's batch. Their paper begins at the first step:
`start=0`.

*Cost.* 4 bytes, and the estimate when it is due.

*Reference.* Liu et al., Sophia: A Scalable Stochastic Second-order Optimizer for Language Model
Pre-training, 2023 (arXiv:2305.14342); Liuhong99/Sophia@a7e157229b71, train_sophiag.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim import trees


class WithCurvatureState(NamedTuple):
    """State of `with_curvature`."""

    steps: jax.Array  # (), int32, steps done
    inner_state: optax.OptState


def with_curvature(
    inner: optax.GradientTransformation, *, every: int = 1, start: int = 0
) -> optax.GradientTransformationExtraArgs:
    """`inner`, given `curvature`; put this outermost, where all parameters are seen.

    `update` takes `curvature_fn`, a function (params, key) -> tree like params such as
    `optim.hutchinson` makes for this step's batch, and `key`, of this step. What lies between,
    `optax.partition` or `optax.masked`, needs `mask_compatible_extra_args=True`.

    Args:
      inner: a transformation that takes `curvature`.
      every: steps from one estimate to the next, at least 1.
      start: the first step with one, from 0.

    Raises:
      ValueError: every is less than 1, start is negative, `update` is called without curvature_fn,
        key or params, or the estimate is not like the parameters.

    >>> import jax, jax.numpy as jnp, optim
    >>> tx = optim.with_curvature(optim.sophia(0.1), every=10)
    >>> loss_fn = lambda params: jnp.sum(params**2)
    >>> params, key = jnp.ones(2), jax.random.key(0)
    >>> updates, state = tx.update(
    ...     jax.grad(loss_fn)(params),
    ...     tx.init(params),
    ...     params,
    ...     curvature_fn=optim.hutchinson(loss_fn),
    ...     key=key,
    ... )
    """
    trees.check_at_least("with_curvature", 1, every=every)
    trees.check_at_least("with_curvature", 0, start=start)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> WithCurvatureState:
        return WithCurvatureState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        updates: optax.Updates,
        state: WithCurvatureState,
        params: optax.Params | None = None,
        *,
        curvature_fn: Callable[[optax.Params, jax.Array], Any] | None = None,
        key: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WithCurvatureState]:
        given = {"curvature_fn": curvature_fn, "key": key, "params": params}
        for name, value in given.items():
            if value is None:
                raise ValueError(
                    f"with_curvature: {name} is missing; pass tx.update(gradient, state, params, "
                    f"curvature_fn=optim.hutchinson(lambda params: loss(params, batch)), key=key)."
                )
        assert curvature_fn is not None and key is not None  # for mypy

        def step(curvature: Any) -> tuple[optax.Updates, optax.OptState]:
            return inner.update(
                updates, state.inner_state, params, curvature=curvature, key=key, **extra_args
            )

        def with_estimate() -> tuple[optax.Updates, optax.OptState]:
            curvature = curvature_fn(params, key)
            _check_like(params, curvature)
            return step(curvature)

        if every == 1 and start == 0:
            updates, inner_state = with_estimate()
        else:
            due = (state.steps >= start) & ((state.steps - start) % every == 0)
            updates, inner_state = jax.lax.cond(due, with_estimate, lambda: step(None))
        return updates, WithCurvatureState(optax.safe_increment(state.steps), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_like(params: optax.Params, curvature: Any) -> None:
    wanted, given = jax.tree.structure(params), jax.tree.structure(curvature)
    if str(wanted) != str(given):
        raise ValueError(
            f"with_curvature: curvature_fn returns {given}; accepted: a tree like the parameters, "
            f"{wanted}."
        )
    for (path, p), c in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(curvature), strict=True
    ):
        if jnp.shape(p) != jnp.shape(c):
            raise ValueError(
                f"with_curvature: curvature_fn returns {jnp.shape(c)} for "
                f"{trees.path_string(path)!r}; accepted: the parameter's shape, {jnp.shape(p)}."
            )
