"""The rules follow from the arithmetic on every chip, and what they allow fits on it."""

import jax
import jax.numpy as jnp
import pytest

import zeroth_order
from zeroth_order.kernels import regimes


@pytest.mark.parametrize("name", regimes.CHIPS)
def test_the_pair_is_used_where_it_wins_by_arithmetic(name):
    chip = regimes.CHIPS[name]
    for tokens in (1, 16, 128, regimes.MOST_TOKENS):
        assert regimes.pair_speedup(chip, tokens, 2) > 1.5
    for tokens in (512, 2048):
        assert regimes.pair_speedup(chip, tokens, 2) < 1.05


@pytest.mark.parametrize("name", regimes.CHIPS)
def test_the_update_is_used_where_it_wins_by_arithmetic(name):
    chip = regimes.CHIPS[name]
    for directions in (1, 8, regimes.MOST_DIRECTIONS_OF_XLA):
        assert regimes.update_speedup(chip, directions, 2) < 1.05
    for directions in (regimes.MOST_DIRECTIONS_OF_XLA + 1, 64):
        assert regimes.update_speedup(chip, directions, 2) > 1.4


def wins(tokens, m, n, dtype=jnp.bfloat16, draws=zeroth_order.rademacher):
    x = jax.ShapeDtypeStruct((2, tokens, m), dtype)
    return regimes.pair_wins(x, jax.ShapeDtypeStruct((m, n), dtype), draws)


def test_blocks_of_the_pair_divide_the_rows():
    assert regimes.pair_blocks(128, 4096, 4096, 2) == (4096, 256)
    assert regimes.pair_blocks(128, 11008, 4096, 2) == (5504, 256)
    assert regimes.pair_blocks(128, 49152, 12288, 2) == (8192, 256)
    assert regimes.pair_blocks(128, 4095, 4096, 2) == (4095, 256)
    assert regimes.pair_blocks(8, 512, 100, 4) == (512, 100)
    assert regimes.pair_blocks(256, 8192, 4096, 4) == (8192, 256)
    assert regimes.pair_blocks(512, 8192, 4096, 4) == (4096, 256)  # 8192 do not fit


def test_shapes_that_the_kernel_is_bad_at_are_left_to_xla():
    assert wins(128, 4096, 4096) and wins(128, 49152, 12288) and wins(1, 1000, 2048)
    assert not wins(128, 128 * 191, 4096)  # a prime number of chunks: one at a time
    assert not wins(128, 20001, 4096)  # no multiple of 128, and too long to be whole
    assert not wins(128, 65536, 100)  # less than one block of columns
