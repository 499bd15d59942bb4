"""Decoders from 0.4 M parameters to 130 M, AdamW with WSD, on the standard library or any text.

Command: python -m experiments run --config=experiments/configs/language/decoder.py:3m --workdir=DIR
    --config.task.text=FOLDER trains on your own text. The standard library's source has about
    10 MB: enough for the sizes up to 10m, 20 steps' reading for 130m.
130m is the smallest model of Wen et al. 2025, "Fantastic Pretraining Optimizers and Where to Find
Them", with their AdamW settings at one Chinchilla unit (2.6 G tokens, here bytes, in sequences of
1024 rather than 4096, whose attention scores would not fit).
Result: not measured.

Minutes, 0.4m: 5 (2 CPU cores, estimated)
Minutes, 1m: 10 (2 CPU cores, estimated)
Minutes, 3m: 55 (2 CPU cores, estimated)
Minutes, 10m: 700 (2 CPU cores, estimated)
Minutes, 130m: 90 (one H100 at 40 % of its peak, computed and not measured)
"""

from typing import NamedTuple

from experiments.config import Config, Optimizer, Schedule, UserError
from experiments.models.decoder import SIZES, Decoder
from experiments.tasks.language import LanguageModel


class Run(NamedTuple):
    steps: int
    batch_size: int  # sequences
    length: int  # bytes a sequence
    learning_rate: float
    warmup_steps: int
    large: bool = False  # bfloat16 products and recomputed activations


RUNS = {
    "0.4m": Run(2000, 16, 128, 6e-3, 100),
    "1m": Run(2500, 16, 128, 4e-3, 100),
    "3m": Run(3000, 16, 256, 3e-3, 150),
    "10m": Run(5000, 32, 256, 2e-3, 250),
    "130m": Run(5000, 512, 1024, 8e-3, 2000, large=True),
}


def get_config(size: str = "1m") -> Config:
    if size not in RUNS:
        raise UserError(f"decoder.py:{size} is no size; accepted: {', '.join(RUNS)}.")
    run = RUNS[size]
    dtype = "bfloat16" if run.large else "float32"
    return Config(
        task=LanguageModel(
            length=run.length, model=Decoder(**SIZES[size], compute_dtype=dtype, remat=run.large)
        ),
        steps=run.steps,
        batch_size=run.batch_size,
        optimizer=Optimizer(
            name="optax.adamw",
            learning_rate=run.learning_rate,
            schedule=Schedule(
                "wsd_schedule", {"warmup_steps": run.warmup_steps, "decay_steps": 0.2}
            ),
            kwargs={"b2": 0.98, "weight_decay": 0.1},
            clip_norm=1.0,
            weight_decay_multipliers=((".*/scale", 0.0),),
        ),
        evaluate_every=250,
        checkpoint_every=250,
    )
