"""A controlled run returns to its copy, and its losses reach the controller."""

import jax
import numpy as np

import optim
from experiments.controlled import controlled


def test_probes_are_taken_back_and_stages_stay():
    """x^2 / 2 by descent, beside a counter: both are as if no probe had been made."""
    seen = []

    def run(training, rate, steps):
        x, step = training
        losses = []
        for _ in range(steps):
            losses.append(x**2 / 2)
            x, step = (1 - rate) * x, step + 1
        seen.append((training, rate, steps))
        return (x, step), np.array(losses)

    controller = optim.autolrs(1e-3, 0.2, total_steps=100, stage_steps=40, probes=4)
    (x, step), stretches = controlled(controller, jax.random.key(0), (1.0, 0), run)
    stages = [s.decision for s in stretches if not s.decision.probe]
    assert [s.steps for s in stages] == [40, 60]
    assert step == 100
    np.testing.assert_allclose(x, np.prod([(1 - s.rate) ** s.steps for s in stages]))
    assert [training[1] for training, _, _ in seen] == [0] * 5 + [40] * 5  # also the training's
    assert [s.decision.rate for s in stretches] == [rate for _, rate, _ in seen]
    assert all(s.losses[0] == start[0] ** 2 / 2 for s, (start, _, _) in zip(stretches, seen))
    best = [s.decision.rate for s in stretches[:4]]
    assert stages[0].rate in best
