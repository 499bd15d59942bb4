"""Compiles for a TPU slice on a machine that has none.

libtpu holds the real TPU compiler; a topology such as "v5p:8x8x8" describes a slice to it. Nothing
can be run, but memory, flops and collectives of every chip are known. jax looks for a TPU wherever
libtpu can be imported, so it is left out of the environment that runs things: it lies in a folder
of its own, and a process that compiles for a slice is given that folder and `ENVIRONMENT` before it
imports jax.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from experiments.config import UserError

# Otherwise libtpu asks a metadata server that exists in Google's cloud alone, and takes a lock that
# a second process, which could compile as well, would wait for.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def libtpu_folder() -> Path | None:
    """Where libtpu can be imported from: `tpu-aot` in the environment, else the usual path."""
    apart = Path(sys.prefix, "tpu-aot")
    if (apart / "libtpu").is_dir():
        return apart
    found = importlib.util.find_spec("libtpu")
    return Path(found.origin).parents[1] if found and found.origin else None


def run_python(arguments: Sequence[str]) -> int:
    """Runs `python *arguments` in a process that can compile for a slice; its exit status.

    Raises:
      UserError: libtpu is not installed.
    """
    folder = libtpu_folder()
    if folder is None:
        raise UserError(
            "compiling for a TPU slice needs libtpu; `make .venv/ready` installs it, or: "
            f"pip install --no-deps --target {Path(sys.prefix, 'tpu-aot')} libtpu, in the version "
            "of constraints.txt."
        )
    path = os.pathsep.join(
        [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")]), str(folder)]
    )
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *arguments], env=environment, check=False).returncode


def slice_mesh(topology: str, shape: Sequence[int], axes: Sequence[str]) -> Mesh:
    """A mesh over the first chips of a described slice, such as ("v5e:16x16", (32, 8), axes)."""
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    count = int(np.prod(shape))
    if count > len(chips):
        raise UserError(
            f"a mesh of shape {tuple(shape)} wants {count} chips; {topology} has {len(chips)}."
        )
    types = (AxisType.Auto,) * len(axes)
    return Mesh(np.array(chips[:count]).reshape(shape), tuple(axes), axis_types=types)
