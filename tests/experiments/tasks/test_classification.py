import jax
import numpy as np
import pytest

from experiments.models.mlp import Mlp
from experiments.tasks.classification import Classification
from tests.experiments.data.test_idx import write_idx
from tests.experiments.data.test_labelled import write_folder


def test_digits():
    task = Classification(model=Mlp((4,))).build()
    assert task.facts["samples"] == 1438
    assert task.facts["provenance"]["validation_samples"] == 359
    batch = task.batches(0, 0, 3)
    assert batch["image"].shape == (3, 8, 8) and batch["image"].dtype == np.uint8
    assert batch["image"].max() <= 16


def test_error_and_loss_by_hand():
    """A linear model on standardized pixels, from the batch and the training pixels alone."""
    task = Classification(model=Mlp(())).build()
    params = jax.jit(task.init)(jax.random.key(0))
    batch, all_pixels = task.batches(0, 0, 9), task.batches(0, 0, 1438)["image"]
    loss, metrics = task.loss(params, batch, jax.random.key(1))
    x = (batch["image"].reshape(9, 64) - all_pixels.mean()) / all_pixels.std()
    logits = np.asarray(x @ params["layer1"]["kernel"] + params["layer1"]["bias"])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert float(loss) == pytest.approx(-log_p[np.arange(9), batch["label"]].mean(), rel=1e-4)
    assert float(metrics["error"]) == pytest.approx((logits.argmax(1) != batch["label"]).mean())


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder(tmp_path, suffix):
    path = write_folder(tmp_path, suffix, train=20, validation=11)
    task = Classification(data=path, model=Mlp((4,))).build()
    assert task.facts["samples"] == 20
    params = jax.jit(task.init)(jax.random.key(0))
    assert params["layer1"]["kernel"].shape == (36, 4)
    metrics = task.evaluate(params, lambda batch: batch)
    assert metrics["error"] * 11 == pytest.approx(round(metrics["error"] * 11), abs=1e-5)
    assert metrics["loss"] > 0


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder 'numbers'"):
        Classification(data="numbers").build()
    path = write_folder(tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((5, 6, 6)))
    with pytest.raises(ValueError, match="all pixels"):
        Classification(data=path).build()
