"""Runs take back what they should, schedules are what they are called, the judge can say no."""

import jax
import numpy as np
import pytest

from experiments.figures import autolrs as target

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def steps():
    return target.compiled()


def test_schedules():
    np.testing.assert_array_equal(target.schedule("constant", 0.1, 4), [0.1] * 4)
    np.testing.assert_allclose(
        target.schedule("cosine", 2.0, 4), [2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5]
    )


def test_rates_reach_the_steps_and_chunks_the_batches(steps):
    """Two chunks of one call are two calls of one; rate zero moves nothing but the momentum."""
    start = target.start(steps, 0)
    rates = np.linspace(0.01, 0.02, 2 * target.CHUNK)
    whole, losses = target.advance(steps, 0, start, rates)
    first, early = target.advance(steps, 0, start, rates[: target.CHUNK])
    second, late = target.advance(steps, 0, first, rates[target.CHUNK :])
    np.testing.assert_array_equal(losses, np.concatenate([early, late]))
    assert whole.step == second.step == 2 * target.CHUNK
    jax.tree.map(np.testing.assert_array_equal, whole.params, second.params)
    assert losses[-10:].mean() < losses[:10].mean() / 2
    still, _ = target.advance(steps, 0, start, np.zeros(target.CHUNK))
    jax.tree.map(np.testing.assert_array_equal, still.params, start.params)


def test_the_search_leaves_only_its_stages(steps):
    found = target.searched(steps, 0, 500, 500)
    assert found.step == 500
    assert [point[0] for point in found.curve] == [250, 500]
    (rate,) = {point[1] for point in found.curve}
    again, _ = target.advance(steps, 0, target.start(steps, 0), np.full(500, rate))
    jax.tree.map(np.testing.assert_array_equal, found.params, again.params)


def table(ours, constant, cosine):
    """Two seeds, two points; the second of the peers' two rates is the best."""
    rows = []
    for name, ends in ((target.OURS, [ours]), ("constant", constant), ("cosine", cosine)):
        for rate, end in enumerate(ends):
            for seed in range(2):
                for step, loss in ((250, end + 0.2), (500, end)):
                    value = loss + 0.001 * seed
                    rows.append((name, float(rate), seed, step, 0.1, value, value, 0.1))
    names = ("method", "peak_rate", "seed", "step", "learning_rate")
    names = (*names, *target.MEASURES, "validation_error")
    return dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))


def test_the_judge_says_yes_and_no():
    def held(*ends):
        return [part.holds for part in target.judge(table(*ends))]

    assert held(0.1, (0.5, 0.3), (0.9, 0.4)) == [True] * 7
    # Worse than the constant, at the cosine's end only with the last step.
    assert held(0.35, (0.5, 0.3), (0.9, 0.36)) == [False, True, False, True, False, False, True]
    assert held(1.0, (0.5, 0.3), (0.9, 0.4)) == [False] * 7
