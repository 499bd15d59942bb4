"""Runs in processes of their own: killed, on four devices, and as two processes of one run."""

import json
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.records import read_metrics
from tests import pretended_devices
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # processes that start, and compile, one after another
TINY = "tests/experiments/tiny.py"
SPREAD = ("--config.mesh.data=2", "--config.mesh.fsdp=2")


def start(
    workdir: pathlib.Path, *flags: str, devices: int = 1, config: str = TINY
) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments", "run", f"--config={config}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=pretended_devices.environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def losses(workdir: pathlib.Path) -> np.ndarray:
    steps = {line["step"]: line["loss"] for line in read_metrics(workdir) if "loss" in line}
    assert list(steps) == list(range(1, 25))
    return np.array(list(steps.values()))


def fingerprints(workdir: pathlib.Path) -> dict[str, int]:
    """The checksums of every leaf's bits in the last checkpoint."""
    record = workdir / "checkpoints" / "24" / "record" / "metadata"
    return json.loads(record.read_text())["fingerprints"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    finish(start(workdir))
    return workdir


def test_a_killed_run_ends_bit_for_bit_as_one_that_was_not(whole, tmp_path):
    kills = random.SystemRandom()
    for _ in range(2):
        process = start(tmp_path)
        target = kills.randrange(2, 24)
        for line in process.stdout:
            if line.startswith(f"step {target}/"):
                break
        time.sleep(kills.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    output = finish(start(tmp_path))
    assert fingerprints(tmp_path) == fingerprints(whole), output
    np.testing.assert_array_equal(losses(tmp_path), losses(whole))


def test_four_devices_give_the_curve_of_one_and_their_checkpoint_resumes_on_one(whole, tmp_path):
    finish(start(tmp_path, *SPREAD, devices=4))
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)
    checkpoints = tmp_path / "checkpoints"
    sharding = (checkpoints / "24" / "state" / "_sharding").read_text()
    assert "fsdp" in sharding
    (checkpoints / "24").rename(tmp_path / "24")
    output = finish(start(tmp_path))
    assert "Resuming from the checkpoint at step 20" in output
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)


def test_tensor_parallel_devices_give_the_curve_of_one(whole, tmp_path):
    finish(start(tmp_path, "--config.mesh.tensor=2", "--config.mesh.fsdp=2", devices=4))
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "metrics"),
    [("growing", ("batch_size", "wanted_batch_size")), ("weighted", ("largest_weight",))],
)
def test_four_devices_grow_and_weigh_a_batch_as_one_does(tmp_path, kind, metrics):
    curves = []
    for devices, flags in ((1, ()), (4, SPREAD)):
        workdir = tmp_path / str(devices)
        finish(start(workdir, *flags, devices=devices, config=f"{TINY}:{kind}"))
        lines = [line for line in read_metrics(workdir) if "loss" in line]
        curves.append([[line.get(name, 0) for line in lines] for name in (*metrics, "loss")])
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
    assert len(set(curves[0][0])) > 1


def test_two_processes_give_the_curve_of_one(whole, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = ("--distributed", f"--coordinator=127.0.0.1:{port}", "--processes=2")
    pair = [start(tmp_path, *common, f"--process={i}") for i in range(2)]
    outputs = [finish(process) for process in pair]
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)
    assert "this run" in outputs[0] and "this run" not in outputs[1]
