"""For every adapter, the mistakes that its recordings must notice."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim

from .replay import Adapter, open_loop


def _delayed() -> optax.GradientTransformation:
    """Hands on the gradient of the step before, zero at first."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return state, updates

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def _decay_after(rate: float) -> optax.GradientTransformation:
    """Decays what the step arrives at instead of what it starts from."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p: u - rate * (p + u), updates, params)
    )


MUTANTS: dict[str, dict[str, Adapter]] = {
    "lion": {
        "b1 and b2 exchanged": open_loop(
            lambda lr, betas, weight_decay: optim.lion(
                lr, b1=betas[1], b2=betas[0], weight_decay=weight_decay
            )
        ),
        "decay not scaled by the rate": open_loop(
            lambda lr, betas, weight_decay: optax.chain(
                optim.lion(lr, b1=betas[0], b2=betas[1]),
                optax.add_decayed_weights(-weight_decay),
            )
        ),
        "decay after the step": open_loop(
            lambda lr, betas, weight_decay: optax.chain(
                optim.lion(lr, b1=betas[0], b2=betas[1]), _decay_after(lr * weight_decay)
            )
        ),
        "sign of the new momentum": open_loop(
            lambda lr, betas, weight_decay: optax.chain(
                optax.ema(betas[1], debias=False),
                optax.scale_by_sign(),
                optax.add_decayed_weights(weight_decay),
                optax.scale_by_learning_rate(lr),
            )
        ),
        "one gradient late": open_loop(
            lambda lr, betas, weight_decay: optax.chain(
                _delayed(), optim.lion(lr, b1=betas[0], b2=betas[1], weight_decay=weight_decay)
            )
        ),
    },
}
