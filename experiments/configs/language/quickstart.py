"""A 1.2 M parameter decoder on the Python standard library's own source text: AdamW with WSD.

Command: python -m experiments run --config=experiments/configs/language/quickstart.py --workdir=DIR
Result: 2.00 bits per byte on the sources of Python 3.11.7 (one seed); the bigram baseline has 3.53.
Minutes: 5 (2 CPU cores)
"""

from experiments.config import Config, Optimizer, Schedule
from experiments.models.decoder import SIZES, Decoder
from experiments.tasks.language import LanguageModel


def get_config() -> Config:
    return Config(
        task=LanguageModel(length=128, model=Decoder(**SIZES["1m"])),
        steps=2000,
        batch_size=8,
        optimizer=Optimizer(
            name="optax.adamw",
            learning_rate=3e-3,
            schedule=Schedule("wsd_schedule", {"warmup_steps": 100, "decay_steps": 0.3}),
            kwargs={"b2": 0.99, "weight_decay": 0.1},
            clip_norm=1.0,
            weight_decay_multipliers=((".*/scale", 0.0),),
        ),
        log_every=20,
        evaluate_every=500,
        checkpoint_every=500,
    )
