import numpy as np
import pytest

from experiments.data.order import hash_words, sample_indices, uniform


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 1023, 4097])
def test_each_epoch_is_a_permutation(size):
    indices = sample_indices(seed=5, samples=0, count=3 * size, size=size).reshape(3, size)
    assert indices.dtype == np.int64
    for epoch in indices:
        assert np.array_equal(np.sort(epoch), np.arange(size))
    if size >= 1000:
        assert not np.array_equal(indices[0], indices[1])
        assert not np.array_equal(indices[1], indices[2])


def test_seeds_give_other_orders():
    orders = [sample_indices(seed, 0, 1000, 1000) for seed in (0, 1, -1, 2**63)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert np.mean(first == second) < 0.01


def test_a_batch_is_the_batches_that_it_is_cut_into():
    """Also over the end of an epoch, and where the batch size changes on the way."""
    whole = sample_indices(seed=3, samples=4, count=60, size=10)
    counts, parts, seen = [2, 4, 1, 13, 0, 40], [], 4
    for count in counts:
        parts.append(sample_indices(seed=3, samples=seen, count=count, size=10))
        seen += count
    assert np.array_equal(np.concatenate(parts), whole)


def test_random_access_far_into_a_large_set():
    size, samples = 10**12 + 39, 7 * 10**12
    indices = sample_indices(seed=0, samples=samples, count=1000, size=size)
    assert np.array_equal(
        indices[500:], sample_indices(seed=0, samples=samples + 500, count=500, size=size)
    )
    assert indices.min() >= 0 and indices.max() < size and len(set(indices)) == 1000
    assert abs(indices.mean() / size - 0.5) < 5 * (1 / 12 / 1000) ** 0.5


@pytest.mark.parametrize("size", [2, 3, 7])
def test_every_index_is_as_likely_at_every_position(size):
    """Chi-square of (position, index) counts over 4000 epochs, 6 deviations above its mean."""
    epochs = 4000
    orders = sample_indices(seed=11, samples=0, count=epochs * size, size=size)
    orders = orders.reshape(epochs, size)
    counts = np.stack([np.bincount(orders[:, p], minlength=size) for p in range(size)])
    expected = epochs / size
    statistic = np.sum((counts - expected) ** 2) / expected
    freedom = (size - 1) ** 2
    assert statistic < freedom + 6 * (2 * freedom) ** 0.5


def test_all_orders_of_three_appear():
    orders = sample_indices(seed=2, samples=0, count=6000, size=3).reshape(-1, 3)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert np.abs(counts - 2000 / 6).max() < 6 * (2000 / 6) ** 0.5


def test_neighbours_are_not_correlated():
    order = sample_indices(seed=0, samples=0, count=4096, size=4096) / 4096
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / 64


def test_values_never_change():
    """Recorded once: a change breaks the resumption of every run."""
    assert sample_indices(0, 0, 8, 8).tolist() == [6, 1, 3, 0, 7, 5, 4, 2]
    found = sample_indices(123, 10**6, 6, 74811).tolist()
    assert found == [52960, 46229, 52504, 36255, 48680, 35882]
    assert hash_words(7, np.arange(2), 3).tolist() == [4755072221710126944, 6248060031797866457]


def test_against_python_integers():
    """The equations of the module again, one sample at a time, without words that overflow."""
    word, gamma = 2**64, 0x9E3779B97F4A7C15

    def scramble(x):
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) % word
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) % word
        return x ^ x >> 31

    def hashed(*counters):
        state = scramble((seed + gamma) % word)
        for counter in counters:
            state = (scramble(state ^ counter) + gamma) % word
        return scramble(state)

    seed, size = 2**64 - 5, 11
    for sample, found in enumerate(sample_indices(seed, 0, 40, size)):
        epoch, index = divmod(sample, size)
        while True:
            left, right = divmod(index, 4)
            for number in range(8):
                left, right = right, (left + hashed(epoch, number, right) % 4) % 4
            index = left * 4 + right
            if index < size:
                break
        assert index == found


def test_uniform_draws():
    draws = uniform(4, np.arange(100)[:, None], np.arange(100))
    assert draws.shape == (100, 100)
    assert draws.min() > 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 5 * (1 / 12) ** 0.5 / 100
    assert abs(draws.var() - 1 / 12) < 0.005
    assert len(np.unique(draws)) == draws.size
    assert np.array_equal(uniform(4, 7, 9), draws[7, 9:10])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 0, 1, 0), "size is 0"), ((0, -1, 1, 5), "samples = -1"), ((0, 0, -2, 5), "count = -2")],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_indices(*arguments)
