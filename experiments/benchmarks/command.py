"""`python -m experiments bench`: times candidates side by side and writes what it measured.

An entry is one file of this folder with a one-line docstring and a function
`candidates(quick: bool) -> Comparison`, whose candidates are timed, or a function
`programs(quick: bool) -> Mapping[str, Program]`, whose programs are compiled for TPU slices and not
run; nothing else needs to know of it.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from experiments import benchmarks
from experiments.benchmarks.harness import LIMIT, compare, compile_candidate
from experiments.environment import environment
from experiments.registry import choose, entries, listing
from experiments.table import table
from experiments.tpu_slice import run_python


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} rounds were asked for; at least 1 is needed")
    return number


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments bench", description=__doc__)
    parser.add_argument("name", nargs="?", help="the entry to run; all of them without it")
    parser.add_argument("--list", action="store_true", help="list the entries and stop")
    parser.add_argument("--repeats", type=positive, default=30, help="rounds that are counted")
    parser.add_argument("--quick", action="store_true", help="small sizes: a trial, no result")
    parser.add_argument("--output", type=Path, help="default: runs/bench/<platform>")
    return parser.parse_args(argv)


def mebibytes(count: float | None) -> str:
    return "-" if count is None else f"{count / 2**20:.1f}"


def ratio(record: Mapping[str, Any], peer: str) -> str:
    found = record["ratio_to"].get(peer)
    if found is None:
        return "-"
    low, high = found["paired_lower_quartile"], found["paired_upper_quartile"]
    return f"{found['of_medians']:.2f}; {found['paired_median']:.2f} [{low:.2f}, {high:.2f}]"


def finding(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def report(result: Mapping[str, Any]) -> str:
    """The measurements as a table, under what they are and where they were taken."""
    reference, place = result["reference"], result["environment"]
    compiled = [
        [
            name,
            f"{facts['compile_seconds']:.2f}",
            mebibytes(facts["temporary_bytes"]),
            mebibytes(facts["argument_bytes"]),
        ]
        for name, facts in result["compiled_only"].items()
    ]
    records = result["candidates"]
    columns = list(dict.fromkeys(c for r in records.values() for c in r.get("findings", {})))
    header = [
        "candidate",
        *columns,
        "median ms [quartiles]",
        f"over {reference}" if isinstance(reference, str) else "over its group's first",
        f"over {LIMIT}",
        "compile s",
        "temporary MiB",
        "argument MiB",
        "accessed MiB",
    ]
    rows = [
        [
            name,
            *(finding(record.get("findings", {}).get(column)) for column in columns),
            "{:.3f} [{:.3f}, {:.3f}]".format(
                1e3 * record["median_seconds"],
                1e3 * record["lower_quartile_seconds"],
                1e3 * record["upper_quartile_seconds"],
            ),
            ratio(record, record["peer"]),
            ratio(record, LIMIT),
            f"{record['compile_seconds']:.2f}",
            mebibytes(record["temporary_bytes"]),
            mebibytes(record["argument_bytes"]),
            mebibytes(record["bytes_accessed"]),
        ]
        for name, record in records.items()
    ]
    used = [i for i in range(len(header)) if any(row[i] != "-" for row in rows)]
    return "\n".join(
        [
            f"{result['name']}: {result['what']}",
            f"{place['device']} ({place['platform']}), {place['processor']}, "
            f"{place['cores']} cores, jax {place['jax']}, optax {place['optax']}, "
            f"{result['repeats']} rounds" + (", quick" if result["quick"] else ""),
            table([header[i] for i in used], [[row[i] for i in used] for row in rows]),
            "Ratios: of medians; median [quartiles] of the ratios within rounds.",
            *([table(["only compiled", *header[-4:-1]], compiled)] if compiled else []),
        ]
    )


def main(argv: list[str]) -> int:
    """Runs one entry or all, prints a table for each and writes <output>/<name>.json."""
    arguments = parse(argv)
    found = entries(benchmarks, "candidates") | entries(benchmarks, "programs")
    if arguments.list:
        print(table(["name", "what"], listing(found)))
        return 0
    output = arguments.output or Path("runs", "bench", jax.default_backend())
    name = arguments.name and arguments.name.replace("-", "_")
    chosen = choose(found, name, "bench")
    output.mkdir(parents=True, exist_ok=True)
    status = 0
    for name, module in chosen.items():
        if hasattr(module, "programs"):
            quick = ["--quick"] if arguments.quick else []
            written = ["--output", str(output / f"{name}.json")]
            command = ["-m", "experiments.benchmarks.ahead", module.__name__, *written]
            status = max(status, run_python([*command, *quick]))
            continue
        comparison = module.candidates(arguments.quick)
        repeats = min(arguments.repeats, comparison.most_repeats or arguments.repeats)
        with jax.enable_x64(comparison.x64):
            compiled_only = {
                name: compile_candidate(build()).facts
                for name, build in comparison.compiled_only.items()
            }
        result = {
            "name": name,
            "what": dict(listing(chosen))[name],
            "quick": arguments.quick,
            "repeats": repeats,
            "reference": comparison.reference,
            "ideal_bytes": comparison.ideal_bytes,
            "environment": environment(),
            "candidates": compare(comparison, repeats),
            "compiled_only": compiled_only,
        }
        file = output / f"{name}.json"
        file.write_text(json.dumps(result, indent=2) + "\n")
        print(report(result), f"Written to {file}.", sep="\n", end="\n\n")
    return status
