"""The runs take the steps they say, tuning and results share no seed, and the judge can say no."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.figures import refined_schedules as target
from experiments.tasks.logistic import LogisticRegression

pytestmark = pytest.mark.slow


def test_a_run_is_sgd_on_the_batches_of_its_seed_in_order():
    task = LogisticRegression(data="iris").build()
    batches = jax.tree.map(lambda x: x[0], target.batches_of(task, (5,), 3, 4))
    values, rate = np.array([1.0, 0.5, 0.25]), 0.3
    params, norms = target.trained(
        task, "sgd", task.init(target.KEY), batches, jnp.asarray(values), rate
    )
    ours, seen = task.init(target.KEY), []
    for t in range(3):
        gradient = jax.grad(lambda p, t=t: task.loss(p, task.batches(5, 4 * t, 4), target.KEY)[0])(
            ours
        )
        seen.append(np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient))))
        ours = jax.tree.map(lambda p, g, t=t: p - rate * values[t] * g, ours, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, ours)
    np.testing.assert_allclose(norms, seen, rtol=1e-5)


@pytest.fixture(scope="module")
def rows():
    return target.convex("iris", "adam", 40)


def test_every_schedule_is_tuned_on_one_grid_and_judged_by_other_seeds(rows):
    for name in target.SCHEDULES:
        tuning = [row for row in rows if row.kind == "tune" and row.schedule == name]
        final = [row for row in rows if row.kind == "final" and row.schedule == name]
        assert len(tuning) == 3 * len(target.GRIDS["adam"]) and len(final) == 10
        assert not {row.seed for row in tuning} & {row.seed for row in final}
        means = {
            rate: np.mean([row.value for row in tuning if row.rate == rate])
            for rate in target.GRIDS["adam"]
        }
        assert {row.rate for row in final} == {min(means, key=means.get)}
    assert min(row.value for row in rows if row.kind == "final") > -1e-6  # above the optimum


def test_schedules_have_the_shapes_of_their_names():
    steps = np.arange(20)
    np.testing.assert_allclose(target.multipliers("linear", 20), 1 - steps / 20, atol=1e-6)
    cosine = (1 + np.cos(np.pi * steps / 20)) / 2
    np.testing.assert_allclose(target.multipliers("cosine", 20), cosine, atol=1e-6)
    assert (target.multipliers("constant", 20) == 1).all()
    warm = target.multipliers("linear", 20, warmup=0.1)
    np.testing.assert_allclose(warm[:4], [0, 0.5, 1, 17 / 18], rtol=1e-6)


def table(ends):
    """Ten results a problem and schedule, close to the given means."""
    rows = [
        target.Row("final", problem, schedule, 1.0, seed, 10, mean + 1e-3 * (-1) ** seed)
        for problem, means in ends.items()
        for schedule, mean in zip(target.SCHEDULES, means, strict=True)
        for seed in range(10)
    ]
    columns = zip(*rows, strict=True)
    names = target.Row._fields
    return {name: np.array(column) for name, column in zip(names, columns, strict=True)}


GOOD, BAD = (1.0, 2.0, 3.0, 4.0), (4.0, 3.0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("ends", "held"),
    [
        ({"a, sgd": GOOD, "b, sgd": GOOD, "decoder, adamw": GOOD}, [True] * 7),
        ({"a, sgd": BAD, "b, sgd": BAD, "decoder, adamw": BAD}, [False] * 7),
        ({"a, sgd": GOOD, "b, sgd": BAD, "decoder, adamw": BAD}, [False] * 7),
        ({"a, sgd": (1.0,) * 4, "decoder, adamw": (1.0,) * 4}, [True] * 3 + [False] + [True] * 3),
    ],
)
def test_the_judge_counts_problems_and_wants_differences_for_below(ends, held):
    assert [part.holds for part in target.judge(table(ends))] == held


def test_the_example_is_the_authors():
    norms = target.synthetic()
    np.testing.assert_allclose(norms["constant"], 1, rtol=1e-12)
    assert norms["growing"][-1] > 1.9 and norms["shrinking"][-1] < 0.75 and norms["flat"][0] > 5
