"""Runs in processes of their own, on one core each; those that are done are not repeated."""

import os
import subprocess
import sys
from pathlib import Path

from experiments.records import read_metrics

METRIC = "validation_bits_per_byte"
SMALL = (  # the flags of a trial
    *("--config.task.length=16", "--config.task.text=experiments/configs"),
    *("--config.task.model.width=16", "--config.task.model.layers=1"),
    "--config.task.model.hidden=16",
)


def execute(workdir: Path, steps: int, *arguments: str) -> float:
    """Bits per byte after the last of `steps` that `python -m experiments` makes with `arguments`.

    Raises:
      FloatingPointError: the run stopped at a loss that was not finite.
      RuntimeError: the command failed.
    """
    bits = reached(workdir, steps)
    if bits is None:
        command = [sys.executable, "-m", "experiments", *arguments, f"--workdir={workdir}"]
        single = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}
        log = subprocess.run(
            command, env={**os.environ, **single}, capture_output=True, text=True, check=False
        )
        bits = reached(workdir, steps)
        if log.returncode or bits is None:
            stopped = "stopped at step" in log.stdout + log.stderr
            error = FloatingPointError if stopped else RuntimeError
            raise error(f"{' '.join(command)} failed:\n{log.stderr[-2000:]}")
        print(f"  {workdir}: {bits:.4f} bits per byte", flush=True)
    return bits


def reached(workdir: Path, step: int) -> float | None:
    """Bits per byte at a step of a run, or None where it has not come so far."""
    lines = read_metrics(workdir)
    return next((line[METRIC] for line in lines if METRIC in line and line["step"] == step), None)
