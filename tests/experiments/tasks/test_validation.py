import numpy as np
import pytest

from experiments.tasks.validation import batches, mean_over


@pytest.mark.parametrize("count", [1, 7, 8, 9, 24])
def test_every_sample_counts_once(count):
    x = np.arange(count, dtype=np.float32) + 1
    evaluate = mean_over(lambda p, b: {"x": p * b["x"], "one": b["x"] * 0 + 1}, {"x": x}, 8)
    assert evaluate(2.0, lambda batch: batch) == {"x": 2 * x.mean(), "one": 1.0}


def test_filling_samples_do_not_count_even_where_they_are_not_finite():
    x = np.array([1.0, 2.0, 0.0], np.float32)

    def measures(params, batch):
        return {"y": 1 / (batch["x"] * batch["weight"])}

    evaluate = mean_over(measures, {"x": x[:2]}, 8)
    assert evaluate(None, lambda batch: batch) == {"y": 0.75}


def test_batches_have_one_shape():
    found = list(batches({"x": np.arange(10).reshape(5, 2)}, 4))
    assert [batch["x"].shape for batch in found] == [(4, 2)] * 2
    assert [batch["weight"].tolist() for batch in found] == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert found[1]["x"][0].tolist() == [8, 9]
