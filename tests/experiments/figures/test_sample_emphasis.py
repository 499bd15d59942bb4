"""Half the classes are rare, their errors are counted among their own, and the judge can say no."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.config import Emphasis
from experiments.figures import sample_emphasis as target

pytestmark = pytest.mark.slow


def test_classes_from_five_on_are_rare_in_training_alone():
    train, validation = target.data()
    counts = np.bincount(train["label"])
    assert counts[:5].min() > 130 and 13 <= counts[5:].min() <= counts[5:].max() <= 15
    assert np.bincount(validation["label"]).min() > 20
    assert {np.shape(image) for image in train["image"][:2]} == {(8, 8)}


def test_batches_are_of_these_samples_and_errors_of_these_classes():
    task = target.RareDigits().build()
    train, validation = target.data()
    epoch = task.batches(0, 0, len(train["label"]))
    assert np.bincount(epoch["label"]).tolist() == np.bincount(train["label"]).tolist()
    params = task.init(jax.random.key(0))
    guess = np.argmax(np.asarray(task.logits(params, validation)), axis=-1)
    rare = validation["label"] >= 5
    found = task.evaluate(params, jax.device_put)
    assert found["error"] == pytest.approx(np.mean(guess != validation["label"]), rel=1e-5)
    expected = np.mean(guess[rare] != validation["label"][rare])
    assert found["rare_error"] == pytest.approx(expected, rel=1e-5)


def test_schemes_share_starts_and_part_after_the_warm_up():
    config = dataclasses.replace(target.get_config(), task=target.RareDigits(), steps=100)
    weighted = dataclasses.replace(config, emphasis=Emphasis("linupper", 0.4, warmup=0.5))
    (_, _, start), (_, _, end) = target.curve(config, seeds=1)
    (_, _, same), (_, _, other) = target.curve(weighted, seeds=1)
    assert start == same
    assert other["loss"] != end["loss"] and other["loss"] == pytest.approx(end["loss"], rel=0.5)
    assert end["loss"] < 0.7 * start["loss"]


def table(**changes):
    """What holds, by hand, with the last loss of some schemes changed."""
    last = {"uniform": 4.0, "linupper": 1.0, "quadratic": 2.0, "extremes": 3.0} | changes
    rows = []
    for scheme, temperature in target.runs():
        for seed in range(3):
            for step in (0, 100):
                value = last[scheme] + 0.01 * seed if step else 9.0
                rows.append((scheme, temperature, seed, step, value, value, value))
    columns = (np.array(column) for column in zip(*rows, strict=True))
    return dict(zip(target.COLUMNS, columns, strict=True))


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({}, []),
        ({"linupper": 2.5}, [3]),
        ({"linupper": 3.5}, [3, 4]),
        ({"linupper": 5.0}, [0, 1, 3, 4]),
        ({"quadratic": 5.0}, [2]),
    ],
)
def test_each_part_can_fail(changes, fails):
    parts = target.judge(table(**changes))
    assert [i for i, part in enumerate(parts) if not part.holds] == fails


def test_a_difference_within_its_error_does_not_hold():
    data = table(linupper=3.995)
    noise = np.random.default_rng(0).normal(size=len(data["loss"]))
    noisy = {**data, "loss": data["loss"] + noise}
    assert not target.below("", noisy, "linupper", "uniform", "loss").holds


def test_both_temperatures_are_drawn():
    figure = target.plot(table())
    assert len(figure.axes) == 4
    assert [line.get_label() for line in figure.axes[0].lines] == ["uniform", *target.SCHEMES]
