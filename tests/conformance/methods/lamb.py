"""LAMB."""

import optim

from ..replay import Adapter, step_by_step

ADAPTERS: dict[str, Adapter] = {
    "lamb": step_by_step(
        lambda lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, max_grad_norm=1.0: (
            optim.lamb(
                lr,
                b1=betas[0],
                b2=betas[1],
                eps=eps,
                weight_decay=weight_decay,
                max_grad_norm=max_grad_norm,
            )
        )
    ),
}

MUTANTS: dict[str, dict[str, Adapter]] = {}
