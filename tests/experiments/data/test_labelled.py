import math

import numpy as np
import pytest
import sklearn.datasets

from experiments.data.labelled import (
    BUNDLED,
    Labelled,
    Samples,
    bundled,
    idx_folder,
    prior_cross_entropy,
)
from tests.experiments.data.test_idx import write_idx


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_are_split_without_loss(name):
    data = bundled(name)
    inputs, labels = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    assert len(data.validation.labels) == round(0.2 * len(labels))
    rows = np.concatenate([data.train.inputs, data.validation.inputs])
    found = np.column_stack([rows, np.concatenate([data.train.labels, data.validation.labels])])
    expected = np.column_stack([inputs, labels])
    assert np.array_equal(np.unique(found, axis=0), np.unique(expected, axis=0))
    assert len(found) == len(expected)
    assert data.classes == len(set(labels)) == len(set(data.train.labels))
    assert data.train.labels.dtype == np.int32
    assert bundled(name).provenance == data.provenance


def test_unknown_set():
    with pytest.raises(ValueError, match="'boston' is unknown; accepted: breast_cancer"):
        bundled("boston")


def write_folder(path, suffix="", train=5, validation=3, pixels=(6, 6)):
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", validation)):
        images = rng.integers(0, 256, (count, *pixels))
        write_idx(path / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(path / f"{part}-labels-idx1-ubyte{suffix}", np.arange(count) % 4)
    return str(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder(tmp_path, suffix):
    data = idx_folder(write_folder(tmp_path, suffix))
    assert data.train.inputs.shape == (5, 6, 6) and data.validation.inputs.shape == (3, 6, 6)
    assert data.train.labels.tolist() == [0, 1, 2, 3, 0]
    assert data.classes == 4
    assert data.provenance["train_samples"] == 5


def test_idx_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        idx_folder(str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        idx_folder(str(tmp_path))
    path = write_folder(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.arange(2))
    with pytest.raises(ValueError, match=r"t10k images of shape \(3, 6, 6\) and 2 labels"):
        idx_folder(path)
    write_folder(tmp_path)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((3, 5, 5)))
    with pytest.raises(ValueError, match="accepted: one size"):
        idx_folder(path)


def test_prior_cross_entropy_by_hand():
    train, validation = (
        Samples(np.zeros((len(labels), 1)), np.array(labels, np.int32))
        for labels in ([0, 0, 1], [0, 1])
    )
    found = prior_cross_entropy(Labelled(train, validation, 2, {}))
    assert found["uniform"] == pytest.approx(math.log(2))
    expected = -(math.log(3 / 5) + math.log(2 / 5)) / 2
    assert found["class frequencies"] == pytest.approx(expected)
