"""The order of samples as a function of two integers: nothing is shuffled, so nothing is kept.

Sample s of a run lies in epoch s // size at position s % size; its index is that position under a
permutation of range(size) keyed by (seed, epoch). A batch is thus a function of the seed and of the
samples consumed before it, however they were cut into batches.

    (left, right) = divmod(position, side),  side = ⌈√size⌉
    left, right = right, (left + hash(key, round, right)) mod side       for each round
    while side · left + right >= size: once more through the rounds

Each round is a bijection of the square of side², a Feistel network over the integers modulo `side`;
walking on inside the square until an index lies below `size` makes it one of range(size). The
square is at most 2 √size + 1 larger, so one walk in √size / 2 takes a second pass.

*Cost*: no memory, a few hundred integer operations a sample, access in any order. All arithmetic is
on 64-bit words, the same on every machine and for every version of numpy.
*Reference*: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"; the hash is the
finalizer of Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators".
"""

import math

import numpy as np

ROUNDS = 8

Words = np.ndarray  # uint64


def scramble(words: Words) -> Words:
    """A bijection of 64-bit words in which every input bit moves every output bit."""
    words = words ^ (words >> np.uint64(30))
    words = words * np.uint64(0xBF58476D1CE4E5B9)
    words = words ^ (words >> np.uint64(27))
    words = words * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hash_words(seed: int, *counters: int | np.ndarray) -> Words:
    """A 64-bit hash of the seed and of counters that broadcast against each other."""
    state = scramble(np.asarray([seed % 2**64], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    for counter in counters:
        state = scramble(state ^ np.asarray(counter).astype(np.uint64)) + np.uint64(
            0x9E3779B97F4A7C15
        )
    return scramble(state)


def uniform(seed: int, *counters: int | np.ndarray) -> np.ndarray:
    """Draws from the open interval (0, 1), float64, one for each tuple of counters."""
    return ((hash_words(seed, *counters) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def sample_indices(seed: int, samples: int, count: int, size: int) -> np.ndarray:
    """Indices below `size` of the `count` samples that follow the first `samples` of a run.

    Args:
        seed: any integer; picks the permutations.
        samples: samples consumed before.
        count: samples wanted.
        size: samples in the data set.

    Returns:
        (count,) int64.

    Raises:
        ValueError: `size` is below 1, or `samples` or `count` is negative.

    >>> sample_indices(seed=0, samples=0, count=4, size=4).tolist()
    [0, 2, 1, 3]
    >>> sample_indices(seed=0, samples=2, count=4, size=4).tolist()
    [1, 3, 2, 0]
    """
    if size < 1:
        raise ValueError(f"sample_indices: size is {size}; accepted: at least 1.")
    if samples < 0 or count < 0:
        raise ValueError(
            f"sample_indices: samples = {samples} and count = {count} cannot be negative."
        )
    numbers = np.arange(samples, samples + count, dtype=np.int64)
    epochs, positions = np.divmod(numbers, size)
    side = math.isqrt(size - 1) + 1
    indices = _rounds(seed, epochs, positions, side)
    while (outside := indices >= size).any():
        indices[outside] = _rounds(seed, epochs[outside], indices[outside], side)
    return indices


def _rounds(seed: int, epochs: np.ndarray, positions: np.ndarray, side: int) -> np.ndarray:
    left, right = np.divmod(positions, side)
    for number in range(ROUNDS):
        shift = (hash_words(seed, epochs, number, right) % np.uint64(side)).astype(np.int64)
        left, right = right, (left + shift) % side
    return left * side + right
