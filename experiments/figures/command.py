"""`python -m experiments reproduce`: a paper's figure, its data, and claim | measured | verdict.

An entry is one file of this folder with a one-line docstring and a constant `TARGET`; nothing else
needs to know of it.
"""

import argparse
import csv
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style

from experiments import figures
from experiments.environment import environment
from experiments.figures.target import Part, Table, Target, verdict
from experiments.registry import choose, entries, listing
from experiments.table import table

STYLE = Path(__file__).with_name("style.mplstyle")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments reproduce", description=__doc__)
    parser.add_argument("name", nargs="?", help="the target to reproduce; all of them without it")
    parser.add_argument("--list", action="store_true", help="list the targets and stop")
    parser.add_argument("--quick", action="store_true", help="small sizes: a trial, no result")
    parser.add_argument("--output", type=Path, help="default: runs/reproduce/<name>")
    return parser.parse_args(argv)


def write_table(data: Table, file: Path) -> None:
    """Writes the columns as CSV, real numbers with six significant digits."""
    columns = [
        [f"{value:.6g}" for value in column] if column.dtype.kind == "f" else column.tolist()
        for column in data.values()
    ]
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(data)
        writer.writerows(zip(*columns, strict=True))


def read_table(file: Path) -> dict[str, np.ndarray]:
    """Reads back what `write_table` wrote; a column is of integers, reals or text, as it can be."""

    def parsed(column: Sequence[str]) -> np.ndarray:
        for kind in (int, float):
            try:
                return np.array([kind(value) for value in column])
            except ValueError:
                continue
        return np.array(column)

    with file.open(newline="") as stream:
        header, *rows = csv.reader(stream)
    return {name: parsed(column) for name, column in zip(header, zip(*rows), strict=True)}


def save_figure(target: Target, data: Table, output: Path, name: str) -> None:
    """Draws the figure in the common style as PNG and PDF."""
    with style.context(STYLE):
        figure = target.plot(data)
        figure.savefig(output / f"{name}.png", metadata={"Software": None})
        figure.savefig(output / f"{name}.pdf", metadata={"CreationDate": None})


def report(name: str, target: Target, parts: Sequence[Part], quick: bool) -> str:
    """What was claimed, what was measured, and the verdict."""
    paper = target.paper
    paragraphs = [
        f"{name}" + (" (quick: a trial, no result)" if quick else ""),
        f"{paper.authors} ({paper.year}), {paper.title}, arXiv {paper.arxiv}",
        f"Figure: {target.figure}",
        f"Claim: {target.claim}",
        f"Rule: {target.rule}",
    ]
    rows = [[part.claim, part.measured, "holds" if part.holds else "fails"] for part in parts]
    return "\n".join(
        [
            *(textwrap.fill(paragraph, 100, subsequent_indent="  ") for paragraph in paragraphs),
            table(["claim", "measured", "verdict"], rows),
            f"Verdict: {verdict(parts)}.",
        ]
    )


def reproduce(name: str, target: Target, quick: bool, output: Path) -> None:
    """Measures, judges and draws one target, writes <name>.csv|json|png|pdf and prints.

    Judged is what the file holds, so that it gives every printed digit again.
    """
    file = output / f"{name}.csv"
    output.mkdir(parents=True, exist_ok=True)
    data = target.measure(quick)
    write_table(data, file)
    parts = target.judge(read_table(file))
    record: dict[str, Any] = {
        "name": name,
        "paper": target.paper._asdict(),
        "figure": target.figure,
        "claim": target.claim,
        "rule": target.rule,
        "quick": quick,
        "parts": [part._asdict() for part in parts],
        "verdict": verdict(parts),
        "environment": environment(),
    }
    (output / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    save_figure(target, data, output, name)
    print(report(name, target, parts, quick), f"Written to {output}.", sep="\n", end="\n\n")


def main(argv: list[str]) -> int:
    """Reproduces one target or all of them."""
    arguments = parse(argv)
    found = entries(figures, "TARGET")
    if arguments.list:
        print(table(["name", "what"], listing(found)))
        return 0
    for name, module in choose(found, arguments.name, "reproduce").items():
        output = arguments.output or Path("runs", "reproduce", name)
        reproduce(name, module.TARGET, arguments.quick, output)
    return 0
