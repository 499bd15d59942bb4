"""Small programs compile for a TPU slice, and whole matrices spare most of the traffic."""

import json

import pytest

from experiments.benchmarks import command
from experiments.tpu_slice import libtpu_folder


@pytest.mark.slow
@pytest.mark.skipif(libtpu_folder() is None, reason="libtpu is not installed")
@pytest.mark.xdist_group("libtpu")
def test_quick_programs_compile_for_a_slice(tmp_path, capfd):
    arguments = ["matrix-sharded", "--quick", "--output", str(tmp_path)]
    assert command.main(arguments) == 0, capfd.readouterr().err
    programs = json.loads((tmp_path / "matrix_sharded.json").read_text())["programs"]
    received = {name.rpartition(", ")[0]: p["received_bytes"] for name, p in programs.items()}
    assert received["adamw"] == 0
    assert 0 < received["muon, mesh_axis=fsdp"] < received["optax muon, scan path"] / 3
    temporary = {name: program["temporary_bytes"] for name, program in programs.items()}
    assert [name for name, size in temporary.items() if size == 0] == ["adamw, v5e:4x4"]
