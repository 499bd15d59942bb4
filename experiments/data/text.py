"""Text as bytes: the Python standard library's sources, or a file or folder that the user names.

Files are joined in the order of their relative paths, each followed by a zero byte, which tells a
model where one ends. They are split by file, by a hash of the relative path, so that no validation
byte shares a file with a training byte; text in too few files for that is cut, its tail validates.

Of the standard library every `.py` file counts but
- what is installed beside it (site-packages, dist-packages) and what is written by the machine
  (__pycache__, config-*, _sysconfigdata*), so that the bytes depend on the Python version alone;
- tests (test, tests, idle_test), more than half of the bytes and much alike;
- encodings: generated tables, near copies of each other, which would leak over the split;
- pydoc_data: generated, one file that would outweigh all others on the side that it fell to.
"""

import hashlib
import os
import pathlib
import platform
import sysconfig
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

VALIDATION_FRACTION = 0.05
MAXIMUM_BYTES = 2**31  # text is held in memory
BOUNDARY = b"\0"
LEFT_OUT = {
    *("site-packages", "dist-packages", "__pycache__"),
    *("test", "tests", "idle_test", "encodings", "pydoc_data"),
}


class Text(NamedTuple):
    """Bytes to train on, bytes to validate on, and what they are."""

    train: np.ndarray  # (bytes,) uint8
    validation: np.ndarray  # (bytes,) uint8
    provenance: dict[str, Any]  # source, files, bytes, sha256


def standard_library() -> Text:
    """The sources of the running Python's standard library."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in LEFT_OUT and not f.startswith("config-")]
        paths = (pathlib.Path(folder, file) for file in files if file.endswith(".py"))
        names += [p.relative_to(root) for p in paths if not p.name.startswith("_sysconfigdata")]
    if not names:
        raise FileNotFoundError(f"text: the standard library at {root} holds no source file.")
    return _read(root, sorted(names), f"standard library of Python {platform.python_version()}")


def text_at(path: str) -> Text:
    """The UTF-8 text of a file, or of the files in a folder and below.

    In a folder, hidden files and folders, links, and files that are not UTF-8 text are left out;
    `provenance` counts the last.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: there is no UTF-8 text in it, or more than 2 GiB.
    """
    root = pathlib.Path(path)
    if root.is_file():
        return _read(root.parent, [pathlib.Path(root.name)], path)
    if not root.is_dir():
        raise FileNotFoundError(f"text: there is no file or folder {path!r}.")
    found = (p.relative_to(root) for p in root.rglob("*") if p.is_file() and not p.is_symlink())
    names = sorted(p for p in found if not any(part.startswith(".") for part in p.parts))
    return _read(root, names, path)


def _read(root: pathlib.Path, names: Sequence[pathlib.Path], source: str) -> Text:
    total = sum((root / name).stat().st_size for name in names)
    if total > MAXIMUM_BYTES:
        raise ValueError(
            f"text: {source!r} has {total} bytes; accepted: at most {MAXIMUM_BYTES}, as text is "
            "held in memory."
        )
    contents = {name.as_posix(): (root / name).read_bytes() for name in names}
    texts = {name: content for name, content in contents.items() if _is_text(content)}
    if not any(texts.values()):
        what = "is empty or not UTF-8 text" if len(contents) == 1 else "holds no UTF-8 text file"
        raise ValueError(f"text: {source!r} {what}.")
    digest = hashlib.sha256()
    for name, content in texts.items():
        digest.update(name.encode() + BOUNDARY + content + BOUNDARY)
    train, validation = _split(texts)
    provenance = {
        "source": source,
        "files": len(texts),
        "files_left_out_as_no_text": len(contents) - len(texts),
        "train_bytes": train.size,
        "validation_bytes": validation.size,
        "sha256": digest.hexdigest(),
    }
    return Text(train, validation, provenance)


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return BOUNDARY not in content


def _split(texts: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray]:
    held_out = {name for name in texts if _fraction(name) < VALIDATION_FRACTION}
    train = _join(content for name, content in texts.items() if name not in held_out)
    validation = _join(content for name, content in texts.items() if name in held_out)
    share = validation.size / (train.size + validation.size)
    if VALIDATION_FRACTION / 5 <= share <= VALIDATION_FRACTION * 5:
        return train, validation
    whole = _join(texts.values())
    cut = whole.size - max(int(whole.size * VALIDATION_FRACTION), 1)
    return whole[:cut], whole[cut:]


def _join(contents: Iterable[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(content + BOUNDARY for content in contents), np.uint8)


def _fraction(name: str) -> float:
    """A number in [0, 1) that is a function of the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def bits_per_byte(train: np.ndarray, previous: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """What counting achieves: bits per byte of predicting `target` after `previous`.

    Probabilities are counts in `train` plus one. Arrays are uint8; the last two have one shape.
    """
    ones = np.bincount(train, minlength=256) + 1.0
    pairs = np.bincount(train[:-1].astype(np.int32) * 256 + train[1:], minlength=65536)
    twos = pairs.reshape(256, 256) + 1.0
    unigram = np.log2(ones / ones.sum())
    bigram = np.log2(twos / twos.sum(1, keepdims=True))
    return {
        "uniform": 8.0,
        "unigram": -float(unigram[target].mean()),
        "bigram": -float(bigram[previous, target].mean()),
    }
