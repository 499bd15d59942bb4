"""Kernels of zeroth_order beside XLA's forms: both signs of a product, and many directions.

One chip, 4096 x 4096 weights in bfloat16, +-1. The pair multiplies (2, tokens, 4096); "sliced" has
its 12288 x 12288 weights in a stack. The update is donated and rounds stochastically. Times:

    python -m experiments.benchmarks.zeroth_order_kernels_ahead

counts the cycles of the compiler's schedules, of one core for 1024 weights, which are what
`zeroth_order.kernels.regimes` is made of: no stalls, and memory hidden wherever it can be. Each
fusion is counted alone. Nothing is run.
"""

import argparse
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import zeroth_order
from experiments.benchmarks import ahead, schedule
from experiments.benchmarks.ahead import Program, Slice
from experiments.environment import environment
from experiments.table import table
from experiments.tpu_slice import run_python
from zeroth_order.kernels.fused_update import fused_update
from zeroth_order.kernels.paired_product import paired_product
from zeroth_order.kernels.regimes import CHIPS

SLICES = {"v5e": Slice("v5e:2x2", (1,), ("x",)), "v5p": Slice("v5p:2x2x1", (1,), ("x",))}
WIDTH, SLICED_WIDTH = 4096, 12288
TOKENS, DIRECTIONS = (16, 128, 256, 512), (1, 8, 32, 64, 128)
DRAWS = zeroth_order.rademacher

Build = Callable[[jax.sharding.Mesh], tuple[Any, tuple[Any, ...]]]


class Case(NamedTuple):
    """A program for one chip, and the weights that it goes through."""

    build: Build
    weights: int


def abstract(mesh: jax.sharding.Mesh, *shapes: tuple[tuple[int, ...], Any]) -> tuple[Any, ...]:
    on_chip = jax.NamedSharding(mesh, jax.P())
    return tuple(jax.ShapeDtypeStruct(*shape, sharding=on_chip) for shape in shapes)


def pair(implementation: str, tokens: int, width: int, sliced: bool, mesh: Any) -> Any:
    """Both signs of a product, with weights of their own or with a layer of a stack."""

    def run(x: Any, w: Any, key: Any, scales: Any, layer: Any) -> Any:
        w = w[layer] if sliced else w
        return paired_product(x, w, key, scales, DRAWS, implementation=implementation)

    stack = (2,) if sliced else ()
    bfloat16, word = jnp.bfloat16, jnp.uint32
    x, w = ((2, tokens, width), bfloat16), ((*stack, width, width), bfloat16)
    shapes = abstract(mesh, x, w, ((), word), ((2,), jnp.float32), ((), word))
    return jax.jit(run), shapes


def update(implementation: str, directions: int, width: int, mesh: Any) -> Any:
    """A donated update, rounded stochastically."""

    def run(w: Any, keys: Any, coefficients: Any, rounding: Any) -> Any:
        return fused_update(w, keys, coefficients, DRAWS, rounding, implementation=implementation)

    word = jnp.uint32
    keys, coefficients = ((directions,), word), ((directions,), jnp.float32)
    shapes = abstract(mesh, ((width, width), jnp.bfloat16), keys, coefficients, ((), word))
    return jax.jit(run, donate_argnums=0), shapes


def cases(quick: bool) -> dict[str, Case]:
    """Every operation in both implementations."""
    width, sliced_width = (1024, 1024) if quick else (WIDTH, SLICED_WIDTH)
    tokens, directions = ((16,), (33,)) if quick else (TOKENS, DIRECTIONS)
    found = {}
    for form in ("xla", "pallas"):
        for t in tokens:
            build = functools.partial(pair, form, t, width, False)
            found[f"pair, {t} tokens, {form}"] = Case(build, width**2)
        build = functools.partial(pair, form, 128, sliced_width, True)
        found[f"pair, 128 tokens, sliced, {form}"] = Case(build, sliced_width**2)
        for q in directions:
            build = functools.partial(update, form, q, width)
            found[f"update, {q} directions, {form}"] = Case(build, width**2)
    return dict(sorted(found.items(), key=lambda item: item[0].rpartition(", ")[0]))


def programs(quick: bool) -> Mapping[str, Program]:
    """Each for one chip of v5e and v5p; `quick` takes 1024 x 1024 weights and v5e alone."""
    return {
        f"{name}, {place}": Program(where, case.build)
        for place, where in ({"v5e": SLICES["v5e"]} if quick else SLICES).items()
        for name, case in cases(quick).items()
    }


def count(folder: Path, quick: bool) -> dict[str, dict[str, Any]]:
    """Records of `ahead.measure`, with the cycles; for a process whose libtpu has the flags."""
    records = {}
    for name, program in programs(quick).items():
        for old in folder.iterdir():
            old.unlink()
        record = ahead.measure(program)
        form, _, place = name.rpartition(", ")
        parts = schedule.cycles(folder)
        of_1024 = 1024 * CHIPS[place].cores / cases(quick)[form].weights
        record["cycles"] = {part: n * of_1024 for part, n in parts.items()}
        records[name] = record
        print(f"  {name}: {sum(record['cycles'].values()):.1f}", file=sys.stderr, flush=True)
    return records


def row(name: str, record: Mapping[str, Any]) -> list[str]:
    return [
        name,
        f"{sum(record['cycles'].values()):.1f}",
        f"{record['temporary_bytes'] / 1e6:,.1f}",
        f"{record['compile_seconds']:.1f}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/zeroth_order_schedules.json"))
    parser.add_argument("--bundles", type=Path, help="where libtpu writes them: not to be given")
    arguments = parser.parse_args()
    if arguments.bundles is None:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LIBTPU_INIT_ARGS"] = schedule.flags(folder)
            return run_python(["-m", __spec__.name, *sys.argv[1:], "--bundles", folder])
    records = count(arguments.bundles, arguments.quick)
    header = ["program", "cycles for 1024 weights", "temporary MB", "compile s"]
    print(table(header, [row(name, record) for name, record in records.items()]))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"quick": arguments.quick, "environment": environment(), "programs": records}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
