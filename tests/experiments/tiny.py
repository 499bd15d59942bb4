"""A language model small enough to train in a test, on a few real source files.

Minutes: 0.1 (any CPU)
"""

import dataclasses
import json
import pathlib
from typing import Any

from experiments.config import BatchGrowth, Config, Emphasis, Optimizer, Schedule
from experiments.models.decoder import Decoder
from experiments.tasks.language import LanguageModel

CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "growing": {
        "accumulation": 2,
        "batch_growth": BatchGrowth(max_batch_size=32, kwargs={"eta": 0.6}),
    },
    "weighted": {"emphasis": Emphasis(temperature=0.5, warmup=0.25)},
}


def get_config(kind: str = "plain") -> Config:
    model = Decoder(width=32, layers=2, heads=2, hidden=64)
    text = str(pathlib.Path(json.__file__).parent)
    config = Config(
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
    return dataclasses.replace(config, **CHANGES[kind])
