import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tasks.bigram import BigramChain, draw, make_chain

CHAIN = make_chain(12, 0.1)


def test_rows():
    """Even: 0.9 + 0.1/12 on one token; odd: 0.9/6 + 0.1/12 on six; 0.1/12 elsewhere."""
    rest = 0.1 / 12
    np.testing.assert_allclose(CHAIN.transitions.sum(1), 1)
    for token, row in enumerate(np.sort(CHAIN.transitions, axis=1)):
        count = 6 if token % 2 else 1
        np.testing.assert_allclose(row[:-count], rest)
        np.testing.assert_allclose(row[-count:], rest + 0.9 / count)


def test_stationary_distribution_and_entropy_rate():
    """Against powers of the matrix, and entropies of the two kinds of rows by hand."""
    power = np.linalg.matrix_power(CHAIN.transitions, 200)
    np.testing.assert_allclose(power, np.tile(CHAIN.stationary, (12, 1)), atol=1e-10)
    rest = 0.1 / 12
    high = [rest + 0.9, rest + 0.15]
    even = -high[0] * np.log(high[0]) - 11 * rest * np.log(rest)
    odd = -6 * high[1] * np.log(high[1]) - 6 * rest * np.log(rest)
    weight = CHAIN.stationary[1::2].sum()
    assert CHAIN.entropy_rate() == pytest.approx((1 - weight) * even + weight * odd)


def test_draws_follow_the_chain():
    tokens = draw(CHAIN, 3, np.arange(4000), 5)
    assert tokens.shape == (4000, 6) and tokens.min() == 0 and tokens.max() == 11
    for t in (0, 5):  # stationary from the first token on
        frequencies = np.bincount(tokens[:, t], minlength=12) / 4000
        deviation = np.sqrt(CHAIN.stationary / 4000)
        assert np.all(np.abs(frequencies - CHAIN.stationary) < 5 * deviation)
    pairs = np.zeros((12, 12))
    np.add.at(pairs, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1)
    counts = pairs.sum(1, keepdims=True)
    deviation = np.sqrt(CHAIN.transitions / counts)
    assert np.all(np.abs(pairs / counts - CHAIN.transitions) < 5 * deviation)


def test_true_table_reaches_the_entropy_rate():
    task = BigramChain(vocabulary=12, length=20, spread=0.1).build()
    params = {"table": jnp.asarray(np.log(CHAIN.transitions) + 3.0, jnp.float32)}
    metrics = task.evaluate(params, lambda b: b)
    assert metrics["excess"] == pytest.approx(0, abs=1e-6)
    assert metrics["loss"] == pytest.approx(task.facts["baselines"]["entropy rate"], abs=1e-6)
    sampled = task.loss(params, task.batches(0, 0, 4000), jax.random.key(0))[0]
    assert float(sampled) == pytest.approx(metrics["loss"], rel=0.02)


def test_evaluation_is_the_expected_loss():
    """At the start, where every token is as likely; and at a random table, against many samples."""
    task = BigramChain(vocabulary=12, length=20, spread=0.1).build()
    start = task.evaluate(task.init(jax.random.key(0)), lambda b: b)
    assert start["loss"] == pytest.approx(np.log(12), rel=1e-5)
    assert start["loss"] - start["excess"] == pytest.approx(CHAIN.entropy_rate(), rel=1e-5)
    table = np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32)
    metrics = task.evaluate({"table": table}, lambda b: b)
    batch = task.batches(0, 0, 4000)
    loss, parts = task.loss({"table": jnp.asarray(table)}, batch, jax.random.key(0))
    assert float(loss) == pytest.approx(metrics["loss"], rel=0.02)
    weight = CHAIN.stationary[1::2].sum()
    mixed = (1 - weight) * parts["loss_near_deterministic"] + weight * parts["loss_high_entropy"]
    assert float(mixed) == pytest.approx(float(loss), rel=0.02)
    split = metrics["excess_near_deterministic"] + metrics["excess_high_entropy"]
    assert split == pytest.approx(metrics["excess"], rel=1e-6)


def test_loss_by_rows_where_a_kind_is_absent():
    task = BigramChain(vocabulary=4, length=1).build()
    batch = {"tokens": np.array([[0, 1], [2, 3]], np.int32)}
    _, parts = task.loss(task.init(jax.random.key(0)), batch, jax.random.key(1))
    assert float(parts["loss_near_deterministic"]) == pytest.approx(np.log(4))
    assert float(parts["loss_high_entropy"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": 7}, "vocabulary is 7"),
        ({"vocabulary": 2}, "vocabulary is 2"),
        ({"length": 0}, "length = 0"),
        ({"spread": 0.0}, "spread = 0.0"),
        ({"spread": 1.0}, "spread = 1.0"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        BigramChain(**change).build()
