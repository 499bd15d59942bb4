"""Tests of `python -m experiments branch`: it is a single run, bit for bit."""

import contextlib
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from matplotlib.image import imread

from experiments.__main__ import main
from experiments.branch import branched, check_peak, copy_whole, parse
from experiments.checkpoints import steps_of
from experiments.config import BatchGrowth, Config, Optimizer, Schedule, UserError
from experiments.records import Records, read_metrics
from experiments.tasks.bigram import BigramChain
from experiments.train import Outcome, train
from tests.experiments.test_run import fail
from tests.experiments.test_train import Interrupted, stopped_at

STABLE = Schedule("wsd_schedule", {"warmup_steps": 4, "decay_steps": 4})
INNER = Optimizer("optax.sgd", 0.2, STABLE)
CONFIG = Config(
    task=BigramChain(vocabulary=8, length=8),
    steps=16,
    batch_size=4,
    optimizer=Optimizer("optax.adamw", 0.1, STABLE, clip_norm=1.0),
    log_every=1,
    evaluate_every=4,
    checkpoint_every=2,
    keep_checkpoints=9,
)


def run(config: Config, workdir: pathlib.Path) -> Outcome:
    records = Records(workdir, config)
    try:
        return train(config, workdir, records)
    finally:
        records.close()


def with_schedule(config: Config, **changes) -> Config:
    schedule = Schedule(config.optimizer.schedule.name, changes)
    return dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, schedule=schedule)
    )


def curve(workdir: pathlib.Path) -> dict[int, tuple[float, float]]:
    lines = read_metrics(workdir)
    return {line["step"]: (line["loss"], line["learning_rate"]) for line in lines if "loss" in line}


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def bits(workdir: pathlib.Path, step: int) -> dict[str, int]:
    record = workdir / "checkpoints" / str(step) / "record" / "metadata"
    return json.loads(record.read_text())["fingerprints"]


@pytest.fixture(scope="module")
def main_run(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("main") / "run"
    run(CONFIG, workdir)
    return workdir


@pytest.fixture
def workdir(main_run, tmp_path) -> pathlib.Path:
    """A finished run whose rate rises to step 4 and falls from step 12, with all checkpoints."""
    return pathlib.Path(shutil.copytree(main_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> pathlib.Path:
    """What the branch from step 8 with a decay of 3 steps should be."""
    workdir = tmp_path_factory.mktemp("single") / "run"
    config = dataclasses.replace(CONFIG, steps=11)
    run(with_schedule(config, warmup_steps=4, decay_steps=3, end_value=0.01), workdir)
    return workdir


def test_a_branch_is_the_single_run_of_its_length_bit_for_bit(workdir, single, capsys):
    before = contents(workdir / "checkpoints")
    argv = ["branch", f"--from={workdir}", "--at=8", "--decay=3", "--end_value=0.01"]
    assert main(argv) == 0
    branch = workdir / "branches" / "8+3"
    assert bits(branch, 11) == bits(single, 11)
    assert curve(branch) == {step: curve(single)[step] for step in (9, 10, 11)}
    assert contents(workdir / "checkpoints") == before  # copied, never moved
    record = json.loads((branch / "config.json").read_text())
    assert record["branched_from"] == {"workdir": str(workdir), "step": 8}
    assert record["config"]["steps"] == 11 and record["environment"]["jax"]
    assert imread(workdir / "figures" / "branches.png").std() > 0.01
    assert "experiments branch --from=" in capsys.readouterr().out

    error = fail(capsys, *argv, "--shape=1-sqrt")
    assert "decay_shape is linear there and 1-sqrt here; choose another workdir" in error


@pytest.mark.slow
def test_going_on_at_the_peak_from_decayed_branches_is_wsd_s(workdir, tmp_path):
    schedule = Schedule(
        "wsd_s_schedule",
        {"budgets": (11, 16), "warmup_steps": 4, "decay_steps": 3, "end_value": 0.01},
    )
    optimizer = dataclasses.replace(CONFIG.optimizer, schedule=schedule)
    run(dataclasses.replace(CONFIG, optimizer=optimizer), tmp_path / "single")
    decay = ["--decay=3", "--end_value=0.01"]
    assert main(["branch", f"--from={workdir}", "--at=8", *decay]) == 0
    first = workdir / "branches" / "8+3"
    assert main(["branch", f"--from={first}", "--at=11", "--stable=2", *decay]) == 0
    second = first / "branches" / "11+2+3"
    assert bits(second, 16) == bits(tmp_path / "single", 16)
    rates = [rate for _, rate in curve(second).values()]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.1, 0.07, 0.04], rtol=1e-6)


@pytest.mark.slow
def test_an_interrupted_branch_goes_on_bit_for_bit(workdir, single, monkeypatch):
    argv = ["branch", f"--from={workdir}", "--at=8", "--decay=3", "--end_value=0.01"]
    branch = workdir / "branches" / "8+3"

    def cut(source, target, *rest, **options):
        copy(source, target, *rest, **options)
        raise Interrupted

    copy = shutil.copytree
    monkeypatch.setattr(shutil, "copytree", cut)
    with pytest.raises(Interrupted):
        main(argv)
    assert steps_of(branch) == [] and (branch / "8.partial").exists()
    monkeypatch.undo()
    with stopped_at(11):
        main(argv)
    assert steps_of(branch) == [8, 10] and not (branch / "8.partial").exists()
    shutil.rmtree(workdir / "checkpoints")  # the run may go on and drop what was branched from
    assert main(argv) == 0
    assert bits(branch, 11) == bits(single, 11)
    assert curve(branch) == {step: curve(single)[step] for step in (9, 10, 11)}


def test_a_checkpoint_that_goes_while_it_is_copied_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"^branch: .*4 could not be copied: .* meanwhile\.$"):
        copy_whole(tmp_path / "checkpoints" / "4", tmp_path / "branch" / "checkpoints" / "4")


