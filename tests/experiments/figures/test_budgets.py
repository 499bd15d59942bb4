"""Tests of experiments/figures/budgets.py: what each strategy is charged, and the verdict."""

import numpy as np
import pytest

from experiments.figures.budgets import TARGET, UNIT, jobs, plan


def test_the_steps_of_a_strategy_are_those_of_its_runs():
    models = {(m.strategy, m.budget): m for m in plan(UNIT)}
    for budget, decays in ((80, 8), (160, 8 + 16), (320, 8 + 16 + 32)):
        assert models["oracle", budget].spent == {80: 80, 160: 240, 320: 560}[budget]
        # The main run up to where the last branch leaves, and the decays of all branches.
        wsd, equal = models["wsd", budget], models["wsd, equal", budget]
        assert wsd.trained == budget and wsd.spent == (budget - budget // 10) + decays
        assert equal.spent == budget == (equal.trained - budget // 10) + decays
        for strategy in ("wsd-s", "cyclic"):
            one = models[strategy, budget]
            assert (one.trained, one.spent, one.workdir) == (budget, budget, strategy)
    assert models["wsd", 80].workdir == models["wsd, equal", 80].workdir


def test_branches_leave_at_checkpoints_of_the_main_run():
    branches = {m.workdir for m in plan(UNIT) if "+" in m.workdir}
    assert branches == {
        *("wsd/branches/72+8", "wsd/branches/144+16", "wsd/branches/288+32"),
        *("equal-136+16", "equal-264+32"),
    }
    assert all(int(name.split("+")[0].split("/")[-1].split("-")[-1]) % 8 == 0 for name in branches)
    assert len(jobs(UNIT, 0, ())) == 4


@pytest.mark.parametrize(("gap", "held"), [(0.1, 5), (0.0, 0), (-0.1, 0)])
def test_the_verdict_follows_differences_within_a_seed(gap, held):
    rows = []
    for model in plan(10):
        for seed, level in enumerate((2.0, 2.5, 3.0)):  # the spread of seeds is no error
            noise = 0.01 * (seed - 1) * (model.strategy == "cyclic")
            rows.append((model.strategy, model.budget, seed, level + noise))
            if model.strategy in ("cyclic", "wsd, equal"):
                rows[-1] = (*rows[-1][:3], rows[-1][3] + gap)
    names = ("strategy", "budget", "seed", "bits_per_byte")
    data = {n: np.array(column) for n, column in zip(names, zip(*rows, strict=True), strict=True)}
    assert sum(part.holds for part in TARGET.judge(data)) == held
