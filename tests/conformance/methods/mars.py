"""MARS in its three forms, approximate and exact."""

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim

from ..mistakes import decay_after, delayed
from ..recording import Recording
from ..replay import Adapter, Pair, flipped, open_loop, transposed


def mars(
    lr: float = 3e-3,
    betas: Sequence[float] = (0.95, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    gamma: float = 0.025,
    is_approx: bool = True,
    mars_type: str = "mars-adamw",
    optimize_1d: bool = False,
    lr_1d: float = 3e-3,
    betas_1d: Sequence[float] = (0.9, 0.95),
    weight_decay_1d: float = 0.1,
) -> optax.GradientTransformationExtraArgs:
    """MARS by its authors' names."""
    return optim.mars(
        lr,
        b1=betas[0],
        b2=betas[1],
        eps=eps,
        gamma=gamma,
        form=mars_type.removeprefix("mars-"),
        amsgrad=amsgrad,
        approximate=is_approx,
        weight_decay=weight_decay,
        optimize_1d=optimize_1d,
        lr_1d_factor=lr_1d / lr,
        b1_1d=betas_1d[0],
        b2_1d=betas_1d[1],
        weight_decay_1d=weight_decay_1d,
        dtype=None,  # the recordings are of the rule, without rounding to bfloat16
    )


def replay_mars(
    build: Callable[..., optax.GradientTransformation], recording: Recording, dtype: Any
) -> Mapping[str, Pair]:
    """`build`, a constructor by MARS's official names, with the recorded `in/last_g`, if any."""
    ranks = {leaf: value.ndim for leaf, value in recording.tree("p0").items()}
    recorded = {
        leaf: flipped(value, 1, ranks[leaf])
        for leaf, value in recording.tree("in/last_g", dtype).items()
    }

    @functools.wraps(build)
    def injected(*args: Any, **hyper: Any) -> optax.GradientTransformation:
        return with_recorded(build(*args, **hyper), previous_gradient=recorded or None)

    return transposed(open_loop(injected))(recording, dtype)


def with_recorded(inner: optax.GradientTransformation, **extras: Any) -> Any:
    """`inner` with extra arguments of update, each the slice of this step of what is given."""
    inner = optax.with_extra_args_support(inner)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        count, inner_state = state
        now = jax.tree.map(lambda x: jnp.asarray(x)[count], extras)
        updates, inner_state = inner.update(updates, inner_state, params, **now, **extra_args)
        return updates, (count + 1, inner_state)

    return optax.GradientTransformationExtraArgs(
        lambda params: (jnp.int32(0), inner.init(params)), update
    )


def _mars(mistake: Callable[..., dict[str, Any]]) -> Adapter:
    """MARS with some of its official hyper-parameters replaced."""
    return partial(replay_mars, lambda **hyper: mars(**{**hyper, **mistake(**hyper)}))


def _mars_decays_after(
    lr: float, weight_decay: float = 0.0, **hyper: Any
) -> optax.GradientTransformation:
    matrices = optax.masked(
        decay_after(lr * weight_decay), lambda tree: jax.tree.map(lambda p: p.ndim == 2, tree)
    )
    return optax.chain(mars(lr, **hyper), matrices)


def _mars_without_h(is_approx: bool = True, **hyper: Any) -> optax.GradientTransformationExtraArgs:
    del is_approx
    inner = mars(is_approx=False, **hyper)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, updates)
        return inner.update(updates, state, params, **{**extra_args, "previous_gradient": zeros})

    return optax.GradientTransformationExtraArgs(inner.init, update)


ADAPTERS: dict[str, Adapter] = {
    "mars": partial(replay_mars, mars),
}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "mars": {
        "b1 and b2 exchanged": _mars(lambda betas, **_: {"betas": betas[::-1]}),
        "correction not scaled by b1 / (1 - b1)": _mars(
            lambda betas, gamma, **_: {"gamma": gamma * (1 - betas[0]) / betas[0]}
        ),
        "no previous gradient": partial(replay_mars, _mars_without_h),
        "gradient clipped, not the corrected one": partial(
            replay_mars,
            lambda **hyper: optax.chain(
                optax.stateless(lambda g, _: jax.tree.map(optax.projections.projection_l2_ball, g)),
                mars(**hyper),
            ),
        ),
        "vectors through MARS": _mars(lambda **_: {"optimize_1d": True}),
        "vectors at the rate of matrices": _mars(lambda lr, **_: {"lr_1d": lr}),
        "vectors with the decay of matrices": _mars(
            lambda weight_decay, **_: {"weight_decay_1d": weight_decay}
        ),
        "amsgrad left out": _mars(lambda **_: {"amsgrad": False}),
        "decay after the step": partial(replay_mars, _mars_decays_after),
        "one gradient late": partial(
            replay_mars, lambda **hyper: optax.chain(delayed(), mars(**hyper))
        ),
    },
}
