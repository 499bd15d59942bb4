"""A small convolutional ResNet on scikit-learn's digits: Nesterov momentum with cosine decay.

Command:
    python -m experiments run --config=experiments/configs/classification/resnet.py --workdir=DIR
    --config.task.data=FOLDER reads MNIST or Fashion-MNIST idx files instead.
Result: validation loss 0.057 to 0.072 over seeds 0, 1, 2.
Minutes: 0.3 (2 CPU cores)
"""

from experiments.config import Config, Optimizer, Schedule
from experiments.models.resnet import ResNet
from experiments.tasks.classification import Classification


def get_config() -> Config:
    return Config(
        task=Classification(model=ResNet()),
        steps=400,
        batch_size=64,
        optimizer=Optimizer(
            "optax.sgd",
            0.05,
            Schedule("optax.cosine_decay_schedule"),
            {"momentum": 0.9, "nesterov": True},
            clip_norm=1.0,
        ),
        evaluate_every=100,
        checkpoint_every=200,
    )
