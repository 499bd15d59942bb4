"""python -m experiments list [WORD ...]: every config, what it is and its expected minutes."""

import ast
import pathlib
import re
from typing import NamedTuple

from experiments.config import UserError
from experiments.table import table

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = ROOT / "experiments" / "configs"
MINUTES = re.compile(
    r"^Minutes(?:, (?P<variant>\S+))?: (?P<minutes>[\d.]+) \((?P<hardware>.+)\)$", re.M
)


class Entry(NamedTuple):
    """One config, or one variant of it: `config` is what --config takes."""

    config: str
    minutes: float
    hardware: str
    description: str


def entries() -> list[Entry]:
    """All configs of experiments/configs, in the order of their paths."""
    paths = sorted(path for path in CONFIGS.glob("*/*.py") if path.name != "__init__.py")
    return [entry for path in paths for entry in _entries(path)]


def _entries(path: pathlib.Path) -> list[Entry]:
    """From the docstring: a first line, and `Minutes[, VARIANT]: NUMBER (HARDWARE)` lines."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    found = list(MINUTES.finditer(docstring))
    if not found:
        raise UserError(f"{path}: the docstring has no line `Minutes: NUMBER (HARDWARE)`.")
    name = path.relative_to(ROOT).as_posix()
    return [
        Entry(
            f"{name}:{line['variant']}" if line["variant"] else name,
            float(line["minutes"]),
            line["hardware"],
            docstring.splitlines()[0],
        )
        for line in found
    ]


def main(argv: list[str]) -> int:
    if {"-h", "--help"} & {*argv}:
        print(__doc__)
        return 0
    shown = [entry for entry in entries() if all(word in entry.config for word in argv)]
    if not shown:
        raise UserError(f"list: no config's path holds {' and '.join(map(repr, argv))}.")
    rows = [[e.config, f"{e.minutes:g}", e.hardware, e.description] for e in shown]
    print(table(["config", "minutes", "on", "description"], rows))
    return 0
