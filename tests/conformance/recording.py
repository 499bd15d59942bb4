"""A recorded trajectory, read from an npz file whose contents are not trusted."""

import dataclasses
import json
import math
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

MAX_BYTES = 1 << 28  # all arrays of one file, unpacked
MAX_LEAVES = 10_000
FINAL = ("p64", "pn", "p")  # the arrays to compare with, best first


class RecordingError(Exception):
    """A file that cannot be replayed; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """One npz file: what its meta says, and its arrays by their names in the file."""

    stem: str
    name: str  # the method, the key of an adapter
    hyper: Mapping[str, Any]  # the official constructor's arguments
    meta: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    def tree(self, group: str, dtype: Any = None) -> dict[str, np.ndarray]:
        """The arrays called `group/<leaf>`, by leaf, floats as `dtype` if one is given."""
        found = {
            key.removeprefix(group + "/"): value
            for key, value in self.arrays.items()
            if key.startswith(group + "/")
        }
        if dtype is None:
            return found
        return {
            key: value.astype(dtype) if value.dtype.kind == "f" else value
            for key, value in found.items()
        }

    @property
    def final(self) -> str | None:
        """The group that holds the parameters after each step; None where there is none."""
        return next((group for group in FINAL if self.tree(group)), None)


def load(path: pathlib.Path) -> Recording:
    """Reads and checks a file; raises `RecordingError` for one that is not a recording."""
    try:
        arrays = _read_arrays(path)
    except RecordingError as error:
        raise RecordingError(f"{path.name} is no recording: {error}.") from error
    except (OSError, EOFError, ValueError, RuntimeError, KeyError) as error:
        raise RecordingError(f"{path.name} cannot be read: {_reason(error)}.") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise RecordingError(f"{path.name} is corrupt or truncated: {_reason(error)}.") from error
    try:
        return _interpret(path.stem, arrays)
    except RecordingError as error:
        raise RecordingError(f"{path.name} is no recording: {error}.") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Checks every header against the size of its entry before anything is allocated."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_LEAVES or sum(entry.file_size for entry in entries) > MAX_BYTES:
            raise RecordingError(f"it unpacks to more than {MAX_LEAVES} arrays or {MAX_BYTES} B")
        for entry in entries:
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                if version == (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                else:
                    shape, _, dtype = np.lib.format.read_array_header_2_0(file)
                if dtype.kind not in "biufU":
                    raise RecordingError(f"{entry.filename} holds {dtype}, not plain numbers")
                if math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
                    raise RecordingError(f"{entry.filename} is not as long as its shape {shape}")
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _interpret(stem: str, arrays: dict[str, np.ndarray]) -> Recording:
    meta = _read_meta(arrays.pop("meta", None))
    name, hyper = meta.get("name"), meta.get("hyper")
    if not isinstance(name, str) or not isinstance(hyper, dict):
        raise RecordingError("its meta needs a string `name` and an object `hyper`")
    hyper = dict(hyper)
    steps = meta.get("T", hyper.pop("T", None))  # the length of the run is no hyper-parameter
    recording = Recording(stem, name, hyper, meta, arrays)
    if recording.final is not None:
        _check_shapes(recording, steps)
    return recording


def _read_meta(array: np.ndarray | None) -> dict[str, Any]:
    if array is None or array.shape != () or array.dtype.kind != "U":
        raise RecordingError("it has no text called meta")
    try:
        meta = json.loads(str(array[()]))
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecordingError(f"its meta is not JSON ({_reason(error)})") from error
    if not isinstance(meta, dict):
        raise RecordingError("its meta is not a JSON object")
    return meta


def _check_shapes(recording: Recording, steps: Any) -> None:
    start, final = recording.tree("p0"), recording.tree(str(recording.final))
    if set(start) != set(final):
        raise RecordingError(f"p0 and {recording.final} hold different leaves")
    lengths = {len(value) if value.ndim else 0 for value in final.values()}
    if len(lengths) != 1 or 0 in lengths or (steps is not None and lengths != {steps}):
        raise RecordingError(
            f"{recording.final} has {sorted(lengths)} steps where meta has {steps}"
        )
    (length,) = lengths
    gradients = recording.tree("g")
    if gradients and set(gradients) != set(start):
        raise RecordingError("p0 and g hold different leaves")
    for group, leaves in ((recording.final, final), ("g", gradients)):
        for leaf, value in leaves.items():
            if value.shape != (length, *start[leaf].shape):
                raise RecordingError(f"{group}/{leaf} has shape {value.shape}")
    for group, leaves in (("p0", start), (recording.final, final), ("g", gradients)):
        for leaf, value in leaves.items():
            if value.dtype.kind != "f" or not np.isfinite(value).all():
                raise RecordingError(f"{group}/{leaf} holds something else than finite floats")
