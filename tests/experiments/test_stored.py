"""Tests of experiments/stored.py: every config comes back from the JSON that a run writes."""

import dataclasses
import json

import pytest

from experiments.config import Config, Optimizer, Schedule, UserError, as_json
from experiments.listing import entries
from experiments.run import parse
from experiments.stored import from_json, read_config
from experiments.tasks.bigram import BigramChain


def again(config):
    return from_json(json.loads(json.dumps(as_json(config))))


@pytest.mark.parametrize("name", [entry.config for entry in entries()])
def test_every_config_comes_back(name, tmp_path):
    config = parse([f"--config={name}", f"--workdir={tmp_path}"])[0]
    assert again(config) == config


@pytest.mark.parametrize(
    "kwargs",
    [
        {"boundaries_and_scales": {10: 0.5, 20: 0.1}},
        {"class": "of its own", "other": None},
        {"budgets": (10, 20, 40), "inner": Optimizer("lion", schedule=Schedule("wsd_schedule"))},
        {"limit": float("inf"), "flag": True, "nested": ((1, 2.0), ("a", {}))},
    ],
)
def test_what_json_confuses_comes_back(kwargs):
    config = Schedule("optax.piecewise_constant_schedule", kwargs)
    assert again(config) == config


@dataclasses.dataclass
class Mine(BigramChain):
    pass


@pytest.mark.parametrize(
    ("stored", "phrase"),
    [
        (None, r"holds no run: there is no config\.json in it\.$"),
        ("{", r"config\.json cannot be read back: .*\.$"),
        ({}, r"cannot be read back: .*config.*\.$"),
        ({"config": 3}, r"holds no experiments\.config\.Config\.$"),
        (Mine(), r"read back: 'Mine' is no class of configs; accepted: .*BigramChain, .*\.$"),
        ({"config": {"class": "Mesh", "date": 2}}, r"Mesh: .*'date'"),
    ],
)
def test_what_cannot_be_read_back_is_one_sentence(tmp_path, stored, phrase):
    if isinstance(stored, Mine):
        stored = {"config": as_json(Config(task=stored, steps=1, batch_size=1))}
    if stored is not None:
        text = stored if isinstance(stored, str) else json.dumps(stored)
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=phrase) as error:
        read_config(tmp_path)
    assert "\n" not in str(error.value)
