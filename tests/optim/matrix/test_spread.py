"""Stacks spread over a mesh, on four devices that the host pretends to have."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests import pretended_devices

ROOT = pathlib.Path(__file__).parents[3]


@pytest.mark.slow
def test_stacks_spread_over_a_mesh_make_the_same_steps():
    command = [sys.executable, "-m", "tests.optim.matrix.spread"]
    done = subprocess.run(
        command, cwd=ROOT, env=pretended_devices.environment(4), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert set(outcome) == {"kron", "cosmos"}
    for name, (difference, spread) in outcome.items():
        # Three steps of a hundredth, in float32.
        assert difference < 2e-6 and spread, f"{name}: {difference}, state spread: {spread}"
