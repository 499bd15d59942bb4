"""LARS."""

import optim

from ..replay import Adapter, open_loop

ADAPTERS: dict[str, Adapter] = {
    "lars": open_loop(
        lambda lr=0.0, weight_decay=0.0, momentum=0.9, trust_coefficient=0.001: optim.lars(
            lr,
            momentum=momentum,
            trust_coefficient=trust_coefficient,
            weight_decay=weight_decay,
        )
    ),
}

MUTANTS: dict[str, dict[str, Adapter]] = {}
