"""The sweep ends at an interior minimum, the judge can say no, and a failed run is no result."""

import math

import numpy as np
import pytest

from experiments.figures import decoder_optimizers as target
from experiments.figures.command import read_table, write_table
from experiments.figures.processes import SMALL


@pytest.mark.parametrize(("minimum", "calls"), [(0, 3), (1, 4), (-3, 6)])
def test_the_sweep_goes_on_until_the_best_has_worse_neighbours(minimum, calls):
    seen = {}

    def at(power):
        return seen.setdefault(power, abs(power - minimum))

    assert target.descend(at) == minimum
    assert len(seen) == calls
    assert {minimum - 1, minimum + 1} <= seen.keys()


def test_a_sweep_that_never_turns_ends():
    assert abs(target.descend(lambda power: power)) == 8


def test_a_rate_that_diverges_is_worse_than_any():
    assert target.descend(lambda power: math.inf if power > 0 else -power) == 0


RATES = {"adamw": 8e-3, "lion": 2e-3, "muon": 16e-3, "soap": 8e-3}


def table(ends, rates=RATES):
    """Two rates a name in the sweep, the second the best, with three seeds around `ends`."""
    rows = []
    for name, end in ends.items():
        rows.append((name, rates[name] / 2, 0, end + 0.2))
        rows += [(name, rates[name], seed, end + 0.001 * (seed - 1)) for seed in range(3)]
    columns = zip(*rows, strict=True)
    names = ("optimizer", "learning_rate", "seed", "bits_per_byte")
    return {name: np.array(column) for name, column in zip(names, columns, strict=True)}


GOOD = {"adamw": 2.5, "lion": 2.6, "muon": 2.3, "soap": 2.35}


def held(data):
    return [part.holds for part in target.judge(data)]


def test_what_holds_holds():
    assert held(table(GOOD)) == [True, True, True, True]


def test_a_matrix_method_behind_adamw_fails_and_ends_the_ranking():
    assert held(table({**GOOD, "soap": 2.55})) == [True, False, False, True]


def test_a_difference_within_two_errors_does_not_count():
    assert held(table({**GOOD, "soap": 2.4995})) == [True, False, True, True]


def test_one_rate_for_all_contradicts_the_last_part():
    assert held(table(GOOD, dict.fromkeys(RATES, 1e-2)))[-1] is False


def test_the_csv_is_enough_to_judge(tmp_path):
    write_table(table(GOOD), tmp_path / "t.csv")
    assert held(read_table(tmp_path / "t.csv")) == held(table(GOOD))
    assert len(target.plot(table(GOOD)).axes) == 2


def test_a_run_that_fails_is_no_divergence(monkeypatch, tmp_path):
    monkeypatch.setattr(target, "RUNS", tmp_path)
    with pytest.raises(RuntimeError, match=r"optimizers.py:nobody"):
        target.run("nobody", 1e-3, 0, 4)


@pytest.mark.slow  # a process that trains
def test_a_run_that_diverges_is_infinitely_bad(monkeypatch, tmp_path):
    monkeypatch.setattr(target, "RUNS", tmp_path)
    assert target.run("adamw", 1e30, 0, 4, *SMALL) == math.inf
