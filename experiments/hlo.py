"""Counts what a compiled program multiplies and sends between devices, from its text.

`jit(f).lower(...).compile().as_text()` is the partitioned HLO: what one device runs. Each
collective is counted as often as it runs (loops times their trip count), with its operand bytes and
the bytes that a device must receive whatever the algorithm, g devices in a group::

    all-gather          (g - 1) operand                all-to-all          (g - 1) / g operand
    reduce-scatter      (g - 1) / g operand            collective-permute              operand
    all-reduce        2 (g - 1) / g operand

Multiplications of `dot` and `convolution` are counted in the same way, two flops a multiply-add;
`cost_analysis()["flops"]` counts a loop's body once. Of a conditional's branches each counts once,
an upper bound, unless they are given weights.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1.0),
    **dict.fromkeys(("s4", "u4"), 0.5),
    **dict.fromkeys(("s16", "u16", "bf16", "f16"), 2.0),
    **dict.fromkeys(("s32", "u32", "f32"), 4.0),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8.0),
    "c128": 16.0,
}
KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d(?:fn)?)?)\[([\d,]*)\]")
_OPCODE = re.compile(r"(?:^|[\s)}])([a-z][\w\-]*)\(")


class Array(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> float:
        """Its size."""
        return BYTES[self.dtype] * math.prod(self.shape)


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str

    @property
    def bytes(self) -> float:
        """Size of the result."""
        return sum(array.bytes for array in self.arrays)


Computation = dict[str, Instruction]


class Traffic(NamedTuple):
    """What one kind of collective does in a run of the program."""

    runs: float
    operand_bytes: float
    received_bytes: float


class Work(NamedTuple):
    """One device, one run of the program."""

    flops: float  # of matrix products
    collectives: dict[str, Traffic]  # by kind

    @property
    def received_bytes(self) -> float:
        """Of all collectives."""
        return sum(traffic.received_bytes for traffic in self.collectives.values())


def work(
    text: str,
    *,
    branch_weights: Mapping[int, float] | None = None,
    unknown_trips: float | None = None,
) -> Work:
    """Adds up the program whose HLO text this is.

    Args:
      text: of the compiled program.
      branch_weights: how often the branch of that index of every conditional is taken.
      unknown_trips: runs of a loop that ends on data.

    Raises:
      ValueError: a loop's trip count cannot be read, and unknown_trips is None.
    """
    computations, entry = parse(text)
    found = re.search(r"num_partitions=(\d+)", text)
    devices = int(found.group(1)) if found else 1
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    flops, weights = 0.0, branch_weights or {}

    def visit(name: str, times: float) -> None:
        nonlocal flops
        table = computations.get(name, {})
        for instruction in table.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS:
                operand, received = _traffic(kind, instruction, table, devices)
                for i, amount in enumerate((1.0, operand, received)):
                    totals[kind][i] += times * amount
                continue
            if kind in ("dot", "convolution"):
                flops += times * _flops(instruction, table)
            for callee, repeats in _callees(instruction, computations, weights, unknown_trips):
                visit(callee, times * repeats)

    visit(entry, 1)
    collectives = {kind: Traffic(*values) for kind, values in sorted(totals.items())}
    return Work(flops, collectives)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations by name, and the name of the one that is run."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if match := _COMPUTATION.match(line):
                current = computations.setdefault(match.group(2), {})
                entry = match.group(2) if match.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif (match := _INSTRUCTION.match(line)) and (found := _instruction(*match.groups())):
            current[found.name] = found
    return computations, entry


def _instruction(name: str, body: str) -> Instruction | None:
    # A tuple result may hold layouts with parentheses of their own.
    result = f"({_balanced(body, 0)})" if body.startswith("(") else body.split(" ", 1)[0]
    match = _OPCODE.search(body, len(result))
    if match is None:
        return None
    operands = tuple(re.findall(r"%([\w.\-]+)", _balanced(body, match.end() - 1)))
    return Instruction(name, match.group(1), tuple(_arrays(result)), operands, body)


def _arrays(text: str) -> Iterable[Array]:
    for dtype, sizes in _ARRAY.findall(text):
        if dtype in BYTES:
            yield Array(dtype, tuple(int(size) for size in sizes.split(",") if size))


def _balanced(text: str, start: int) -> str:
    """The text between the parenthesis at `start` and its partner."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return text[start + 1 : i]
    return text[start + 1 :]


