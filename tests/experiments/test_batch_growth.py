"""A growing batch: a run replayed in NumPy, going on after growth, compilations, errors."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train as train_module
from experiments.config import BatchGrowth, Config, Mesh, Optimizer, Schedule, UserError, validate
from experiments.mesh import make_mesh
from experiments.records import Records, read_metrics
from experiments.tasks.task import Task
from experiments.train import build_program

from .test_train import Regression, assert_same, make_config, run, stopped_at

START, MOST = 4, 20  # 4, 8 and 16 samples


@dataclasses.dataclass
class Noisy(Regression):
    """Targets that no parameters fit: near the best ones the samples' gradients disagree."""

    def build(self) -> Task:
        task = super().build()

        def batches(seed: int, samples: int, count: int) -> Any:
            batch = task.batches(seed, samples, count)
            return {**batch, "y": batch["y"] + 2 * np.sin(7 * batch["y"])}

        return task._replace(batches=batches)


def growing(growth: dict[str, Any] | None = None, **changes: Any) -> Config:
    """Least squares in micro-batches of two samples, by gradient descent at a falling rate."""
    growth_defaults: dict[str, Any] = {"max_batch_size": MOST, "kwargs": {"eta": 1.0}}
    defaults: dict[str, Any] = {
        "task": Noisy(),
        "steps": 60,
        "batch_size": START,
        "accumulation": 2,
        "optimizer": Optimizer("optax.sgd", 0.05, Schedule("linear_decay_schedule")),
        "batch_growth": BatchGrowth(**growth_defaults | (growth or {})),
    }
    return make_config(**(defaults | changes))


def lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(workdir) if "loss" in line]


