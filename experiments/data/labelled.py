"""Labelled samples: scikit-learn's bundled sets, and folders of idx files."""

import hashlib
import pathlib
from typing import Any, NamedTuple

import numpy as np
import sklearn
import sklearn.datasets

from experiments.data.idx import read_idx
from experiments.data.order import sample_indices

BUNDLED = ("breast_cancer", "digits", "iris", "wine")
SPLIT_SEED = 0  # of the data, not of a run: every run sees the same split
VALIDATION_FRACTION = 0.2


class Samples(NamedTuple):
    """Inputs and their classes."""

    inputs: np.ndarray  # (samples, ...), uint8 images or float features
    labels: np.ndarray  # (samples,) int32 in [0, classes)


class Labelled(NamedTuple):
    """Samples to train on, and to validate on."""

    train: Samples
    validation: Samples
    classes: int
    provenance: dict[str, Any]  # source, samples, sha256


def bundled(name: str) -> Labelled:
    """A set that scikit-learn carries, (samples, features); a keyed fifth of it validates.

    Raises:
        ValueError: it is none of `BUNDLED`.
    """
    if name not in BUNDLED:
        raise ValueError(f"data: {name!r} is unknown; accepted: {', '.join(BUNDLED)}.")
    inputs, labels = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    labels = labels.astype(np.int32)
    order = sample_indices(SPLIT_SEED, 0, len(labels), len(labels))
    held_out, kept = np.split(order, [round(len(labels) * VALIDATION_FRACTION)])
    source = f"scikit-learn {sklearn.__version__} {name}"
    train, validation = (Samples(inputs[part], labels[part]) for part in (kept, held_out))
    return _labelled(source, train, validation)


def idx_folder(path: str) -> Labelled:
    """MNIST or Fashion-MNIST from a folder with its four files, each plain or .gz.

    The set's own test files (t10k-*) validate. Images are (samples, height, width) uint8.

    Raises:
        FileNotFoundError: the folder or one of the files is missing.
        ValueError: a file is damaged, or images and labels do not fit together.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"data: there is no folder {path!r}.")
    train, validation = (_idx_part(folder, part) for part in ("train", "t10k"))
    if train.inputs.shape[1:] != validation.inputs.shape[1:]:
        raise ValueError(
            f"data: {path!r} has train images of {train.inputs.shape[1:]} pixels and t10k images "
            f"of {validation.inputs.shape[1:]}; accepted: one size."
        )
    return _labelled(f"idx files in {folder.name}", train, validation)


def _idx_part(folder: pathlib.Path, part: str) -> Samples:
    images = read_idx(_plain_or_packed(folder / f"{part}-images-idx3-ubyte"), 3)
    labels = read_idx(_plain_or_packed(folder / f"{part}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels) or not images.size:
        raise ValueError(
            f"data: {str(folder)!r} has {part} images of shape {images.shape} and {len(labels)} "
            "labels; accepted: as many of both, at least one."
        )
    return Samples(images, labels.astype(np.int32))


def _plain_or_packed(path: pathlib.Path) -> pathlib.Path:
    packed = path.with_name(path.name + ".gz")
    return packed if packed.is_file() and not path.is_file() else path


def _labelled(source: str, train: Samples, validation: Samples) -> Labelled:
    digest = hashlib.sha256()
    for array in (*train, *validation):
        digest.update(array.tobytes())
    provenance = {
        "source": source,
        "train_samples": len(train.labels),
        "validation_samples": len(validation.labels),
        "sha256": digest.hexdigest(),
    }
    classes = int(max(train.labels.max(), validation.labels.max())) + 1
    return Labelled(train, validation, classes, provenance)


def prior_cross_entropy(data: Labelled) -> dict[str, float]:
    """Validation cross entropy, in nats, of predictions that do not look at the inputs."""
    counts = np.bincount(data.train.labels, minlength=data.classes) + 1.0
    frequencies = np.log(counts / counts.sum())
    return {
        "uniform": float(np.log(data.classes)),
        "class frequencies": -float(frequencies[data.validation.labels].mean()),
    }
