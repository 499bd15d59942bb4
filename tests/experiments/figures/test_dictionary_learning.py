"""Codes are the minimisers, gradients those of differences, and the judge can say no."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import ElasticNet, LogisticRegression

from experiments.figures import dictionary_learning as target

pytestmark = pytest.mark.slow  # like the target's trial


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def split():
    return target.split(0)


@pytest.fixture(scope="module")
def train(split):
    """Some samples, on the device."""
    return target.Data(*(jnp.asarray(part[:20]) for part in split[0]))


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    atoms, weights = rng.standard_normal((10, 30)), rng.standard_normal(10)
    return target.Model(jnp.asarray(atoms), jnp.asarray(weights), jnp.asarray(0.1))


@pytest.fixture(scope="module")
def task():
    """Labels of some samples alone are seen."""
    return target.Task(jnp.arange(20) < 15, jnp.asarray(0.1))


@pytest.fixture(scope="module")
def codes(model, train):
    return np.asarray(target.encode(model.atoms, train.samples))


def test_codes_are_those_of_the_elastic_net_of_scikit_learn(model, train, codes):
    atoms = np.asarray(target.unit(model.atoms))
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1)
    # Its loss is a mean over features, and its ridge has half of the strength, as ours.
    l1, l2 = target.SPARSITY / 30, target.SPARSITY * target.RIDGE / 30
    rival = ElasticNet(
        alpha=l1 + l2, l1_ratio=l1 / (l1 + l2), fit_intercept=False, tol=1e-12, max_iter=100_000
    )
    for sample, code in zip(np.asarray(train.samples), codes, strict=True):
        np.testing.assert_allclose(code, rival.fit(atoms.T, sample).coef_, atol=1e-7)
    assert 0 < np.mean(codes != 0) < 1


def test_gradient_of_the_task_is_that_of_differences_and_of_unrolling(model, train, task, codes):
    init = jnp.zeros_like(codes)

    @jax.jit
    def loss(model):
        return target.task_loss(model, train, init, task)[0]

    slope = jax.jit(jax.grad(loss))(model)
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), model)
    h = 1e-6
    up, down = (loss(jax.tree.map(lambda x, d, s=s: x + s * d, model, direction)) for s in (h, -h))
    along = sum(np.vdot(a, b) for a, b in zip(slope, direction, strict=True))
    np.testing.assert_allclose(along, (up - down) / (2 * h), rtol=1e-6)
    through = target.gradient(model, train, task, target.unrolled_codes)
    np.testing.assert_allclose(slope.atoms, through, atol=1e-9)


def test_gradient_of_the_reconstruction_is_that_of_differences(model, train, codes):
    init = jnp.zeros_like(codes)

    @jax.jit
    def loss(atoms):
        return target.reconstruction_loss(atoms, train.samples, init)[0]

    direction = np.random.default_rng(2).standard_normal(model.atoms.shape)
    h = 1e-6
    up, down = (loss(model.atoms + s * direction) for s in (h, -h))
    along = np.vdot(jax.grad(loss)(model.atoms), direction)
    np.testing.assert_allclose(along, (up - down) / (2 * h), rtol=1e-6)


def test_the_loss_is_that_of_scikit_learn_on_the_samples_kept(train, task, codes):
    """Its minimiser is where the gradient by weights and intercept is zero."""
    labels, kept = np.asarray(train.labels), np.asarray(task.kept)
    inverse = 1 / (float(task.strength) * kept.sum())
    fitted = LogisticRegression(C=inverse, tol=1e-10, max_iter=1000)
    fitted.fit(codes[kept], labels[kept])

    def loss(weights, intercept):
        model = target.Model(jnp.ones((10, 30)), weights, intercept)
        return target.task_loss(model, train, None, task, lambda *_: jnp.asarray(codes))[0]

    slopes = jax.grad(loss, (0, 1))(jnp.asarray(fitted.coef_[0]), jnp.asarray(fitted.intercept_[0]))
    assert max(float(abs(slope).max()) for slope in slopes) < 1e-6


@pytest.mark.slow
def test_descent_lowers_both_losses_and_reports_each_model(model, train, task):
    atoms = target.unsupervised(train.samples, 20)
    np.testing.assert_allclose(jnp.linalg.norm(atoms, axis=1), 1)
    init = jnp.zeros((20, 10))
    start = jnp.linalg.svd(train.samples, full_matrices=False)[2][:10]
    before, after = (target.reconstruction_loss(x, train.samples, init)[0] for x in (start, atoms))
    assert after < before
    models, values, logits = target.task_driven(model, train, task, 20)
    assert values[-1] < values[0] < 10
    np.testing.assert_array_equal(models.atoms[0], model.atoms)
    last = jax.tree.map(lambda leaf: leaf[-1], models)
    codes = target.encode(last.atoms, train.samples)
    np.testing.assert_allclose(logits[-1], target.outputs(last, codes), atol=1e-7)


def test_splits_are_standardised_by_what_is_trained_on(split):
    train, test = split
    assert train.samples.shape == (target.TRAIN, 30)
    assert test.samples.shape == (569 - target.TRAIN, 30)
    np.testing.assert_allclose(train.samples.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(train.samples.std(0), 1)
    assert abs(test.samples.mean(0)).max() > 0.01
    assert train.labels.mean() == pytest.approx(test.labels.mean(), abs=0.01)


def test_regressions_have_the_penalty_they_are_asked_for(split):
    sparse, dense = (target.regression(split[0], share) for share in (1.0, 0.0))
    assert 0 < np.count_nonzero(sparse.coef_) < 30 == np.count_nonzero(dense.coef_)


def table(**changes):
    """What holds, by hand, with some numbers changed."""
    numbers = {target.L1: 0.92, target.L2: 0.93, target.UNSUPERVISED: 0.9, target.TASK: 0.95}
    numbers |= {"distance": 1e-9, "sparse": 25.0} | changes
    rows = [(target.DISTANCE, target.TASK, 0, numbers["distance"])]
    rows += [(target.LOSS, target.TASK, step, 1.0 / (1 + step)) for step in range(3)]
    read = {target.L1: numbers["sparse"], target.L2: 30.0}
    for number, noise in enumerate((0.0, 0.01, 0.003)):
        for name in target.METHODS:
            # Splits are hard or easy for all alike.
            rows.append((target.AUC, name, number, numbers[name] + 10 * noise * 0.1))
            rows.append((target.COEFFICIENTS, name, number, read.get(name, 10.0)))
        rows.append((target.CHOSEN, target.TASK, number, 10.0))
        for name in (target.UNSUPERVISED, target.TASK):
            rows.append((target.ACTIVE, name, number, 3.0 + noise))
    columns = (np.array(column) for column in zip(*rows, strict=True))
    return dict(zip(target.COLUMNS, columns, strict=True))


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({}, None),
        ({"distance": 1e-4}, 0),
        ({target.UNSUPERVISED: 0.96}, 1),
        ({target.L1: 0.96}, 2),
        ({target.L2: 0.96}, 3),
        ({"sparse": 12.0}, 4),
    ],
)
def test_each_part_can_fail(changes, fails):
    parts = target.judge(table(**changes))
    assert [part.holds for part in parts] == [number != fails for number in range(5)]


def test_a_gain_within_its_error_is_none():
    data = table()
    noisy = data["value"].copy()
    mine = (data["what"] == target.AUC) & (data["name"] == target.TASK)
    noisy[mine] += np.array([0.1, -0.1, 0.02])
    assert not target.against(data | {"value": noisy}, target.L2).holds


def test_both_panels_are_drawn():
    assert len(target.plot(table()).axes) == 2
