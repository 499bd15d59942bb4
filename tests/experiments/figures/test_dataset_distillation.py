"""The hypergradient is that of scikit-learn's minimiser, and the judge can say no to each part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from experiments.figures import dataset_distillation as target


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def split():
    return target.split(0)


@pytest.fixture(scope="module")
def few(split):
    """Some training images, so that differences are quick."""
    return target.Digits(*(part[:200] for part in split[0]))


@pytest.fixture(scope="module")
def images(few):
    return target.drawn(few, 0)


def outer_loss(images, train):
    """Scikit-learn's minimiser, and the loss by hand."""
    strength = 1 / (target.PENALTY * 10)
    model = LogisticRegression(
        C=strength, fit_intercept=False, solver="newton-cg", tol=1e-12, max_iter=1000
    )
    logits = train.images @ model.fit(images, np.arange(10)).coef_.T
    logits -= logits.max(1, keepdims=True)
    chosen = logits[np.arange(len(train.labels)), train.labels]
    return np.mean(np.log(np.exp(logits).sum(1)) - chosen)


@pytest.mark.parametrize("method", [target.IMPLICIT, target.UNROLLED])
def test_hypergradient_is_that_of_the_minimiser_of_scikit_learn(images, few, method):
    train = target.Digits(*map(jnp.asarray, few))
    gradient, value = jax.jit(lambda x: target.hypergradient(x, train, 1000, method))(images)
    np.testing.assert_allclose(value, outer_loss(images, few), rtol=1e-6)
    direction = np.random.default_rng(0).standard_normal(images.shape)
    h = 1e-3
    up, down = (outer_loss(images + s * direction, few) for s in (h, -h))
    # Differences leave h^2 of third derivatives of order one.
    np.testing.assert_allclose(np.vdot(gradient, direction), (up - down) / (2 * h), rtol=1e-3)


def test_a_fifth_of_each_class_is_held_out(split):
    train, test = split
    assert len(train.labels) + len(test.labels) == 1797
    share = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    np.testing.assert_allclose(share, 0.2, atol=0.01)
    assert train.images.min() == 0
    assert train.images.max() == 1


def test_rivals_are_one_image_a_class(split):
    train, _ = split
    means = target.class_means(train)
    for seed in range(2):
        images = target.drawn(train, seed)
        for label in range(10):
            own = train.images[train.labels == label]
            assert (own == images[label]).all(1).any()
            np.testing.assert_allclose(means[label], own.mean(0))
    assert (target.drawn(train, 0) != target.drawn(train, 1)).any()


def table(**changes):
    """What holds, by hand, with some numbers changed."""
    numbers = {"distance": 1e-6, "kept": 1.0, "unrolled": 2.0, "root": 1.5, "means": 0.90}
    numbers |= {"random": 0.7, "likeness": 1.0} | changes
    rows = []
    for name in (target.IMPLICIT, target.UNROLLED):
        rows += [(target.LOSS, name, 0, 100, 2.0), (target.LOSS, name, 1, 100, 1.0)]
    for steps in (50, 500):
        ratios = {
            target.IMPLICIT: 1.0,
            target.UNROLLED: numbers["unrolled"],
            target.ROOT: numbers["root"],
        }
        for name, ratio in ratios.items():
            rows.append((target.DISTANCE, name, 0, steps, numbers["distance"]))
            growth = numbers["kept"] if name == target.IMPLICIT else steps / 50
            rows.append((target.BYTES, name, 0, steps, 2**20 * (1 if steps == 50 else growth)))
            for number, drift in enumerate((1.0, 10.0, 3.0)):
                rows.append((target.SECONDS, name, number, steps, drift * ratio))
    for number, noise in enumerate((0.0, 0.01)):
        rows.append((target.ACCURACY, target.DISTILLED, number, 0.1, 0.92 + noise))
        for name, value in {
            target.MEANS: numbers["means"],
            target.RANDOM: numbers["random"],
            target.ALL: 0.95,
        }.items():
            rows.append((target.ACCURACY, name, number, 0.01, value - 0.1))
            rows.append((target.ACCURACY, name, number, 1.0, value))
    for image in range(10):
        rows += [(target.PIXEL, target.DISTILLED, image, p, np.sin(p + image)) for p in range(64)]
        for label in range(10):
            value = numbers["likeness"] if label == image else 0.5
            rows.append((target.CORRELATION, target.DISTILLED, image, label, value))
    columns = (np.array(column) for column in zip(*rows, strict=True))
    return dict(zip(target.COLUMNS, columns, strict=True))


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({}, None),
        ({"distance": 1e-3}, 0),
        ({"unrolled": 0.9}, 1),
        ({"root": 0.9}, 1),
        ({"kept": 2.0}, 2),
        ({"random": 0.925}, 3),
        ({"means": 0.92}, 4),
        ({"likeness": 0.4}, 5),
    ],
)
def test_each_part_can_fail(changes, fails):
    parts = target.judge(table(**changes))
    assert [part.holds for part in parts] == [number != fails for number in range(6)]


def test_rivals_have_the_penalty_that_is_best_for_them_and_drift_cancels_in_rounds():
    data = table()
    penalty, values = target.best(data, target.MEANS)
    assert penalty == 1.0
    np.testing.assert_allclose(values, 0.90)
    assert target.paired(data, target.UNROLLED, 500) == pytest.approx(2.0)


def test_images_and_three_panels_are_drawn():
    assert len(target.plot(table()).axes) == 13
