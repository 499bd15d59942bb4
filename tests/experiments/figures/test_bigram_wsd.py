"""The counts give the task's own gradient, the excess is the task's, and the judge can say no."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.figures import bigram_wsd as target
from experiments.tasks.bigram import BigramChain, make_chain

pytestmark = pytest.mark.slow


@pytest.fixture
def short(monkeypatch):
    """A chain of eight tokens, three steps."""
    for name, value in (("STEPS", 3), ("BATCH", 2), ("CHUNK", 1)):
        monkeypatch.setattr(target, name, value)
    return BigramChain(vocabulary=8, length=5)


def test_a_step_is_sgd_on_the_tasks_loss(short):
    task, chain = short.build(), make_chain(8, short.spread)
    counts = target.counts(chain, 5, [7])[0]
    assert counts.sum((1, 2)).tolist() == [10, 10, 10]
    key = jax.random.key(0)
    params, rates = task.init(key), jnp.array([3.0, 2.0, 1.0])
    excess = target.descend(chain, rates, jnp.asarray(counts))
    for t in range(3):
        batch = task.batches(7, 2 * t, 2)
        gradient = jax.grad(lambda p, b=batch: task.loss(p, b, key)[0])(params)
        ours = target.gradient(params["table"], jnp.asarray(counts[t]))
        np.testing.assert_allclose(ours, gradient["table"], atol=1e-7)
        params = {"table": params["table"] - rates[t] * gradient["table"]}
        exact = task.evaluate(params, jnp.asarray)
        expected = [exact["excess_near_deterministic"], exact["excess_high_entropy"]]
        np.testing.assert_allclose(excess[t], expected, rtol=1e-5)


def table(curves):
    """Two seeds a schedule and chain: excess (start, middle, before the decay, end) by kind."""
    steps = np.arange(target.CHUNK, target.STEPS + 1, target.CHUNK)
    knots = [0, target.DECAY_START / 2, target.DECAY_START, target.STEPS]
    columns = {name: [] for name in ("kind", "spread", "schedule", "seed", "step")}
    values = {f"excess_{kind}": [] for kind in target.KINDS}
    for spread in target.CHAINS:
        for schedule, (near, high) in curves.items():
            for seed in range(2):
                cells = ("final", spread, schedule, seed)
                for name, cell in zip(columns, cells, strict=False):
                    columns[name] += [cell] * len(steps)
                columns["step"] += steps.tolist()
                for column, curve in zip(values.values(), (near, high), strict=True):
                    column += (np.interp(steps, knots, curve) * (1 + 0.01 * seed)).tolist()
    return {name: np.array(column) for name, column in {**columns, **values}.items()}


RIVER = {
    "WSD": ([4, 2, 1, 0.9], [9, 5, 5, 1]),
    "cosine": ([4, 2, 1.5, 1.5], [9, 4, 3, 2]),
    "constant": ([4, 2, 1, 0.9], [9, 5, 5, 5]),
}


def test_what_holds_holds_for_each_chain():
    assert [part.holds for part in target.judge(table(RIVER))] == [True] * 14


@pytest.mark.parametrize(
    ("wsd", "held"),
    [
        (([4, 1, 1, 0.9], [9, 5, 5, 1]), [False, True, True, True, True, True, True]),
        (([4, 2, 1, 0.9], [9, 6, 5, 1]), [True, False, True, True, True, True, True]),
        (([4, 2, 1, 0.9], [9, 5, 5, 5]), [True, False, False, False, True, False, False]),
        (([4, 2, 1, 0.9], [9, 3, 3, 1]), [True, True, True, True, False, True, True]),
    ],
)
def test_the_judge_says_no(wsd, held):
    parts = target.judge(table({**RIVER, "WSD": wsd}))
    assert [part.holds for part in parts] == held * 2
