"""A run whose learning rates a controller decides: probes, a copy to return to, stages."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import optim

Run = Callable[[Any, float, int], tuple[Any, np.ndarray]]


class Stretch(NamedTuple):
    """A decision, and the losses of its steps."""

    decision: optim.AutoLRSDecision
    losses: np.ndarray


def controlled(
    controller: optim.AutoLRS, key: jax.Array, training: Any, run: Run
) -> tuple[Any, list[Stretch]]:
    """The training at the end, and all that led to it, probes too.

    Args:
      controller: from `optim.autolrs`.
      key: from which it draws.
      training: parameters, optimizer state, a counter: all that is to be taken back after a probe.
      run: (training, rate, steps) -> (training after them, their losses). What it is handed may be
        handed to it again, so that it must not donate it. With the data of a step a function of
        a counter in the training, all probes of a stage see the same batches, which training sees
        after them.
    """
    state, losses, saved = controller.init(key), np.zeros(0), training
    stretches: list[Stretch] = []
    while True:
        state, decision = controller.update(state, losses)
        if not decision.steps:
            return training, stretches
        if decision.save:
            saved = training
        if decision.restore:
            training = saved
        training, losses = run(training, decision.rate, decision.steps)
        stretches.append(Stretch(decision, losses))