@pytest.mark.parametrize(("at", "stays"), [(1, False), (4, True), (12, True), (14, False)])
def test_a_branch_begins_at_the_peak(at, stays):
    with contextlib.nullcontext() if stays else pytest.raises(UserError, match=f"--at={at} is in"):
        check_peak(CONFIG.optimizer, CONFIG.steps, at)


def test_a_run_without_a_decay_can_be_branched_from_its_end():
    check_peak(with_schedule(CONFIG, decay_steps=0).optimizer, CONFIG.steps, CONFIG.steps)


@pytest.mark.parametrize(
    ("argv", "phrases"),
    [
        ([], ["branch: the following arguments are required: --from"]),
        (["--at=five"], ["--at", "'five'"]),
        (["--bogus=1"], ["--bogus=1"]),
        (["--decay=0"], ["--decay=0; accepted: an int from 1"]),
        (["--stable=-1"], ["--stable=-1; accepted: an int from 0"]),
        (["--from=/nowhere"], ["/nowhere holds no run"]),
        (
            ["--at=7"],
            ["no checkpoint of step 7", "2, 4, 6, 8, 10, 12, 14, 16", "--config.keep_checkpoints"],
        ),
        (["--at=16"], ["--at=16 is in the warm-up or the decay", "0.025", "peak 0.1", "--stable"]),
        (["--shape=harmonic"], ["end_value is 0.0", "'harmonic' accepts what is positive"]),
        (["--shape=exponential"], ["end_value is 0.0"]),
        (["--shape=cubic"], ["decay_shape is 'cubic'; accepted: linear"]),
    ],
)
def test_wrong_input_is_one_sentence(main_run, capsys, argv, phrases):
    before = contents(main_run)
    given = [f"--from={main_run}", "--at=8", "--decay=2"] if argv else []
    error = fail(capsys, "branch", *given, *argv)
    assert all(phrase in error for phrase in phrases), error
    assert contents(main_run) == before


def test_an_optimizer_inside_another_decays_in_proportion():
    optimizer = dataclasses.replace(CONFIG.optimizer, kwargs={"auxiliary": INNER, "b1": 0.9})
    argv = ["--from=.", "--at=8", "--decay=2", "--stable=1", "--end_value=0.01"]
    config = branched(dataclasses.replace(CONFIG, optimizer=optimizer), parse(argv))
    assert config.steps == 11 and config.optimizer.kwargs["b1"] == 0.9
    ends = {"decay_steps": 2, "decay_shape": "linear", "end_value": 0.01}
    assert config.optimizer.schedule == Schedule("wsd_schedule", ends)
    inner = config.optimizer.kwargs["auxiliary"].schedule
    assert inner == Schedule("wsd_schedule", {**ends, "end_value": 0.02})


def test_a_run_that_records_norms_is_not_branched():
    optimizer = dataclasses.replace(CONFIG.optimizer, record_norms="l2")
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    with pytest.raises(UserError, match="records gradient norms, of which it holds as many as"):
        branched(config, parse(["--from=.", "--at=8", "--decay=2"]))


def test_a_run_whose_batch_grows_is_not_branched():
    config = dataclasses.replace(CONFIG, batch_growth=BatchGrowth(max_batch_size=8))
    with pytest.raises(UserError, match=r"^branch: the run's batch grows, .*steps; accepted: a"):
        branched(config, parse(["--from=.", "--at=8", "--decay=2"]))


def test_help_says_what_the_flags_are(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        main(["branch", "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith("python -m experiments branch --from=WORKDIR")
    assert "--end_value=RATE" in printed
