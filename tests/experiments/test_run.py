"""Tests of `python -m experiments run` and `list`: wrong input is one sentence, nothing is lost."""

import json
import pathlib
import shutil

import pytest

from experiments.__main__ import main
from experiments.listing import entries

TINY = str(pathlib.Path(__file__).parent / "tiny.py")


def fail(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """The one sentence that a command that fails prints."""
    assert main([*argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("argv", "phrases"),
    [
        ([], ["--config=FILE is missing"]),
        (["--config=nowhere.py"], ["--config=nowhere.py: there is no such file"]),
        ([f"--config={TINY}"], ["--workdir=DIR is missing"]),
        (["--config.step=3"], ["config has no field 'step'; accepted: task, steps, batch_size"]),
        (["--config.optimizer.lr=3"], ["config.optimizer has no field 'lr'; accepted: name, lea"]),
        (["--config.optimizer.kwargs.b9=3"], ["config.optimizer.kwargs has no field 'b9'"]),
        (["--config.steps=many"], ["--config.steps=many", "'many'"]),
        (["--config.optimizer.kwargs=3"], ["kwargs", "'3' is not a dict"]),
        (["--config.steps=0"], ["config.steps is 0; it must be at least 1"]),
        (["--config.steps=-4"], ["config.steps is -4"]),
        (["--config.accumulation=3"], ["config.batch_size = 8", "config.accumulation = 3"]),
        (["--config.mesh.data=4"], ["wants 4 devices; this machine has 1"]),
        (["--config.on_nonfinite=ignore"], ["'ignore'", "'stop', 'skip'"]),
        (["--config.optimizer.record_norms=l3"], ["is 'l3'; accepted: '', 'l1', 'l2'"]),
        (["--config.optimizer.name=lyon"], ["'lyon' names no function of optim"]),
        (["--config.optimizer.frozen=('[',)"], ["'[' is not a regular expression"]),
        (["--config.task.text=/nowhere"], ["config.task", "/nowhere"]),
        (["--bogus=1"], ["bogus"]),
        (["stray"], ["'stray' is no flag"]),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence(capsys, tmp_path, argv, phrases):
    if argv and not any(a.startswith("--config=") for a in argv):
        argv = [f"--config={TINY}", f"--workdir={tmp_path / 'run'}", *argv]
    error = fail(capsys, "run", *argv)
    assert all(phrase in error for phrase in phrases), error
    assert not (tmp_path / "run" / "checkpoints").exists() or not any(
        (tmp_path / "run" / "checkpoints").iterdir()
    )


def test_a_text_without_text_is_refused(capsys, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    argv = ["run", f"--config={TINY}", f"--workdir={tmp_path / 'run'}"]
    assert "empty.txt" in fail(capsys, *argv, f"--config.task.text={tmp_path / 'empty.txt'}")


def test_a_workdir_that_cannot_be_written_is_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    error = fail(capsys, "run", f"--config={TINY}", f"--workdir={tmp_path / 'file' / 'run'}")
    assert "cannot be written to" in error
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unknown_command_is_refused(capsys):
    assert "'trian' is no command; accepted: run, branch, refine, merge, list" in fail_with_usage(
        capsys, "trian"
    )


def fail_with_usage(capsys: pytest.CaptureFixture, *argv: str) -> str:
    assert main([*argv]) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the tiny language model, to be copied before it is changed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert main(["run", f"--config={TINY}", f"--workdir={workdir}"]) == 0
    return workdir


def test_a_run_leaves_what_it_promises(finished, capsys):
    config = json.loads((finished / "config.json").read_text())
    assert config["config"]["optimizer"]["name"] == "optax.adamw"
    assert config["environment"]["jax"] and len(config["state_sha256"]) == 64
    assert {p.name for p in (finished / "figures").iterdir()} == {
        "loss.png",
        "learning_rate.png",
        "gradient_norm.png",
    }
    assert any((finished / "tensorboard").iterdir())
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 25))
    assert [line["step"] for line in lines if "validation_bits_per_byte" in line] == [8, 16, 24]
    assert lines[0]["learning_rate"] == 0.0 or lines[0]["learning_rate"] < lines[4]["learning_rate"]


def test_the_closing_table_compares_with_the_baselines(finished, capsys):
    assert main(["run", f"--config={TINY}", f"--workdir={finished}"]) == 0
    output = capsys.readouterr().out
    for word in ("uniform", "unigram", "bigram", "this run", "figure", "resume", "tensorboard"):
        assert word in output


def copy(finished: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_workdir_of_another_config_is_left_alone(finished, tmp_path, capsys):
    workdir = copy(finished, tmp_path)
    before = contents(workdir)
    argv = [
        "run",
        f"--config={TINY}",
        f"--workdir={workdir}",
        "--config.optimizer.learning_rate=1.0",
    ]
    error = fail(capsys, *argv)
    assert "optimizer.learning_rate is 0.003 there and 1.0 here" in error
    assert contents(workdir) == before


def test_a_run_from_before_a_field_existed_goes_on(finished, tmp_path):
    workdir = copy(finished, tmp_path)
    record = json.loads((workdir / "config.json").read_text())
    assert record["config"]["optimizer"].pop("record_norms") == ""
    (workdir / "config.json").write_text(json.dumps(record))
    assert main(["run", f"--config={TINY}", f"--workdir={workdir}"]) == 0
    again = json.loads((workdir / "config.json").read_text())
    assert again["config"]["optimizer"]["record_norms"] == "" and not again["earlier_configs"]


def test_allowed_changes_are_remembered(finished, tmp_path, capsys):
    workdir = copy(finished, tmp_path)
    argv = [
        "run",
        f"--config={TINY}",
        f"--workdir={workdir}",
        "--config.steps=25",
        "--allow_changes",
    ]
    assert main(argv) == 0
    record = json.loads((workdir / "config.json").read_text())
    assert record["config"]["steps"] == 25
    assert [earlier["steps"] for earlier in record["earlier_configs"]] == [24]


def test_another_state_names_the_first_field(finished, tmp_path, capsys):
    workdir = copy(finished, tmp_path)
    before = contents(workdir / "checkpoints")
    argv = ["run", f"--config={TINY}", f"--workdir={workdir}", "--allow_changes"]
    error = fail(capsys, *argv, "--config.task.model.width=64")
    assert "is of another state: params/" in error and " there and " in error
    assert contents(workdir / "checkpoints") == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_truncated_checkpoint_falls_back_to_the_newest_whole_one(finished, tmp_path, capfd):
    workdir = copy(finished, tmp_path)
    files = [p for p in (workdir / "checkpoints" / "24" / "state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    metrics = (workdir / "metrics.jsonl").read_text().splitlines()
    assert main(["run", f"--config={TINY}", f"--workdir={workdir}"]) == 0
    output, error = capfd.readouterr()
    assert error == ""
    assert "Checkpoint 24" in output and "damaged" in output
    assert "Resuming from the checkpoint at step 20" in output
    again = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [strip_speed(line) for line in again] == [strip_speed(line) for line in metrics]


def strip_speed(line: str) -> dict:
    return {k: v for k, v in json.loads(line).items() if k != "tokens_per_second"}


def test_two_runs_do_not_share_a_workdir(finished, capsys):
    from experiments.records import _lock

    with _lock(finished / ".lock"):
        error = fail(capsys, "run", f"--config={TINY}", f"--workdir={finished}")
    assert "is in use by another run" in error


def test_checkpoints_without_a_config_are_left_alone(finished, tmp_path, capsys):
    workdir = copy(finished, tmp_path)
    (workdir / "config.json").unlink()
    before = contents(workdir / "checkpoints")
    assert "no config.json" in fail(capsys, "run", f"--config={TINY}", f"--workdir={workdir}")
    assert contents(workdir / "checkpoints") == before


def test_the_list_shows_every_config(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [entry.config for entry in entries()]
    assert all(entry.minutes > 0 and entry.description for entry in entries())


def test_a_list_of_nothing_is_refused(capsys):
    assert "no config" in fail(capsys, "list", "nothing-is-called-so")
