"""Tests of `python -m experiments refine`: from the norms of one run to a config of the next."""

import contextlib
import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest
from matplotlib.image import imread

import optim
from experiments.__main__ import main
from experiments.arrays import read_array
from experiments.config import BatchGrowth, Config, Optimizer, Schedule, StoredArray, UserError
from experiments.mesh import make_mesh
from experiments.optimizers import build_schedule
from experiments.records import Records
from experiments.refine import config_file, read_norms, refined
from experiments.run import parse
from experiments.stored import read_config
from experiments.train import build_program
from tests.experiments.test_branch import CONFIG, curve, run
from tests.experiments.test_run import fail
from tests.experiments.test_train import Regression, make_config

RECORDING = dataclasses.replace(
    CONFIG,
    steps=12,
    optimizer=dataclasses.replace(CONFIG.optimizer, record_norms="l1", clip_norm=0.01),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("finished") / "run"
    run(RECORDING, workdir)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


def gradient_norms() -> list[float]:
    """The L1 norms of the run's gradients, by gradients of its own."""
    program = build_program(RECORDING, make_mesh(RECORDING.mesh))
    state = program.init(jax.random.key(RECORDING.seed))
    gradient = jax.jit(jax.grad(lambda p, b: program.task.loss(p, b, jax.random.key(0))[0]))
    norms = []
    for step in range(RECORDING.steps):
        batch = program.task.batches(RECORDING.seed, step * 4, 4)
        leaves = jax.tree.leaves(gradient(state.params, batch))
        norms.append(sum(float(np.abs(np.asarray(leaf)).sum()) for leaf in leaves))
        state, _ = program.step(state, batch)
    return norms


def test_a_run_is_refined_and_run_again(workdir, tmp_path, capsys):
    assert main(["refine", str(workdir), "--filter_width=3"]) == 0
    folder = workdir / "refined"
    with np.load(folder / "schedule.npz", allow_pickle=False) as file:
        arrays = dict(file)
    np.testing.assert_allclose(arrays["norms"], gradient_norms(), rtol=1e-5)
    inner = arrays["norms"][:3]
    assert arrays["filtered"][1] == np.median(inner)
    expected = optim.refine_schedule(arrays["norms"], norm="l1", filter_width=3)
    np.testing.assert_array_equal(arrays["values"], expected)
    assert imread(folder / "schedule.png").std() > 0.01

    flags = [f"--config={folder / 'config.py'}", f"--workdir={tmp_path / 'next'}"]
    config = parse(flags)[0]
    assert dataclasses.replace(config, optimizer=RECORDING.optimizer) == RECORDING
    assert dataclasses.replace(config.optimizer, schedule=RECORDING.optimizer.schedule) == (
        RECORDING.optimizer
    )
    assert main(["run", *flags]) == 0
    rates = [rate for _, rate in curve(tmp_path / "next").values()]
    np.testing.assert_allclose(rates, 0.1 * arrays["values"], rtol=1e-6)
    assert read_config(tmp_path / "next") == config  # and it can be branched and refined in turn

    shutil.move(folder, tmp_path / "moved")  # the two files belong together, wherever they are
    moved = parse([f"--config={tmp_path / 'moved' / 'config.py'}", "--workdir=x"])[0]
    assert build_schedule(moved.optimizer.schedule, 1.0, 12)(0) == arrays["values"][0]
    np.savez(tmp_path / "moved" / "schedule.npz", values=arrays["values"][::-1])
    capsys.readouterr()
    flags = [f"--config={tmp_path / 'moved' / 'config.py'}", f"--workdir={tmp_path / 'third'}"]
    error = fail(capsys, "run", *flags)
    assert "schedule.npz has changed" in error


def test_a_stored_array_that_cannot_be_read_is_one_sentence(tmp_path):
    path = tmp_path / "array.npz"
    stored = StoredArray(str(path), "values", "0")
    with pytest.raises(UserError, match=r"array\.npz, which does not exist\.$"):
        read_array(stored)
    np.savez(path, other=np.ones(2))
    with pytest.raises(UserError, match=r"holds no array 'values' that can be read\.$"):
        read_array(stored)
    path.write_text("text")
    with pytest.raises(UserError, match=r"holds no array 'values' that can be read\.$"):
        read_array(stored)
    np.savez(path, values=np.array([None]), allow_pickle=True)
    with pytest.raises(UserError, match=r"holds no array 'values' that can be read\.$"):
        read_array(stored)


def test_a_run_that_is_not_finished_is_refused(workdir, capsys):
    shutil.rmtree(workdir / "checkpoints" / "12")
    assert "is at step 10 of 12; accepted: a finished run" in fail(capsys, "refine", str(workdir))
    assert not (workdir / "refined").exists()


def test_a_run_without_norms_is_refused(tmp_path, capsys):
    with contextlib.closing(Records(tmp_path, CONFIG)) as records:
        records.claim(CONFIG)
    error = fail(capsys, "refine", str(tmp_path))
    assert "recorded no gradient norms" in error and "record_norms=l1 (for Adam)" in error
    assert "holds no run" in fail(capsys, "refine", str(tmp_path / "none"))


def test_a_run_whose_batch_grows_is_refused(tmp_path):
    config = dataclasses.replace(RECORDING, batch_growth=BatchGrowth(max_batch_size=8))
    with pytest.raises(UserError, match=r"^refine: the run's batch grows, .*steps; accepted: a"):
        read_norms(tmp_path, config)


@pytest.mark.parametrize("bad", [0.0, np.inf])
def test_norms_that_weigh_nothing_are_refused(bad):
    norms = np.array([1.0, bad, 2.0, 3.0])
    with pytest.raises(UserError, match=rf"^refine: .*norms\[1\] is {bad}; accepted: positive"):
        refined(RECORDING, norms, 0.1)


def test_a_width_that_is_even_is_refused(finished, capsys):
    assert "filter_width is 4" in fail(capsys, "refine", str(finished), "--filter_width=4")
    assert "'wide'" in fail(capsys, "refine", str(finished), "--filter_width=wide")


def test_steps_that_were_left_out_are_refused(tmp_path):
    optimizer = Optimizer("optax.sgd", 0.01, Schedule("linear_decay_schedule"), record_norms="l2")
    task = Regression(bad_from=40, bad_until=56)
    config = make_config(task=task, optimizer=optimizer, on_nonfinite="skip")
    run(config, tmp_path)
    with pytest.raises(UserError, match="the norms of 10 of 12 steps: .* not finite and left out"):
        read_norms(tmp_path, config)


def test_a_config_of_many_classes_comes_back_from_its_source(tmp_path):
    inner = Optimizer("optax.sgd", 0.2, Schedule("wsd_schedule", {"peak_value": 0.4}))
    kwargs = {
        "norms": {".*": optim.SpectralNorm(scale=2.0)},
        "auxiliary": inner,
        "limits": (float("inf"), -float("inf"), 1),
    }
    config = dataclasses.replace(CONFIG, optimizer=Optimizer("scion", 0.1, kwargs=kwargs))
    values = np.array([1.0, 0.5, 0.0], np.float32)
    np.savez(tmp_path / "schedule.npz", values=values)
    (tmp_path / "config.py").write_text(config_file(tmp_path, config, values))
    again = parse([f"--config={tmp_path / 'config.py'}", "--workdir=x"])[0]
    schedule = again.optimizer.schedule
    assert schedule.kwargs["values"].path == str(tmp_path / "schedule.npz")
    auxiliary = dataclasses.replace(inner, learning_rate=0.4, schedule=schedule)
    expected = dataclasses.replace(
        config.optimizer, schedule=schedule, kwargs={**kwargs, "auxiliary": auxiliary}
    )
    assert again == dataclasses.replace(config, optimizer=expected)
    assert isinstance(again, Config)
