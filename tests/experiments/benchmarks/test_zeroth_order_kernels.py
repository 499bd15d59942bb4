"""Candidates do the same work; the kernels compile for a chip in fewer cycles than XLA's forms."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.benchmarks import zeroth_order_kernels
from experiments.tpu_slice import libtpu_folder


def test_pairs_of_every_form_are_those_of_two_products():
    """But the plain ones, which are near by; both to the error of a sum of 64 float32."""
    found = {}
    for name, build in zeroth_order_kernels.candidates(quick=True).candidates.items():
        if name.startswith("pair"):
            candidate = build()
            found[name.rpartition(": ")[2]] = jax.jit(candidate.step)(
                candidate.carry, candidate.inputs
            )
    expected = found.pop("two products")
    assert 1e-3 < np.abs(found.pop("plain") - expected).max() < 0.1
    for product in found.values():
        np.testing.assert_allclose(product, expected, atol=64 * 2.0**-24)
    assert set(found) == {"map", "vmap", "copies"}


@pytest.mark.slow
@pytest.mark.skipif(libtpu_folder() is None, reason="libtpu is not installed")
@pytest.mark.xdist_group("libtpu")
def test_schedules_of_the_kernels_are_shorter(tmp_path):
    output = tmp_path / "schedules.json"
    module = "experiments.benchmarks.zeroth_order_kernels_ahead"
    command = [sys.executable, "-m", module, "--quick", "--output", str(output)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    programs = json.loads(output.read_text())["programs"]
    cycles = {name: sum(record["cycles"].values()) for name, record in programs.items()}
    for what in ("pair, 16 tokens", "update, 33 directions"):
        assert 0 < 1.4 * cycles[f"{what}, pallas, v5e"] < cycles[f"{what}, xla, v5e"]
        assert programs[f"{what}, pallas, v5e"]["temporary_bytes"] == 0
