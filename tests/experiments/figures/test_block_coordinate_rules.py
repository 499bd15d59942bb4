"""The runs are those of a loop in NumPy, the rates what they are called, the judge fair."""

import jax
import numpy as np
import pytest

from experiments.figures import block_coordinate_rules as target

pytestmark = pytest.mark.slow

LOSS = "least squares"


@pytest.fixture(scope="module")
def data():
    return target.measure(quick=True)


def problem(seed, logistic=False):
    with jax.enable_x64(True):
        made = target.problem(jax.random.fold_in(target.keys(2)[seed], 0), logistic)
        return np.asarray(made.matrix), np.asarray(made.target)


def descended(a, b, run, iterations):
    """Losses over the first one, by loops over the blocks."""
    h = a.T @ a
    order = np.argsort(np.diag(h), kind="stable").reshape(-1, run.size)
    x, values = np.zeros(a.shape[1]), []
    for _ in range(iterations + 1):
        values.append(np.sum((a @ x - b) ** 2) / 2)
        g = a.T @ (a @ x - b)
        if run.blocks == "variable":
            assert run.rule == "GSD"
            block = np.argsort(np.abs(g) / np.sqrt(np.diag(h)))[-run.size :]
        else:
            scores = [np.sum(g[block] ** 2) for block in order]
            if run.rule == "GSL":
                scores = [
                    score / np.linalg.eigvalsh(h[np.ix_(block, block)])[-1]
                    for score, block in zip(scores, order, strict=True)
                ]
            block = order[np.argmax(scores)]
        part = h[np.ix_(block, block)]
        step = np.linalg.solve(part, g[block]) if run.step == "Newton" else None
        x[block] -= g[block] / np.linalg.eigvalsh(part)[-1] if step is None else step
    return np.array(values) / values[0]


@pytest.mark.parametrize(
    "run",
    [
        target.Run("fixed", "GS", "gradient", 5),
        target.Run("fixed", "GSL", "gradient", 5),
        target.Run("variable", "GSD", "Newton", 5),
    ],
)
def test_runs_are_those_of_a_loop_over_the_blocks(data, run):
    lines = target.by_seed(data, LOSS, run)
    assert lines.shape == (2, 60 // target.EVERY + 1)
    for seed, line in enumerate(lines):
        expected = descended(*problem(seed), run, 60)[:: target.EVERY]
        np.testing.assert_allclose(line, expected, rtol=1e-6)


def test_data_are_those_of_the_paper():
    """Normal around 1 in the units of each feature, of which a fixed share is kept."""
    a, b = problem(0)
    kept = a != 0
    density = 10 * np.log(100) / 100
    assert kept.mean() == pytest.approx(density, abs=4 * np.sqrt(density / 1e5))
    columns = np.where(kept.sum(axis=0) > 20, np.nan_to_num(a.sum(axis=0) / kept.sum(axis=0)), 0)
    # Around 10 N(0, 1) with an error of 10 N(0, 1) / sqrt(46).
    assert columns.std() == pytest.approx(10 * np.sqrt(1 + 1 / 46), rel=0.1)
    assert np.linalg.matrix_rank(a) == 100 and np.std(b) > 10
    assert set(problem(1, logistic=True)[1]) == {-1.0, 1.0}


def test_rates_by_hand():
    """Two digits in 10 iterations; fifteen in 5, after which nothing counts; none."""
    assert target.EVERY == 5
    lines = np.array([[1, 0.1, 1e-2], [1, 1e-16, 1e-16], [1, 1, 1]])
    assert target.rates(lines) == pytest.approx([20, 300, 0])


def test_every_comparison_is_of_two_runs_that_are_made():
    pairs = target.comparisons()
    assert all(run in target.RUNS for pair in pairs for run in pair)
    assert len(set(pairs)) == len(pairs) and set(target.QUICK) <= set(target.RUNS)
    claims = {(target.described(a, b), target.described(b, a)) for a, b in pairs}
    assert len(claims) == len(pairs) and all(a != b for a, b in claims)


def test_the_judge_says_no_when_two_rules_change_places(data):
    held = {part.claim: part.holds for part in target.judge(data)}
    claim = f"{LOSS}: GSL fixed above random fixed"
    assert held[claim] and all(name.startswith(LOSS) for name in held)
    names = {"GSL": "random", "random": "GSL"}
    swapped = {**data, "rule": np.array([names.get(name, name) for name in data["rule"]])}
    assert not {part.claim: part.holds for part in target.judge(swapped)}[claim]


def test_a_difference_within_two_standard_errors_does_not_hold():
    better, worse = target.RUNS[:2]

    def table(ends):
        """Of two seeds each, a loss of 1 and the given one after it."""
        rows = [
            (LOSS, *run, seed, step * target.EVERY, [1.0, value][step])
            for run, values in zip((better, worse), ends, strict=True)
            for seed, value in enumerate(values)
            for step in (0, 1)
        ]
        names = ("loss", *target.Run._fields, "seed", "iteration", "value")
        return {n: np.array(c) for n, c in zip(names, zip(*rows, strict=True), strict=True)}

    assert target.faster(table([(1e-3, 1e-4), (1e-2, 1e-3)]), LOSS, better, worse).holds
    assert not target.faster(table([(1e-3, 1e-3), (1e-3, 1e-3)]), LOSS, better, worse).holds
    # Digits 3 and 1 less than none: a mean of 1 with a standard error of 1.
    assert not target.faster(table([(1e-3, 1e-2), (1e-1, 1e-2)]), LOSS, better, worse).holds
    assert target.faster(table([(1e-3, 1e-2), (1e-1, 1e-2)]), "logistic", better, worse) is None
