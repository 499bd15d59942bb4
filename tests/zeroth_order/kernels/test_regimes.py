"""The rules follow from the arithmetic on every chip, and what they allow fits on it."""

import json

import jax
import jax.numpy as jnp
import pytest

import zeroth_order
from experiments.tpu_slice import libtpu_folder, run_python
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
        assert regimes.update_speedup(chip, directions, 2) > 1.2


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
    assert wins(128, 4096, 4096) and wins(128, 49152, 12288) and wins(1, 1024, 1152)
    assert not wins(128, 128 * 191, 4096)  # a prime number of chunks: one at a time
    assert not wins(128, 1000, 4096) and not wins(128, 4096, 1100)  # no multiple of 128
    assert not wins(128, 512, 1024)  # too small


@pytest.mark.slow
@pytest.mark.skipif(libtpu_folder() is None, reason="libtpu is not installed")
@pytest.mark.xdist_group("libtpu")
def test_what_the_rules_allow_compiles_for_chips_without_copies(tmp_path):
    file = tmp_path / "found.json"
    assert run_python(["-m", "tests.zeroth_order.kernels.ahead", str(file)]) == 0
    found = json.loads(file.read_text())
    assert len(found) == 24
    for name, program in found.items():
        assert program["kernel"], name
        # x and the products may be laid out anew for 33 tokens; the weights never.
        assert program["temporaries"] < program["weights"] / 2, name
        assert program["in place"] == (program["weights"] if "update" in name else 0), name
