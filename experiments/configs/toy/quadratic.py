"""A quadratic of condition 1000 with gradient noise: Lion with WSD.

Command: python -m experiments run --config=experiments/configs/toy/quadratic.py --workdir=DIR
Result: objective 0.0060 to 0.0070 over seeds 0, 1, 2; it starts at 7.4.
Minutes: 0.1 (2 CPU cores)
"""

from experiments.config import Config, Optimizer, Schedule
from experiments.tasks.quadratic import Quadratic


def get_config() -> Config:
    return Config(
        task=Quadratic(),
        steps=2000,
        batch_size=8,
        optimizer=Optimizer("lion", 3e-3, Schedule("wsd_schedule", {"decay_steps": 0.5})),
        log_every=50,
        evaluate_every=500,
        checkpoint_every=500,
    )