def _group_size(text: str, devices: int) -> int:
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=", text):
        return int(match.group(1).split(",")[-1])
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return match.group(1).count(",") + 1
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match.group(1)))
        # An axis or a part of one: 'axis' or 'axis':(1)4.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices


def _traffic(
    kind: str, instruction: Instruction, table: Computation, devices: int
) -> tuple[float, float]:
    size = _group_size(instruction.text, devices)
    operand = sum(table[name].bytes for name in instruction.operands if name in table)
    received = {
        "all-gather": size - 1,
        "all-reduce": 2 * (size - 1) / size,
        "collective-permute": 1,
        "collective-broadcast": 1,
    }.get(kind, (size - 1) / size)
    return operand, received * operand


def _flops(instruction: Instruction, table: Computation) -> float:
    """2 multiply-adds of a dot, or of a convolution, which is what a TPU makes of a dot."""
    left, right = (table[name].arrays[0].shape for name in instruction.operands[:2])
    result = math.prod(instruction.arrays[0].shape)
    if instruction.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.text)
        contracted = [int(axis) for axis in axes.group(1).split(",") if axis] if axes else []
        return 2.0 * result * math.prod(left[axis] for axis in contracted)
    labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.text)
    if labels is None:
        raise ValueError(f"the convolution {instruction.name!r} has no dim_labels.")
    kernel = zip(labels.group(1), right, strict=True)
    multiplied = math.prod(size for label, size in kernel if label != "o")
    return 2.0 * result * multiplied / _batch(instruction.text)


def _batch(text: str) -> int:
    """The batch of a dot that is written as a convolution.

    It is a window of the batch's size, of which each result sees one position: the operand is
    dilated by that size, or padded by one less.
    """

    def numbers(name: str, default: int) -> list[int]:
        found = re.search(rf"window=\{{[^}}]*\b{name}=([\d_x\-]+)", text)
        parts = found.group(1).split("x") if found else [str(default)] * len(sizes)
        return [int(part.split("_")[0]) for part in parts]

    sizes: list[int] = []
    sizes = numbers("size", 1)
    windows = zip(sizes, numbers("lhs_dilate", 1), numbers("pad", 0), strict=True)
    return math.prod(size for size, dilation, pad in windows if size in (dilation, pad + 1))


def _trips(instruction: Instruction, computations: Mapping[str, Computation]) -> int | None:
    """As annotated, else the constant that the condition compares a counter from 0 with."""
    if match := re.search(r'known_trip_count\D*"n":"?(\d+)', instruction.text):
        return int(match.group(1))
    condition = re.search(r"condition=%?([\w.\-]+)", instruction.text)
    lines = computations[condition.group(1)].values() if condition else []
    texts = [line.text for line in lines]
    constant = re.compile(r"^[su]\d+\[\].* constant\((\d+)\)")
    bounds = [int(match.group(1)) for text in texts if (match := constant.search(text))]
    if len(bounds) == 1 and any("direction=LT" in text for text in texts):
        return bounds[0]
    return None


def _callees(
    instruction: Instruction,
    computations: Mapping[str, Computation],
    branch_weights: Mapping[int, float],
    unknown_trips: float | None,
) -> list[tuple[str, float]]:
    """(computation, how often one execution of the instruction runs it)."""
    text = instruction.text
    if instruction.opcode == "while":
        [body] = re.findall(r"body=%?([\w.\-]+)", text)
        read = _trips(instruction, computations)
        trips = unknown_trips if read is None else read
        if trips is None:
            raise ValueError(
                f"unknown_trips is None; the loop {instruction.name!r}, whose trip count cannot be "
                f"read, needs a number."
            )
        return [(body, trips)]
    if instruction.opcode == "conditional":
        if match := re.search(r"branch_computations=\{([^}]*)\}", text):
            names = re.findall(r"%?([\w.\-]+)", match.group(1))
        else:
            kinds = ("false", "true")
            names = [re.findall(rf"{kind}_computation=%?([\w.\-]+)", text)[0] for kind in kinds]
        return [(name, branch_weights.get(i, 1)) for i, name in enumerate(names)]
    return [(name, 1) for name in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", text)]
