"""The idx format of MNIST and Fashion-MNIST: a header that states sizes, then unsigned bytes.

    0 0 8 d | d big-endian 32-bit sizes | data, last axis fastest

The sizes are compared with the file before anything of that size is allocated.
*Reference*: LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
"""

import gzip
import math
import pathlib
from typing import BinaryIO, cast

import numpy as np

UNSIGNED_BYTES = 8
DEFLATE_RATIO = 1032  # no deflate stream expands more


def read_idx(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """The uint8 array in a file, or in its gzip form where the name ends in .gz.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no idx file of unsigned bytes with that many dimensions, or its length is
            not the one that the header states.
    """
    if not path.is_file():
        raise FileNotFoundError(f"idx: there is no file {str(path)!r}.")
    size = path.stat().st_size
    packed = path.suffix == ".gz"
    try:
        with cast(BinaryIO, gzip.open(path) if packed else path.open("rb")) as file:
            shape = _shape(path, file.read(4 + 4 * dimensions), dimensions)
            expected = math.prod(shape)
            possible = size * DEFLATE_RATIO if packed else size - 4 - 4 * dimensions
            if expected > possible:
                raise ValueError(
                    f"idx: {str(path)!r} states the shape {shape}, more than a file of {size} "
                    "bytes can hold."
                )
            content = file.read(expected + 1)
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"idx: {str(path)!r} is no complete gzip file: {error}.") from error
    if len(content) != expected:
        found = f"{len(content)}" if len(content) < expected else "more"
        raise ValueError(
            f"idx: {str(path)!r} states the shape {shape}, {expected} bytes; it holds {found}."
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _shape(path: pathlib.Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    magic = bytes([0, 0, UNSIGNED_BYTES, dimensions])
    if len(header) < 4 + 4 * dimensions or header[:4] != magic:
        raise ValueError(
            f"idx: {str(path)!r} starts with {header[:4].hex(' ') or 'nothing'}; a file of "
            f"unsigned bytes in {dimensions} dimensions starts with {magic.hex(' ')}."
        )
    return tuple(int(n) for n in np.frombuffer(header[4:], ">u4"))
