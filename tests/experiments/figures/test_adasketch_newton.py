"""The problems are those of CUTEst, exact and sketched solves make one step, the judge is fair."""

import jax
import numpy as np
import pytest

from experiments.figures import adasketch_newton as target

pytestmark = pytest.mark.slow

# f at the solutions, as Hock and Schittkowski and the CUTEst files give them.
VALUES = {
    "HS6": 0.0,
    "HS7": -(3**0.5),
    "HS28": 0.0,
    "HS40": -0.25,
    "HS42": 28 - 10 * 2**0.5,
    "HS77": 0.24150513,
    "HS78": -2.91970041,
    "HS79": 0.0787768209,
    "HS100LNP": 680.6300573,
    "BT5": 961.7151721,
    "BT9": -1.0,
    "BT10": -1.0,
}


@pytest.fixture(scope="module")
def data():
    return target.measure(quick=True)


def residuals(data, method, problem):
    return target.runs_of(data, method)[problem]["residual"]


@pytest.mark.parametrize("name", target.PROBLEMS)
def test_problems_have_the_solutions_that_are_known_and_take_the_authors_number_of_steps(name):
    problem = target.PROBLEMS[name]
    with jax.enable_x64(True):
        steps = target.exact(problem)
    assert steps[-1].residual <= target.TOLERANCE
    # A residual of 1e-4 is an error of f of the same order, times the multipliers.
    assert steps[-1].value == pytest.approx(VALUES[name], abs=2e-4, rel=1e-6)
    # On these two, sketched solves are cut off, and the direction is another one.
    departs = {"BT9": 13, "HS100LNP": 8}
    assert len(steps) - 1 == departs.get(name, problem.published)


def test_sketched_solves_take_the_exact_steps(data):
    for name in target.QUICK:
        expected = residuals(data, target.EXACT, name)
        for method in target.SKETCHES:
            # The accuracy of a solve, 1e-8 of a direction, of the first residual.
            atol = 1e-8 * expected[0]
            np.testing.assert_allclose(residuals(data, method, name), expected, rtol=0, atol=atol)


def test_work_is_counted_as_it_is_told(data):
    exact, gv, rk = (target.runs_of(data, m)["HS28"] for m in (target.EXACT, "GV", "RK"))
    assert exact["products"].tolist() == [0, pytest.approx(4 / 3 + 1)]  # 3 unknowns, 1 multiplier
    assert gv["products"][-1] % 2 == 0 and (4 * rk["products"][-1]) % 5 == 0
    assert min(gv["products"][-1], rk["products"][-1]) > 100
    assert exact["gradients"].tolist() == gv["gradients"].tolist() == [1, 2]


def test_logistic_regression_starts_where_the_paper_does():
    with jax.enable_x64(True):
        problem = target.logistic()
        x, multipliers, local = target.begin(problem)
        here = target.Local(*map(np.asarray, local(x, multipliers)))
    assert x.tolist() == [1.0] * 30 and multipliers.tolist() == [1.0] * 11
    assert here.constraint[-1] == 29 and here.jacobian[-1].tolist() == [2.0] * 30
    # The Hessian is that of f, which is positive, and twice the identity of the sphere.
    assert np.linalg.eigvalsh(here.hessian)[0] >= 2


def test_inner_minimum_of_the_augmented_lagrangian_by_hand():
    """x^2 / 2 + x + 2 (x - 3) + 3/2 (x - 3)^2 is smallest at 4 x = 6."""
    problem = target.Problem(lambda x: x @ x / 2 + x[0], lambda x: x - 3.0, [5.0])
    with jax.enable_x64(True):
        _, _, local = target.begin(problem)
        x, count = target.minimized(np.array([5.0]), np.array([2.0]), 3.0, 1e-9, local)
    assert x == pytest.approx([1.5], abs=1e-9) and 0 < count < 100


def test_the_judge_says_no_to_what_fails(data):
    held = {part.claim: part.holds for part in target.judge(data)}
    assert held["GV: ends at a residual of 0.0001"] and held["RK: every direction descends"]
    assert held["GV: as many steps as with exact solves"]
    last = (data["method"] == "GV") & (data["problem"] == "HS42") & (data["residual"] < 1e-4)
    assert last.sum() == 1
    for column, value, claim in (
        ("residual", 1.0, "ends at a residual of 0.0001"),
        ("descends", 0, "every direction descends"),
        ("step_size", 0.5, "the last step has unit length"),
    ):
        changed = {**data, column: np.where(last, value, data[column])}
        [part] = [part for part in target.judge(changed) if part.claim == f"GV: {claim}"]
        assert not part.holds and part.measured == "1 of 2; not HS42"


def test_the_same_steps_are_asked_for_where_no_solve_is_cut_off(data):
    claim = "the same where no solve is cut off"
    runs, exact = (target.runs_of(data, method) for method in ("GV", target.EXACT))
    longer = {name: {c: np.append(v, v[-1]) for c, v in run.items()} for name, run in runs.items()}
    assert target.claims(runs, exact, {})[claim] == {"HS28": True, "HS42": True}
    assert target.claims(longer, exact, {})[claim] == {"HS28": False, "HS42": False}
    longer["HS42"]["cut"][1] = 1
    assert target.claims(longer, exact, {})[claim] == {"HS28": False}


def test_comparisons_by_hand(data):
    # The Lagrangian method takes 27 and 141 gradients, ours 2 and 5.
    part = target.fewer("GV", "gradients", data, target.LAGRANGIAN)
    assert part.holds and "2 problems" in part.measured
    assert not target.fewer("GV", "products", data, target.EXACT).holds
    assert not target.fewer("GV", "gradients", data, "GV").holds
    assert target.counted("", {"a": True, "b": True}).holds
    failing = target.counted("", {"a": True, "b": False})
    assert not failing.holds and failing.measured == "1 of 2; not b"
