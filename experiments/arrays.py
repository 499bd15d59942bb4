"""Arrays that configs name: .npz files without pickled objects, each array with its fingerprint."""

import hashlib
import pathlib
import zipfile

import numpy as np

from experiments.config import StoredArray, UserError


def fingerprint(array: np.ndarray) -> str:
    """SHA-256 of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def read_array(stored: StoredArray) -> np.ndarray:
    """The array that a config names.

    Raises:
        UserError: it is not there, or another one is.
    """
    path = pathlib.Path(stored.path)
    if not path.is_file():
        raise UserError(f"the config names the array file {path}, which does not exist.")
    try:
        with np.load(path, allow_pickle=False) as file:
            array = file[stored.name]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} holds no array {stored.name!r} that can be read.") from error
    if fingerprint(array) != stored.sha256:
        raise UserError(
            f"{path} has changed: the config names its {stored.name} by the SHA-256 "
            f"{stored.sha256[:12]}..., and they have {fingerprint(array)[:12]}..."
        )
    return array
