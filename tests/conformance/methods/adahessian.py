"""AdaHessian, whose recorded inputs are signs z and products H z."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim

from ..mistakes import decay_after, delayed, without_decay
from ..recording import Recording
from ..replay import Adapter, flipped, open_loop, transposed


def _adahessian(
    lr: float = 0.15,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-4,
    weight_decay: float = 0,
    hessian_power: float = 1,
    spatial_average_block_size: Sequence[int] | None = None,
    block_length: int | None = None,
    single_gpu: bool = True,
) -> optax.GradientTransformation:
    """AdaHessian by the arguments of its authors' three programs, which tell them apart.

    Only their instruction has a `spatial_average_block_size`, -1 for rows and windows, and only
    their translation a `block_length`.
    """
    del single_gpu
    averaging: dict[str, Any] = {"averaging": "windows"}
    if spatial_average_block_size is not None:
        sizes = {axes: s for axes, s in enumerate(spatial_average_block_size, 1) if s != -1}
        averaging = {"averaging": "rows", "block_size": sizes}
    elif block_length is not None:
        averaging = {"averaging": "blocks", "block_size": block_length}
    inner = optim.adahessian(
        lr,
        b1=betas[0],
        b2=betas[1],
        eps=eps,
        weight_decay=weight_decay,
        hessian_power=hessian_power,
        **averaging,
    )
    return optim.with_curvature(inner)


def _replay(
    build: Callable[..., Any],
    curvature: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.multiply,
) -> Adapter:
    """An adapter whose estimates are `curvature(z, H z)`, leaves in flax's layout."""

    def curvatures(recording: Recording, dtype: Any) -> dict[str, np.ndarray]:
        z, products = recording.tree("in/z"), recording.tree("in/hv")
        return {
            k: curvature(*(flipped(x[k], 1, p.ndim).astype(dtype) for x in (z, products)))
            for k, p in recording.tree("p0").items()
        }

    return transposed(open_loop(build, curvatures))


ADAPTERS: dict[str, Adapter] = {"adahessian": _replay(_adahessian)}


def _mutant(*before: optax.GradientTransformation, **changes: Any) -> Adapter:
    """Links in front of AdaHessian, and changes of hyper-parameters, functions of them all."""

    def build(**hyper: Any) -> optax.GradientTransformation:
        changed = {name: change(hyper) for name, change in changes.items()}
        return optax.chain(*before, _adahessian(**{**hyper, **changed}))

    return _replay(build)


def _decay_after(**hyper: Any) -> optax.GradientTransformation:
    decay = decay_after(hyper["lr"] * hyper["weight_decay"])
    return optax.chain(_adahessian(**without_decay(hyper)), decay)


def _averaged_otherwise(**averaging: Any) -> Adapter:
    """AdaHessian with this average, whatever the recorded one was."""

    def build(
        lr: float, betas: Any, spatial_average_block_size: Any = None, **hyper: Any
    ) -> optax.GradientTransformation:
        del spatial_average_block_size
        inner = optim.adahessian(lr, b1=betas[0], b2=betas[1], **averaging, **hyper)
        return optim.with_curvature(inner)

    return _replay(build)


def _window_means(z: np.ndarray, product: np.ndarray) -> np.ndarray:
    """The mean over windows before the absolute value."""
    axes = tuple(range(1, product.ndim - 2))
    return np.broadcast_to((z * product).mean(axes, keepdims=True), product.shape)


def _eps_inside(
    lr: float, betas: Any, eps: float, weight_decay: float, hessian_power: float, **averaging: Any
) -> optax.GradientTransformation:
    """eps added before the power is taken."""
    plain = functools.partial(_adahessian, 1.0, betas, 0.0, 0.0, 1.0, **averaging)

    def powered(update: jax.Array, momentum: jax.Array) -> jax.Array:
        divisor = jnp.where(update == 0, 1, -momentum / update)
        return -momentum / (divisor + eps) ** hessian_power

    def update(updates: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        updates, state = plain().update(updates, state, params, **extra)
        moments = state.inner_state[0]
        correction = 1 - betas[0] ** moments.steps
        ours = {k: powered(u, moments.mu[k] / correction) for k, u in updates.items()}
        return {k: lr * (u - weight_decay * params[k]) for k, u in ours.items()}, state

    return optax.GradientTransformationExtraArgs(plain().init, update)


MUTANTS: dict[str, dict[str, Adapter]] = {
    "adahessian": {
        "b1 and b2 exchanged": _mutant(betas=lambda hyper: hyper["betas"][::-1]),
        "one gradient late": _mutant(delayed()),
        "decay after the step": _replay(_decay_after),
        "decay not scaled by the rate": _mutant(
            weight_decay=lambda hyper: hyper["weight_decay"] / hyper["lr"]
        ),
        "no hessian power": _mutant(hessian_power=lambda hyper: 1.0),
        "half the hessian power": _mutant(hessian_power=lambda hyper: hyper["hessian_power"] / 2),
        "eps inside the power": _replay(_eps_inside),
        "windows averaged before their absolute value": _replay(_adahessian, _window_means),
        "nothing averaged": _averaged_otherwise(matrices={".*": None}),
        "rows averaged": _averaged_otherwise(averaging="rows"),
        "without the signs": _replay(_adahessian, lambda z, product: z * z),
    },
}
