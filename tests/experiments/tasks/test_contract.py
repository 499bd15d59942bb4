"""What the train loop relies on, for every task."""

import inspect
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.decoder import Decoder
from experiments.models.mlp import Mlp
from experiments.models.resnet import ResNet
from experiments.tasks.bigram import BigramChain
from experiments.tasks.classification import Classification
from experiments.tasks.language import LanguageModel
from experiments.tasks.logistic import LogisticRegression
from experiments.tasks.quadratic import Quadratic
from experiments.tasks.task import TaskConfig

TEXT = str(pathlib.Path(inspect.getfile(inspect)))
DECODER = Decoder(width=16, layers=2, heads=2, hidden=24)
CONFIGS: dict[str, TaskConfig] = {
    "language": LanguageModel(TEXT, length=16, validation_sequences=70, model=DECODER),
    "mlp": Classification(model=Mlp((8,))),
    "resnet": Classification(model=ResNet(width=8, stages=2)),
    "logistic": LogisticRegression("wine"),
    "quadratic": Quadratic(dimension=7),
    "bigram": BigramChain(vocabulary=8, length=5),
}


@pytest.fixture(scope="module", params=CONFIGS)
def case(request):
    task = CONFIGS[request.param].build()
    return task, jax.jit(task.init)(jax.random.key(0))


def moved(params):
    """Away from points where a gradient vanishes, such as a start at zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + np.float32(0.1) * _normal(rng, leaf.shape), params)


def _normal(rng, shape):
    return rng.normal(size=shape).astype(np.float32)


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_parameters_are_float32_in_plain_dicts(case):
    _, params = case

    def walk(node):
        if isinstance(node, dict):
            assert all(isinstance(name, str) and "/" not in name for name in node)
            return [leaf for child in node.values() for leaf in walk(child)]
        assert node.dtype == jnp.float32
        return [node]

    assert len(walk(params)) == len(jax.tree.leaves(params)) > 0


def test_init_is_a_function_of_the_key(case):
    task, params = case
    same(params, jax.jit(task.init)(jax.random.key(0)))


def test_batches_are_a_function_of_three_integers(case):
    task, _ = case
    first, again, other = (task.batches(seed, 12, 6) for seed in (3, 3, 4))
    same(first, again)
    assert all(len(leaf) == 6 and type(leaf) is np.ndarray for leaf in jax.tree.leaves(first))
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(other))
    assert any(not np.array_equal(a, b) for a, b in pairs)


def test_a_batch_is_the_batches_that_it_is_cut_into(case):
    task, _ = case
    start = (task.facts["samples"] or 100) - 3  # over the end of an epoch, where there is one
    whole = task.batches(1, start, 6)
    parts = [task.batches(1, start, 2), task.batches(1, start + 2, 4)]
    same(whole, jax.tree.map(lambda *x: np.concatenate(x), *parts))


def test_an_epoch_holds_every_sample_once(case):
    task, _ = case
    size = task.facts["samples"]
    if size is None:
        leaf = jax.tree.leaves(task.batches(0, 0, 64))[0]
        assert len(np.unique(leaf.reshape(64, -1), axis=0)) > 32  # a stream does not repeat
        return
    rows = [
        jax.tree.leaves(task.batches(0, epoch * size, size))[0].reshape(size, -1)
        for epoch in (0, 1)
    ]
    assert not np.array_equal(*rows)
    assert np.array_equal(*(row[np.lexsort(row.T)] for row in rows))


def test_micro_batches_have_the_same_mean_gradient(case):
    task, params = case
    params, batch = moved(params), task.batches(0, 5, 8)
    key = jax.random.key(1)
    gradient = jax.jit(jax.value_and_grad(lambda p, b: task.loss(p, b, key)[0]))
    whole = gradient(params, batch)
    halves = [gradient(params, jax.tree.map(lambda x: x[i::2], batch)) for i in (0, 1)]  # noqa: B023
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    scale = max(float(np.abs(g).max()) for g in jax.tree.leaves(whole[1]))
    assert scale > 1e-4
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), whole[1], mean[1]
    )
    np.testing.assert_allclose(whole[0], mean[0], rtol=1e-5)


def test_loss_is_a_scalar_that_does_not_depend_on_the_key(case):
    task, params = case
    batch = task.batches(0, 0, 4)
    loss = jax.jit(task.loss)
    first, second = (loss(params, batch, jax.random.key(seed)) for seed in (0, 1))
    assert first[0].shape == () and first[0].dtype == jnp.float32
    assert all(value.shape == () for value in first[1].values())
    same(first, second)


def test_losses_of_samples_are_those_of_batches_of_one(case):
    task, params = case
    if task.losses is None:
        assert task.facts["loss_unit"] == "objective"  # its samples are noise and have no loss
        return
    params, batch = moved(params), task.batches(0, 3, 4)
    key = jax.random.key(1)
    losses, metrics = jax.jit(task.losses)(params, batch, key)
    assert losses.shape == (4,) and losses.dtype == jnp.float32
    mean, expected = jax.jit(task.loss)(params, batch, key)
    np.testing.assert_allclose(losses.mean(), mean, rtol=1e-5)
    assert metrics.keys() == expected.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
    alone = jax.jit(task.loss)
    for i in range(4):
        one = jax.tree.map(lambda x: x[i : i + 1], batch)  # noqa: B023
        np.testing.assert_allclose(losses[i], alone(params, one, key)[0], rtol=1e-4)


def test_evaluation_is_finite_and_places_every_batch_in_one_shape(case):
    task, params = case
    shapes = []

    def place(batch):
        shapes.append(jax.tree.map(np.shape, batch))
        return jax.device_put(batch)

    metrics = task.evaluate(params, place)
    assert task.facts["primary"] in metrics
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    assert all(shape == shapes[0] for shape in shapes)
    assert all(shape[0] % 8 == 0 for batch in shapes for shape in batch.values())
    assert metrics == task.evaluate(params, lambda batch: batch)


def test_facts(case):
    task, params = case
    facts = task.facts
    assert isinstance(facts["loss_unit"], str) and facts["tokens_per_sample"] >= 1
    assert facts["provenance"]["source"]
    assert all(math.isfinite(value) for value in facts["baselines"].values())
    # What no data was seen for is no better than the naive baselines that the facts state.
    worst = max(facts["baselines"].values())
    assert task.evaluate(moved(params), lambda batch: batch)[facts["primary"]] > 0.3 * worst
