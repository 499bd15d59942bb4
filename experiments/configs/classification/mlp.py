"""A two-layer perceptron on scikit-learn's digits: AdamW with linear decay.

Command:
    python -m experiments run --config=experiments/configs/classification/mlp.py --workdir=DIR
    --config.task.data=FOLDER reads MNIST or Fashion-MNIST idx files instead.
Result: validation loss 0.072 to 0.095 over seeds 0, 1, 2.
Minutes: 0.2 (2 CPU cores)
"""

from experiments.config import Config, Optimizer, Schedule
from experiments.models.mlp import Mlp
from experiments.tasks.classification import Classification


def get_config() -> Config:
    return Config(
        task=Classification(model=Mlp()),
        steps=1000,
        batch_size=64,
        optimizer=Optimizer(
            "optax.adamw",
            2e-3,
            Schedule("linear_decay_schedule", {"warmup_steps": 50}),
            {"weight_decay": 0.01},
        ),
        log_every=20,
        evaluate_every=200,
        checkpoint_every=500,
    )
