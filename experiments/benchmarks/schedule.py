"""Cycles of a compiled TPU program, by the bundles of its schedule: no stalls, no memory.

A TPU core issues one bundle of instructions a cycle, so that the bundles of every loop times its
turns are the cycles of a program whose copies are hidden behind its work. libtpu writes the final
bundles of every fusion and kernel where `flags` asks it to, before it is loaded.
"""

import re
from collections.abc import Mapping
from pathlib import Path

_BUNDLE = re.compile(r"^\s*(?:0x)?[0-9a-f]+\s+(\w\w)?\s*:\s*((?:>\s*)*)\{")
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder (\(\S+\), )?%(\w+), (\d+) /\* loop exit test")
_STEP = re.compile(r"%(\w+) = sadd\.s32 (\d+), ")
_PIPELINE = "iteration index, stage"  # such a loop has two turns more, to fill and to drain it


def flags(folder: Path | str) -> str:
    """What LIBTPU_INIT_ARGS has to be for `cycles`."""
    wanted = "--xla_jf_dump_llo_pass_label_regex=.*final_bundles"
    return f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true {wanted}"


def cycles(folder: Path) -> Mapping[str, int]:
    """Of every fusion and kernel whose bundles lie in the folder."""
    found = {}
    for file in sorted(folder.glob("*-final_bundles.txt")):
        name = re.sub(r"^\d+-|(-\d+)?-final_bundles\.txt$", "", file.name)
        if not name.startswith(("TLP", "<late")) and "schedule-analysis" not in name:
            found[name] = cycles_of(file.read_text())
    return found


def cycles_of(text: str) -> int:
    """Bundles times the turns of the loops around them.

    Raises:
      ValueError: the turns of a loop are not in the text.
    """
    headers, depths, exits = [], [], []
    steps = {name: int(step) for name, step in _STEP.findall(text)}
    for line in text.splitlines():
        if bundle := _BUNDLE.match(line):
            headers.append(bundle[1] == "LB")
            depths.append(bundle[2].count(">"))
        for predicate, counter, limit in _EXIT.findall(line):
            turns = -(-int(limit) // steps.get(counter, 1))
            exits.append((len(depths) - 1, bool(predicate), turns))
    loops = [(i, _end(i, headers, depths)) for i, header in enumerate(headers) if header]
    turns_of: dict[tuple[int, int], int] = {}
    for at, predicated, turns in exits:
        around = sorted(loop for loop in loops if loop[0] <= at <= loop[1])
        # A test under the predicate of an inner loop's exit is the outer loop's.
        inner = around[-1] in turns_of or (predicated and len(around) > 1)
        turns_of[around[-2 if inner else -1]] = turns
    times = [1] * len(depths)
    for loop in loops:
        if loop not in turns_of:
            raise ValueError(f"cycles_of: the loop at bundle {loop[0]} has no exit test.")
        filling = 2 if depths[loop[0]] == 1 and _PIPELINE in text else 0
        for i in range(loop[0], loop[1] + 1):
            times[i] *= turns_of[loop] - filling
    return sum(times)


def _end(start: int, headers: list[bool], depths: list[int]) -> int:
    """The last bundle of the loop: before the next loop beside it, the last that is as deep.

    A bundle between may be marked less deep, where its first instruction is predicated.
    """
    depth = depths[start]
    beside = (i for i in range(start + 1, len(depths)) if headers[i] and depths[i] <= depth)
    return max(i for i in range(start, next(beside, len(depths))) if depths[i] >= depth)
