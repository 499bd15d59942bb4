"""AdEMAMix."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

import optim

from ..mistakes import decay_after, delayed
from ..replay import Adapter, open_loop


def ademamix(
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    alpha: float = 2.0,
    beta3_warmup: float | None = None,
    alpha_warmup: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Ours, from the official arguments."""
    b1, b2, b3 = betas
    slow, weight = b3, alpha
    if beta3_warmup is not None:
        slow = optim.ademamix_b3_schedule(b3, b1=b1, warmup_steps=beta3_warmup)
    if alpha_warmup is not None:
        weight = optim.ademamix_alpha_schedule(alpha, warmup_steps=alpha_warmup)
    return optim.ademamix(
        lr, b1=b1, b2=b2, b3=slow, alpha=weight, eps=eps, weight_decay=weight_decay
    )


def _ademamix(warm_ups: Callable[..., tuple[Any, Any]]) -> Adapter:
    """AdEMAMix with other warm-ups than ours of b3 and alpha."""

    def build(**hyper: Any) -> optax.GradientTransformation:
        b1, b2, b3 = hyper["betas"]
        slow = optim.ademamix_b3_schedule(b3, b1=b1, warmup_steps=hyper["beta3_warmup"] or 0)
        weight = optim.ademamix_alpha_schedule(
            hyper["alpha"], warmup_steps=hyper["alpha_warmup"] or 0
        )
        slow, weight = warm_ups(slow, weight, hyper)
        return optim.ademamix(
            hyper["lr"],
            b1=b1,
            b2=b2,
            b3=slow,
            alpha=weight,
            eps=hyper["eps"],
            weight_decay=hyper["weight_decay"],
        )

    return open_loop(build)


def _ademamix_eps_corrected(**hyper: Any) -> optax.GradientTransformation:
    """(sqrt(v) + eps) / sqrt(1 - b2^t) for the denominator."""

    def at(count: Any) -> optax.GradientTransformation:
        eps = hyper["eps"] / jnp.sqrt(1 - hyper["betas"][1] ** (count + 1.0))
        return ademamix(**{**hyper, "eps": eps})

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count, inner = state
        updates, inner = at(count).update(updates, inner, params)
        return updates, (count + 1, inner)

    return optax.GradientTransformation(lambda p: (jnp.int32(0), at(0).init(p)), update)


ADAPTERS: dict[str, Adapter] = {
    "ademamix": open_loop(ademamix),
}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "ademamix": {
        "b3 rises linearly": _ademamix(
            lambda slow, weight, hyper: (
                optax.linear_schedule(*hyper["betas"][::2], hyper["beta3_warmup"] - 1)
                if hyper["beta3_warmup"]
                else slow,
                weight,
            )
        ),
        "warm-ups count steps from 0": _ademamix(
            lambda slow, weight, hyper: (lambda n: slow(n - 1), lambda n: weight(n - 1))
        ),
        "slow momentum corrected for its start": _ademamix(
            lambda slow, weight, hyper: (slow, lambda n: weight(n) / (1 - slow(n) ** (n + 1.0)))
        ),
        "eps before the bias correction": open_loop(_ademamix_eps_corrected),
        "decay in the gradient": open_loop(
            lambda weight_decay, **hyper: optax.chain(
                optax.add_decayed_weights(weight_decay), ademamix(**hyper)
            )
        ),
        "decay after the step": open_loop(
            lambda lr, weight_decay, **hyper: optax.chain(
                ademamix(lr=lr, **hyper), decay_after(lr * weight_decay)
            )
        ),
        "one gradient late": open_loop(lambda **hyper: optax.chain(delayed(), ademamix(**hyper))),
    },
}
