"""Compiles the programs of an entry for TPU slices and writes what each chip would do.

A process of its own, started by `python -m experiments bench`, since libtpu has to be found before
jax is imported.
"""

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments import hlo
from experiments.environment import environment
from experiments.table import table
from experiments.tpu_slice import slice_mesh


class Slice(NamedTuple):
    """Chips and how they are named."""

    topology: str  # such as "v5p:8x8x8"
    shape: tuple[int, ...]
    axes: tuple[str, ...]


class Program(NamedTuple):
    """A function to compile for a slice."""

    where: Slice
    # From the mesh, which is set: the jitted function and its abstract arguments.
    build: Callable[[jax.sharding.Mesh], tuple[Any, tuple[Any, ...]]]
    branch_weights: Mapping[int, float] | None = None  # as in hlo.work
    unknown_trips: float | None = None


def measure(program: Program) -> dict[str, Any]:
    """What one chip holds, multiplies and receives in a run of the program."""
    mesh = slice_mesh(*program.where)
    with jax.set_mesh(mesh):
        function, arguments = program.build(mesh)
        lowered = function.lower(*arguments)
    with tempfile.TemporaryDirectory() as folder:
        # compiled.as_text() cannot read back every program of this compiler; its own dump it can.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        start = time.perf_counter()
        compiled = lowered.compile(compiler_options=options)
        seconds = time.perf_counter() - start
        (dumped,) = Path(folder).glob("*.after_optimizations.txt")
        text = dumped.read_text()
    weights, trips = program.branch_weights, program.unknown_trips
    work = hlo.work(text, branch_weights=weights, unknown_trips=trips)
    memory = compiled.memory_analysis()
    return {
        "slice": program.where._asdict(),
        "compile_seconds": seconds,
        "flops": work.flops,
        "received_bytes": work.received_bytes,
        "collectives": {kind: traffic._asdict() for kind, traffic in work.collectives.items()},
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
    }


def row(name: str, record: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    runs = [f"{traffic['runs']:g} {kind}" for kind, traffic in record["collectives"].items()]
    return [
        name,
        f"{record['flops']:.3g}",
        f"{record['received_bytes'] / 1e6:,.0f}",
        f"{record['temporary_bytes'] / 1e6:,.0f}",
        f"{record['argument_bytes'] / 1e6:,.0f}",
        f"{record['compile_seconds']:.0f}",
        ", ".join(runs) or "none",
    ]


HEADER = [
    "program",
    "flops",
    "received MB",
    "temporary MB",
    "argument MB",
    "compile s",
    "collectives",
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    module = importlib.import_module(arguments.module)
    what = (module.__doc__ or "").strip().split("\n")[0]
    print(f"{what} Nothing is run: what the TPU compiler says, per chip and step.", flush=True)
    records = {}
    for name, program in module.programs(arguments.quick).items():
        records[name] = measure(program)
        seconds, received = (records[name][k] for k in ("compile_seconds", "received_bytes"))
        print(f"  {name}: compiled in {seconds:.0f} s, {received / 1e6:,.0f} MB", flush=True)
    print(table(HEADER, [row(name, record) for name, record in records.items()]))
    result = {
        "what": what,
        "quick": arguments.quick,
        "environment": environment(),
        "programs": records,
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Written to {arguments.output}.")


if __name__ == "__main__":
    main()
