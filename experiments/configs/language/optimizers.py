"""A 0.47 M parameter decoder under one of seven optimizers, each at its tuned rate.

Command: python -m experiments run --config=experiments/configs/language/optimizers.py --workdir=DIR
Result: the table of `python -m experiments reproduce decoder_optimizers`, three seeds each.
Minutes: 4 (1 CPU core)

That is AdamW; `optimizers.py:muon` is Muon, and so are lion, mars, scion, soap and kron. Rates are
those that a sweep by factors of 2 found best; other hyper-parameters are the authors' defaults, but
for the weight decay and b2 that "Fantastic Pretraining Optimizers" (arXiv 2509.02046) found best at
130 M.
"""

import copy
import dataclasses

from experiments.config import Config, Optimizer, Schedule, UserError
from experiments.models.decoder import SIZES, Decoder
from experiments.tasks.language import LanguageModel
from optim import BiasRMSNorm, SignNorm, SpectralNorm

SCHEDULE = Schedule("wsd_schedule", {"warmup_steps": 0.1, "decay_steps": 0.5})
KERNELS = "blocks/(attention|feedforward)/.*/kernel"
# The scales of the layers are stacked, but are no matrices; the embedding is none to Muon.
KERNELS_ALONE = {KERNELS: "b m n", "(blocks/.*|norm)/scale": None, "embed/embedding": None}
MATRICES = {**KERNELS_ALONE, "embed/embedding": "m n"}
# Radii of its authors' GPT; the embedding is the head as well, and the scales begin on their ball.
NORMS = {
    KERNELS: SpectralNorm(scale=50.0),
    "embed/embedding": SignNorm(scale=3000.0),
    "(blocks/.*|norm)/scale": BiasRMSNorm(),
}
REST = Optimizer("optax.adamw", 8e-3, SCHEDULE, kwargs={"b1": 0.9, "b2": 0.98, "weight_decay": 0.0})
OPTIMIZERS = {
    "adamw": Optimizer("optax.adamw", 2e-3, kwargs={"b2": 0.98, "weight_decay": 0.1}),
    "lion": Optimizer("lion", 5e-4, kwargs={"b2": 0.95, "weight_decay": 0.7}),
    "mars": Optimizer("mars", 4e-3, kwargs={"matrices": MATRICES, "weight_decay": 0.1}),
    "muon": Optimizer(
        "muon", 8e-3, kwargs={"matrices": KERNELS_ALONE, "auxiliary": REST, "weight_decay": 0.1}
    ),
    "scion": Optimizer("scion", 1e-3, kwargs={"norms": NORMS, "matrices": MATRICES}),
    "soap": Optimizer("soap", 8e-3, kwargs={"matrices": MATRICES, "weight_decay": 0.1}),
    "kron": Optimizer("kron", 1e-3, kwargs={"matrices": MATRICES, "weight_decay": 0.7}),
}


def get_config(name: str = "adamw") -> Config:
    if name not in OPTIMIZERS:
        raise UserError(f"optimizers.py:{name}: accepted: {', '.join(OPTIMIZERS)}.")
    optimizer = copy.deepcopy(OPTIMIZERS[name])
    optimizer = dataclasses.replace(optimizer, schedule=copy.deepcopy(SCHEDULE), clip_norm=1.0)
    if name not in ("muon", "scion"):  # Muon decays its matrices alone, Scion by its own rule
        optimizer.weight_decay_multipliers = ((".*/scale", 0.0),)
    return Config(
        task=LanguageModel(length=128, model=Decoder(**SIZES["0.4m"])),
        steps=1000,
        batch_size=8,
        optimizer=optimizer,
        log_every=50,
        evaluate_every=1000,
        checkpoint_every=1000,
        keep_checkpoints=1,
    )
