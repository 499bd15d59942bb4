"""Every config builds, and makes two steps on a batch cut down to what a test can bear."""

import dataclasses
import math

import jax
import pytest

from experiments.config import Config
from experiments.listing import entries
from experiments.records import Records
from experiments.run import parse
from experiments.train import train

SLOW = ("resnet.py", ":0.4m", ":1m", "3m", "10m", "130m")


def smoke(config: Config) -> Config:
    """The same experiment, two steps of it, on few samples."""
    small = {"steps": 2, "batch_size": 2, "log_every": 1, "evaluate_every": 2}
    config = dataclasses.replace(config, **small)
    if hasattr(config.task, "length"):
        config.task = dataclasses.replace(config.task, length=min(config.task.length, 32))
    if hasattr(config.task, "validation_sequences"):
        config.task = dataclasses.replace(config.task, validation_sequences=4)
    schedule = config.optimizer.schedule
    counts = {k: 0 for k, v in schedule.kwargs.items() if isinstance(v, int)}
    schedule.kwargs.update(counts)
    return config


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(e.config, marks=[pytest.mark.slow] if e.config.endswith(SLOW) else [])
        for e in entries()
    ],
)
def test_every_config_makes_two_steps(name, tmp_path):
    config = smoke(parse([f"--config={name}", f"--workdir={tmp_path}"])[0])
    records = Records(tmp_path, config)
    try:
        outcome = train(config, tmp_path, records)
    finally:
        records.close()
    assert int(outcome.state.step) == 2
    assert all(math.isfinite(value) for value in outcome.metrics.values())
    assert jax.tree.leaves(outcome.state.params)


def test_there_are_configs_of_every_topic():
    topics = {entry.config.split("/")[2] for entry in entries()}
    assert topics == {"language", "classification", "convex", "toy"}
