"""Tests of experiments/train.py in one process: the step, the state, and what stops a run."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.checkpoints import Counters
from experiments.config import Config, Mesh, Optimizer, Schedule, UserError
from experiments.mesh import make_mesh
from experiments.records import Records, read_metrics
from experiments.tasks.task import Task
from experiments.train import Outcome, build_program, train


@dataclasses.dataclass
class Regression:
    """Least squares on fixed data; `bad_from` makes the samples from that one on not a number."""

    size: int = 64
    bad_from: int = -1
    bad_until: int = 2**31 - 1

    def build(self) -> Task:
        x = np.random.default_rng(0).normal(size=(self.size, 5)).astype(np.float32)
        y = x @ np.arange(5, dtype=np.float32)

        def init(key: jax.Array) -> Any:
            return {"w": jax.random.normal(key, (5,))}

        def loss(params: Any, batch: Any, key: jax.Array) -> Any:
            del key
            residual = batch["x"] @ params["w"] - batch["y"]
            return jnp.mean(residual**2), {"largest": jnp.max(jnp.abs(residual))}

        def batches(seed: int, samples: int, count: int) -> Any:
            index = (samples + np.arange(count) + seed) % self.size
            bad = self.bad_from >= 0 and self.bad_from <= samples < self.bad_until
            return {"x": x[index], "y": y[index] + (np.nan if bad else 0.0)}

        def evaluate(params: Any, place: Any) -> dict[str, float]:
            return {"loss": float(loss(params, place({"x": x, "y": y}), jax.random.key(0))[0])}

        facts = {
            "loss_unit": "squared error",
            "tokens_per_sample": 1,
            "samples": self.size,
            "primary": "loss",
            "baselines": {},
            "provenance": {},
        }
        return Task(init, loss, batches, evaluate, facts)


def make_config(**changes: Any) -> Config:
    defaults: dict[str, Any] = {
        "task": Regression(),
        "steps": 12,
        "batch_size": 8,
        "optimizer": Optimizer("optax.adamw", 0.1, Schedule("optax.cosine_decay_schedule")),
        "log_every": 1,
        "evaluate_every": 4,
        "checkpoint_every": 4,
    }
    return Config(**(defaults | changes))


def run(config: Config, workdir: pathlib.Path, allow_changes: bool = False) -> Outcome:
    records = Records(workdir, config, allow_changes)
    try:
        return train(config, workdir, records)
    finally:
        records.close()


def losses(workdir: pathlib.Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(workdir) if "loss" in line}


def assert_same(left: Any, right: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), left, right)


def test_accumulation_is_the_gradient_of_the_whole_batch():
    stepped = []
    for accumulation in (1, 4):
        config = make_config(accumulation=accumulation)
        program = build_program(config, make_mesh(Mesh()))
        state = program.init(jax.random.key(0))
        state, metrics = program.step(state, program.task.batches(0, 0, 8))
        stepped.append((state.params["w"], metrics["loss"], metrics["gradient_norm"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), *stepped)


def test_a_step_compiles_once_and_donates_its_state(tmp_path):
    program = build_program(make_config(), make_mesh(Mesh()))
    state = program.init(jax.random.key(0))
    first = state
    for t in range(3):
        state, _ = program.step(state, program.task.batches(0, 8 * t, 8))
    assert program.step._cache_size() == 1
    assert first.params["w"].is_deleted()


def test_building_a_program_allocates_no_parameter():
    before = len(jax.live_arrays())
    program = build_program(make_config(), make_mesh(Mesh()))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(program.target))
    assert len(jax.live_arrays()) <= before + 2


class Interrupted(Exception):
    pass


@contextlib.contextmanager
def stopped_at(stop: int) -> Iterator[None]:
    """What runs inside must come to step `stop`, and ends there, before that step is recorded."""
    original = Records.step

    def interrupted(self: Records, counters: Counters, *rest: Any) -> None:
        if counters.step == stop:
            raise Interrupted
        original(self, counters, *rest)

    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Interrupted):
        monkeypatch.setattr(Records, "step", interrupted)
        yield


@pytest.mark.parametrize("stop", [3, 4, 7, 11])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, stop):
    config = make_config()
    whole = run(config, tmp_path / "whole")
    with stopped_at(stop):
        run(config, tmp_path / "cut")
    again = run(config, tmp_path / "cut")
    assert_same(whole.state.params, again.state.params)
    assert whole.metrics == again.metrics
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert list(losses(tmp_path / "cut")) == list(range(1, 13))


def test_a_finished_run_only_evaluates(tmp_path):
    first = run(make_config(), tmp_path)
    second = run(make_config(), tmp_path)
    assert first.metrics == second.metrics
    assert int(second.state.step) == 12


def test_the_data_go_on_where_they_were_when_the_batch_size_changes(tmp_path, monkeypatch):
    seen = []
    original = Regression.build

    def spy(self: Regression) -> Task:
        task = original(self)

        def batches(seed: int, samples: int, count: int) -> Any:
            seen.append((samples, count))
            return task.batches(seed, samples, count)

        return task._replace(batches=batches)

    monkeypatch.setattr(Regression, "build", spy)
    run(make_config(steps=4), tmp_path)
    run(make_config(steps=6, batch_size=4), tmp_path, allow_changes=True)
    assert seen == [(0, 8), (8, 8), (16, 8), (24, 8), (32, 4), (36, 4)]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    config = make_config(task=Regression(bad_from=48))
    with pytest.raises(
        UserError, match="stopped at step 7: the loss is nan .* checkpoint is step 4 "
    ):
        run(config, tmp_path)
    assert {int(p.name) for p in (tmp_path / "checkpoints").iterdir()} == {4}


def test_a_run_that_stops_before_its_first_checkpoint_says_so(tmp_path):
    with pytest.raises(UserError, match="stopped at step 1: .* no checkpoint yet"):
        run(make_config(task=Regression(bad_from=0)), tmp_path)


def test_steps_that_are_not_finite_can_be_skipped(tmp_path):
    config = make_config(task=Regression(bad_from=40, bad_until=56), on_nonfinite="skip")
    outcome = run(config, tmp_path)
    assert np.isfinite(outcome.metrics["loss"])
    assert [step for step, loss in losses(tmp_path).items() if not np.isfinite(loss)] == [6, 7]
    assert int(outcome.state.optimizer.total) == 2


def test_too_many_skipped_steps_in_a_row_stop_the_run(tmp_path):
    config = make_config(task=Regression(bad_from=40), on_nonfinite="skip", nonfinite_limit=3)
    with pytest.raises(UserError, match="stopped at step 8: 3 steps in a row .* step 4 "):
        run(config, tmp_path)


def test_every_task_key_differs_by_step():
    seen = []

    @dataclasses.dataclass
    class Keyed(Regression):
        def build(self) -> Task:
            task = super().build()

            def loss(params: Any, batch: Any, key: jax.Array) -> Any:
                value, _ = task.loss(params, batch, key)
                return value, {"draw": jax.random.uniform(key)}

            return task._replace(loss=loss)

    program = build_program(make_config(task=Keyed()), make_mesh(Mesh()))
    state = program.init(jax.random.key(0))
    for t in range(3):
        state, metrics = program.step(state, program.task.batches(0, 8 * t, 8))
        seen.append(float(metrics["draw"]))
    assert len(set(seen)) == 3
