import gzip
import pathlib

import numpy as np
import pytest

from experiments.data.idx import read_idx


def encode(array):
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_idx(path: pathlib.Path, array) -> pathlib.Path:
    content = encode(array)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


IMAGES = np.arange(2 * 3 * 4).reshape(2, 3, 4)


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_round_trip(tmp_path, name):
    found = read_idx(write_idx(tmp_path / name, IMAGES), 3)
    assert found.dtype == np.uint8
    assert np.array_equal(found, IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"\x89PNG" + bytes(40), "starts with 89 50 4e 47"),
        (encode(IMAGES[0]), "in 3 dimensions"),
        (bytes([0, 0, 13, 3]) + encode(IMAGES)[4:], "starts with 00 00 0d 03"),
        (encode(IMAGES)[:10], "in 3 dimensions"),
        (encode(IMAGES)[:-1], "more than a file of 39 bytes can hold"),
        (encode(IMAGES) + b"x", "24 bytes; it holds more"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(24), "can hold"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(path, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(encode(IMAGES)[:-1], mtime=0), "24 bytes; it holds 23"),
        (gzip.compress(encode(IMAGES) + b"x", mtime=0), "it holds more"),
        (gzip.compress(encode(IMAGES), mtime=0)[:-12], "no complete gzip file"),
        (encode(IMAGES), "no complete gzip file"),
        (gzip.compress(bytes([0, 0, 8, 3]) + b"\x00\x10\x00\x00" * 3, mtime=0), "can hold"),
    ],
)
def test_damaged_packed_files(tmp_path, content, message):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(path, 3)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_idx(tmp_path / "images", 3)
