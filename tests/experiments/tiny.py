"""A language model small enough to train in a test, on a few real source files.

Minutes: 0.1 (any CPU)
"""

import json
import pathlib

from experiments.config import Config, Optimizer, Schedule
from experiments.models.decoder import Decoder
from experiments.tasks.language import LanguageModel


def get_config() -> Config:
    model = Decoder(width=32, layers=2, heads=2, hidden=64)
    text = str(pathlib.Path(json.__file__).parent)
    return Config(
        task=LanguageModel(text=text, length=32, model=model),
        steps=24,
        batch_size=8,
        optimizer=Optimizer(
            "optax.adamw",
            3e-3,
            Schedule("wsd_schedule", {"warmup_steps": 4, "decay_steps": 8}),
            clip_norm=1.0,
        ),
        log_every=1,
        evaluate_every=8,
        checkpoint_every=4,
    )
