"""Lion."""

import optax

import optim

from ..mistakes import decay_after, delayed
from ..replay import Adapter, open_loop

ADAPTERS: dict[str, Adapter] = {
    "lion": open_loop(
        lambda lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0: optim.lion(
            lr, b1=betas[0], b2=betas[1], weight_decay=weight_decay
        )
    ),
}

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
                optim.lion(lr, b1=betas[0], b2=betas[1]), decay_after(lr * weight_decay)
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
                delayed(), optim.lion(lr, b1=betas[0], b2=betas[1], weight_decay=weight_decay)
            )
        ),
    },
}