def gradients(params: np.ndarray, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Of the micro-batches, of two samples each, that the train loop makes."""
    residuals = batch["x"].astype(np.float64) @ params - batch["y"]
    each = 2 * residuals[:, None] * batch["x"]
    return each.reshape(2, -1, 5).mean(0)


def replay(config: Config) -> tuple[np.ndarray, list[tuple[int, float, float]]]:
    """The run from its definition: last parameters, and (size, rate, wanted) of every step."""
    task = config.task.build()
    state = build_program(config, make_mesh(Mesh())).init(jax.random.key(config.seed))
    params = np.asarray(state.params["w"], np.float64)
    size, samples, steps = START, 0, []
    while samples < config.steps * START:
        groups = gradients(params, task.batches(config.seed, samples, size))
        mean = groups.mean(0)
        variance = 2 * groups.var(0, ddof=1).sum()
        wanted = variance / (mean @ mean)
        rate = 0.05 * (1 - (samples // START) / config.steps)
        params = params - rate * mean
        steps.append((size, rate, wanted))
        samples += size
        while size < wanted and 2 * size <= MOST:
            size *= 2
    return params, steps


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """A run that was not stopped: its outcome, folder, compiled program and printed lines."""
    workdir = tmp_path_factory.mktemp("whole")
    programs: list[Any] = []
    said: list[str] = []

    def spy(*arguments: Any) -> Any:
        programs.append(build_program(*arguments))
        return programs[-1]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(train_module, "build_program", spy)
        monkeypatch.setattr(Records, "say", lambda self, sentence: said.append(sentence))
        outcome = run(growing(), workdir)
    return outcome, workdir, programs[0], said


def test_a_run_is_its_definition(observed):
    outcome, workdir, _, _ = observed
    params, steps = replay(growing())
    recorded = lines(workdir)
    sizes = [size for size, _, _ in steps]
    assert [line["batch_size"] for line in recorded] == sizes
    assert {*sizes} == {4, 8, 16} and sizes[0] == 4 and sizes == sorted(sizes)
    assert sum(sizes[:-1]) < 60 * START <= sum(sizes)
    np.testing.assert_allclose(outcome.state.params["w"], params, rtol=1e-5)
    for line, (size, rate, wanted) in zip(recorded, steps, strict=True):
        assert line["learning_rate"] == pytest.approx(rate, rel=1e-5)
        assert ("wanted_batch_size" in line) == (2 * size <= MOST)  # no test at the end of growth
        if 2 * size <= MOST:
            assert line["wanted_batch_size"] == pytest.approx(wanted, rel=1e-4)


def test_it_compiles_once_a_size_and_counts_samples(observed):
    _, _, program, said = observed
    assert program.step._cache_size() == 3
    assert said[1].startswith("step 2, samples 12/240  loss ")
    assert any(s.startswith("step 4, samples 28/240  validation: ") for s in said)


@pytest.mark.parametrize("stop", [3, 9, 14])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(observed, tmp_path, stop):
    """Without a checkpoint yet, from one before the batch grows and from one after."""
    outcome, workdir, _, _ = observed
    with stopped_at(stop):
        run(growing(), tmp_path)
    again = run(growing(), tmp_path)
    assert_same(outcome.state.params, again.state.params)
    assert outcome.metrics == again.metrics
    for line, other in zip(lines(workdir), lines(tmp_path), strict=True):
        del line["samples_per_second"], other["samples_per_second"]
        assert line == other


def wanted_in_a_step(name: str, kwargs: dict[str, float], batch: Any, every: int = 1) -> float:
    """The metric of the second step, of a batch of 8 samples."""
    growth = {"name": name, "kwargs": kwargs, "every": every}
    program = build_program(growing(growth), make_mesh(Mesh()))
    state = program.init(jax.random.key(0))
    _, metrics = program.step(state._replace(step=jnp.int32(1)), batch, 0)
    return float(metrics["wanted_batch_size"])


def test_inner_products_are_those_of_the_micro_batches():
    batch = Noisy().build().batches(0, 0, 8)
    program = build_program(growing(), make_mesh(Mesh()))
    params = np.asarray(program.init(jax.random.key(0)).params["w"], np.float64)
    groups = gradients(params, batch)
    mean = groups.mean(0)
    along = 2 * (groups @ mean / (mean @ mean)).var(ddof=1)
    across = 2 * groups.var(0, ddof=1).sum() / (mean @ mean) - along
    ours = wanted_in_a_step("inner_product_test", {"theta": 0.5}, batch)
    assert ours == pytest.approx(along / 0.5**2, rel=1e-4)
    ours = wanted_in_a_step("augmented_inner_product_test", {"theta": 5.0, "nu": 0.5}, batch)
    assert ours == pytest.approx(across / 0.5**2, rel=1e-4)
    assert wanted_in_a_step("inner_product_test", {"theta": 0.5}, batch, every=3) == 0


def test_it_is_tested_at_an_interval(tmp_path):
    run(growing({"every": 3}), tmp_path)
    recorded = lines(tmp_path)
    sizes = [line["batch_size"] for line in recorded]
    tested = [line["step"] for line in recorded if "wanted_batch_size" in line]
    assert tested == [t for t in range(3, len(sizes) + 1, 3) if sizes[t - 1] < 16]
    changes = [t for t in range(1, len(sizes)) if sizes[t] != sizes[t - 1]]
    assert changes and {*changes} <= {*tested}


def test_an_optimizer_without_a_learning_rate_grows_too(tmp_path):
    run(growing(optimizer=Optimizer("optax.scale", kwargs={"step_size": -0.03})), tmp_path)
    sizes = [line["batch_size"] for line in lines(tmp_path)]
    assert sizes[0] == 4 and sizes[-1] == 16


def test_a_loss_that_is_not_finite_asks_for_nothing():
    batch = Noisy().build().batches(0, 0, 8)
    assert np.isnan(wanted_in_a_step("norm_test", {}, {**batch, "y": batch["y"] * np.inf}))


def test_without_growth_nothing_of_it_is_seen_and_older_runs_go_on(tmp_path):
    """A config.json and metrics from before there was the field; the counters lack it likewise."""
    config = growing(batch_growth=None, steps=4)
    run(config, tmp_path)
    assert not {"batch_size", "wanted_batch_size"} & lines(tmp_path)[0].keys()
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["config"]["batch_growth"]
    path.write_text(json.dumps(stored))
    run(config, tmp_path)
    with pytest.raises(UserError, match="batch_growth.class is absent there and BatchGrowth here"):
        run(growing(steps=4), tmp_path)


def refuse(**changes: Any) -> None:
    config = growing(**changes)
    validate(config)
    build_program(config, make_mesh(Mesh()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"growth": {"every": 0}}, "config.batch_growth.every is 0; it must be at least 1"),
        (
            {"growth": {"max_batch_size": 3}},
            "max_batch_size is 3; it must be at least config.batch_size = 4",
        ),
        ({"accumulation": 1}, "config.accumulation is 1; with config.batch_growth .* at least 2"),
        (
            {"growth": {"name": "t_test"}},
            "config.batch_growth.name is 't_test'; accepted: norm_test, inner_product_test",
        ),
        (
            {"growth": {"kwargs": {"theta": 1.0}}},
            "config.batch_growth.kwargs has 'theta', which norm_test does not take",
        ),
        (
            {"growth": {"kwargs": {"group_size": 1}}},
            "config.batch_growth.kwargs has 'group_size', which the run fills in",
        ),
        (
            {"growth": {"name": "inner_product_test", "kwargs": {"theta": 0.0}}},
            "config.batch_growth .inner_product_test.: .* theta is 0.0; accepted: theta > 0",
        ),
    ],
)
def test_what_no_run_could_use_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        refuse(**changes)
