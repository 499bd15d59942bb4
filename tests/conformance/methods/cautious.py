"""C-AdamW and C-Lion."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

import optim

from ..replay import Adapter, open_loop


def _cautious_adamw(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    correct_bias: bool = True,
    no_deprecation_warning: bool = False,
    foreach: bool = True,
    fused: bool = False,
) -> optax.GradientTransformation:
    """C-AdamW: eps joins the corrected root; with foreach=False, the root before its correction."""
    del no_deprecation_warning, fused
    adam = partial(optax.scale_by_adam, b1=betas[0], b2=betas[1])
    after = (
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(lr),
    )
    if foreach:  # which does not look at correct_bias
        return optax.chain(optim.cautious(adam(eps=eps)), *after)

    def weights(count: jax.Array) -> tuple[jax.Array, jax.Array]:
        steps = jnp.asarray(count + 1, jnp.float64)
        return 1 - betas[0] ** steps, jnp.sqrt(1 - betas[1] ** steps)

    scheduled = optax.inject_hyperparams(optax.scale_by_adam)
    inner = scheduled(b1=betas[0], b2=betas[1], eps=lambda t: eps / weights(t)[1])
    uncorrected = optax.scale_by_schedule(lambda t: weights(t)[0] / weights(t)[1])
    return optax.chain(
        optim.cautious(inner), optax.identity() if correct_bias else uncorrected, *after
    )


def _cautious_lion(
    lr: float = 1e-4, betas: tuple[float, float] = (0.95, 0.98), weight_decay: float = 0.0
) -> optax.GradientTransformation:
    return optax.chain(
        optim.cautious(optim.scale_by_lion(b1=betas[0], b2=betas[1]), rescale="count"),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(lr),
    )


ADAPTERS: dict[str, Adapter] = {
    "cautious_adamw": open_loop(_cautious_adamw),
    "cautious_lion": open_loop(_cautious_lion),
}

MUTANTS: dict[str, dict[str, Adapter]] = {}
