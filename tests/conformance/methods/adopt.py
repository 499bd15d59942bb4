"""ADOPT."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

import optim
from optim import trees

from ..mistakes import decay_after, delayed
from ..replay import Adapter, AdapterError, open_loop


def power_of_step(clip: str | None) -> Callable[[Any], Any]:
    """The clip that a recording of ADOPT names: `step**0.25`, or None."""
    if clip is None:
        return lambda step: math.inf
    found = re.fullmatch(r"step\s*\*\*\s*([0-9.]+)", clip)
    if found is None:
        raise AdapterError(f"the adapter of adopt knows clips like step**0.25, not {clip!r}.")
    power = float(found[1])
    return lambda step: step**power


def adopt(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.9999),
    eps: float = 1e-6,
    clip: str | None = "step**0.25",
    weight_decay: float = 0.0,
    decouple: bool = False,
) -> optax.GradientTransformation:
    """Ours, from the official arguments and the recording's text for `clip_lambda`."""
    return optim.adopt(
        lr,
        b1=betas[0],
        b2=betas[1],
        eps=eps,
        clip_value_fn=power_of_step(clip),
        weight_decay=weight_decay,
        decouple=decouple,
    )


def _adopt(denominator: Callable[..., Any]) -> Adapter:
    """ADOPT with denominator(v, new v, eps) in place of max(sqrt(v), eps)."""

    def build(
        lr: Any, betas: Any, eps: Any, clip: Any, weight_decay: Any, decouple: bool
    ) -> optax.GradientTransformation:
        def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
            count, m, v = state

            def leaf(g: Any, m: Any, v: Any, p: Any) -> tuple[Any, ...]:
                g += 0.0 if decouple else weight_decay * p
                new_v = betas[1] * v + (1 - betas[1]) * g**2
                bound = power_of_step(clip)(count + 0.0)
                u = jnp.clip(g / denominator(v, new_v, eps), -bound, bound)
                new_m = betas[0] * m + (1 - betas[0]) * u
                step = -lr * (new_m + (weight_decay * p if decouple else 0.0))
                return tuple(
                    jnp.where(count == 0, *pair) for pair in ((0, step), (m, new_m), (g**2, new_v))
                )

            updates, (m, v) = trees.map_leaves(leaf, updates, (m, v), params)
            return updates, (count + 1, m, v)

        def init(params: Any) -> Any:
            return jnp.int32(0), trees.zeros_like(params), trees.zeros_like(params)

        return optax.GradientTransformation(init, update)

    return open_loop(build)


ADAPTERS: dict[str, Adapter] = {
    "adopt": open_loop(adopt),
}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "adopt": {
        "denominator sees the gradient": _adopt(lambda v, new, eps: jnp.maximum(new**0.5, eps)),
        "eps added to the root": _adopt(lambda v, new, eps: v**0.5 + eps),
        "eps inside the root": _adopt(lambda v, new, eps: (v + eps**2) ** 0.5),
        "clip counts the gradient itself": open_loop(
            lambda lr, betas, eps, clip, weight_decay, decouple: optim.adopt(
                lr,
                b1=betas[0],
                b2=betas[1],
                eps=eps,
                clip_value_fn=lambda step: power_of_step(clip)(step + 1),
                weight_decay=weight_decay,
                decouple=decouple,
            )
        ),
        "coupled for decoupled decay": open_loop(
            lambda decouple, **hyper: adopt(decouple=not decouple, **hyper)
        ),
        "decoupled decay at the first call": open_loop(
            lambda lr, weight_decay, **hyper: optax.chain(
                adopt(lr, **hyper), optax.add_decayed_weights(-lr * weight_decay)
            )
        ),
        "decay after the step": open_loop(
            lambda lr, weight_decay, **hyper: optax.chain(
                adopt(lr=lr, **hyper), decay_after(lr * weight_decay)
            )
        ),
        "no clip": open_loop(lambda clip, **hyper: adopt(clip=None, **hyper)),
        "one gradient late": open_loop(lambda **hyper: optax.chain(delayed(), adopt(**hyper))),
    },
}
