"""Stacks spread over a mesh, on four devices that the host pretends to have."""

import json
import os
import pathlib
import subprocess
import sys

import jax

ROOT = pathlib.Path(__file__).parents[3]


def test_stacks_spread_over_a_mesh_make_the_same_steps():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"] or ""),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    command = [sys.executable, "-m", "tests.optim.matrix.spread"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert set(outcome) == {"kron", "cosmos"}
    for name, (difference, spread) in outcome.items():
        # Three steps of a hundredth, in float32.
        assert difference < 2e-6 and spread, f"{name}: {difference}, state spread: {spread}"
