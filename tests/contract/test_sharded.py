"""Sharded equals unsharded, on four devices that the host pretends to have."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests import pretended_devices

from .sharded import DEVICES, FAULT, sharded_equals_unsharded
from .table import ROWS

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.slow  # a process that compiles every row for four devices


@pytest.fixture(scope="module")
def outcome():
    command = [sys.executable, "-m", "tests.contract.sharded"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=pretended_devices.environment(DEVICES),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_sharded_equals_unsharded(row, outcome):
    if sharded_equals_unsharded.__name__ in row.waive:
        assert outcome[row.name] is not None, f"{row.name} keeps its promise: strike the waiver"
    else:
        assert outcome[row.name] is None, outcome[row.name]


def test_sharded_check_notices_its_planted_fault(outcome):
    assert "AssertionError" in outcome[FAULT.name] and "differs by" in outcome[FAULT.name]
    assert set(outcome) == {row.name for row in ROWS} | {FAULT.name}
