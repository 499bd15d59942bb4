"""C-AdamW and C-Lion."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim

from ..mistakes import decay_after
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


def _mistaken(mistake: str) -> Adapter:
    """C-AdamW with eps after the correction, and one thing wrong."""

    def build(
        lr: float, betas: Any, eps: float, weight_decay: float, foreach: bool
    ) -> optax.GradientTransformation:
        del foreach
        adam = optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=eps)
        decay, rate = optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(lr)
        links: dict[str, tuple[optax.GradientTransformation, ...]] = {
            "no mask": (adam, decay, rate),
            "rescaled as the paper has it": (optim.cautious(adam, rescale="count"), decay, rate),
            "decay masked, too": (optim.cautious(optax.chain(adam, decay)), rate),
            "mask of the update before the gradient": (_masked_late(adam), decay, rate),
            "decay after the step": (optim.cautious(adam), rate, decay_after(lr * weight_decay)),
        }
        return optax.chain(*links[mistake])

    return open_loop(build)


def _masked_late(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Compares the gradient with the update of the step before, which is zero at first."""

    def init(params: Any) -> Any:
        return inner.init(params), jax.tree.map(jnp.zeros_like, params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        u, after = inner.update(updates, state[0], params)
        mask = jax.tree.map(lambda g, old: (g * old >= 0).astype(g.dtype), updates, state[1])
        masked = jax.tree.map(lambda u, m: u * m / jnp.maximum(jnp.mean(m), 1e-3), u, mask)
        return masked, (after, u)

    return optax.GradientTransformation(init, update)


def _lion_with_decay_masked(
    lr: float, betas: Any, weight_decay: float
) -> optax.GradientTransformation:
    lion = optim.scale_by_lion(b1=betas[0], b2=betas[1])
    inner = optax.chain(lion, optax.add_decayed_weights(weight_decay))
    return optax.chain(optim.cautious(inner, rescale="count"), optax.scale_by_learning_rate(lr))


MUTANTS: dict[str, dict[str, Adapter]] = {
    "cautious_adamw": {
        "eps on the other side of the correction": open_loop(
            lambda foreach, **same: _cautious_adamw(foreach=not foreach, **same)
        ),
        **{
            mistake: _mistaken(mistake)
            for mistake in (
                "no mask",
                "rescaled as the paper has it",
                "decay masked, too",
                "mask of the update before the gradient",
                "decay after the step",
            )
        },
    },
    "cautious_lion": {
        "rescaled by the mean": open_loop(
            lambda lr, betas, weight_decay: optax.chain(
                optim.cautious(optim.scale_by_lion(b1=betas[0], b2=betas[1])),
                optax.add_decayed_weights(weight_decay),
                optax.scale_by_learning_rate(lr),
            )
        ),
        "decay masked, too": open_loop(_lion_with_decay_masked),
        "b1 and b2 exchanged": open_loop(
            lambda betas, **same: _cautious_lion(betas=betas[::-1], **same)
        ),
        "no mask": open_loop(
            lambda lr, betas, weight_decay: optim.lion(
                lr, b1=betas[0], b2=betas[1], weight_decay=weight_decay
            )
        ),
    },
}
