"""Lines are found by class, the best rate is run from all seeds, and the judges can say no."""

import numpy as np
import pytest

from experiments.figures import mezo_prompt, prompted, qzo, sparse_mezo, zo_bench

SOURCE = '''"""A docstring whose first line is long enough to count.

    Indented prose of forty characters or so, with no code.
"""

def function(argument, other_argument, third):
    return argument + other_argument * third - 1  # and so on
x = "short"
'''


def test_lines_are_prose_or_code_without_their_indentation():
    found = list(prompted.lines(SOURCE))
    assert [label for _, label in found] == [1, 1, 0, 0]
    assert all(len(text) == prompted.BYTES for text, _ in found)
    assert found[1][0].startswith(b"Indented prose") and found[3][0].startswith(b"return argument")
    assert list(prompted.lines("def broken(:\n  (")) == []


def test_both_classes_are_as_frequent_and_split_without_overlap():
    text = np.frombuffer(b"\0".join([SOURCE.encode()] * 600), np.uint8)
    train, test = prompted.samples(text)
    assert len(train.label) == prompted.TRAINED_ON
    labels = np.concatenate([train.label, test.label])
    assert labels.mean() == 0.5


def test_the_best_rate_is_run_from_all_seeds(monkeypatch):
    def runner(known, setting, budget):
        # The training loss is least at ten times the first rate; the test loss tells the seed.
        return lambda rate, seed: (abs(np.log10(rate) + 2), float(seed), 0.5)

    monkeypatch.setattr(prompted, "runner", runner)
    settings = {"one": prompted.Setting(None, 1e-3, 2)}
    data = prompted.as_table(prompted.sweep(None, settings, 10, 3))
    np.testing.assert_allclose(data["rate"][-3:], 1e-2)
    assert data["seed"][-3:].tolist() == [0, 1, 2]
    assert prompted.finals(data, "test_loss")["one"].tolist() == [0.0, 1.0, 2.0]


def table(losses, rates=None, accuracies=None, **columns):
    """Three seeds around a loss for each method."""
    rows = []
    for name, loss in losses.items():
        rate = (rates or {}).get(name, 1e-3)
        right = (accuracies or {}).get(name, 0.9)
        rows += [(name, rate, s, loss, loss + 0.001 * s, right + 0.001 * s) for s in range(3)]
    data = prompted.as_table(rows)
    for name, by in columns.items():
        data[name] = np.array([by[method] for method in data["method"]])
    return data


def held(target, data):
    return [part.holds for part in target.judge(data)]


BENCH = {
    zo_bench.BEFORE: 0.6,
    zo_bench.SGD: 0.4,
    zo_bench.FORWARD: 0.4,
    zo_bench.BLOCKS: 0.35,
    zo_bench.SPARSE: 0.38,
    zo_bench.FIRST_ORDER: 0.2,
}


@pytest.mark.parametrize(
    ("changed", "fails"),
    [
        ({}, None),
        ({zo_bench.SPARSE: 0.7}, 0),
        ({zo_bench.FIRST_ORDER: 0.36}, 1),
        ({zo_bench.FORWARD: 0.5}, 2),
        ({zo_bench.BLOCKS: 0.4}, 3),
        ({zo_bench.SPARSE: 0.4}, 4),
    ],
)
def test_zo_bench_judges_each_part(changed, fails):
    failed = [i for i, holds in enumerate(held(zo_bench, table(BENCH | changed))) if not holds]
    assert failed[:1] == ([] if fails is None else [fails])


def test_mezo_prompt_judges_each_part():
    loss = dict.fromkeys(
        [mezo_prompt.BEFORE, mezo_prompt.TWO, mezo_prompt.ONE, mezo_prompt.NO_PROMPT], 0.5
    )
    good = loss | {mezo_prompt.TWO: 0.3, mezo_prompt.HYBRID: 0.4}
    right = {mezo_prompt.BEFORE: 0.7, mezo_prompt.TWO: 0.9, mezo_prompt.NO_PROMPT: 0.6}
    assert held(mezo_prompt, table(good, accuracies=right)) == [True] * 4
    bad = loss | {mezo_prompt.HYBRID: 0.5}
    wrong = dict.fromkeys(bad, 0.55)
    assert held(mezo_prompt, table(bad, accuracies=wrong)) == [False] * 4


def test_sparse_mezo_judges_each_part():
    names = [f(s) for s in sparse_mezo.SPARSITIES for f in (sparse_mezo.small, sparse_mezo.random)]
    equal = dict.fromkeys([sparse_mezo.MEZO, *names], 0.4)
    assert held(sparse_mezo, table(equal)) == [False] * 5
    smalls = {sparse_mezo.small(s): 0.3 for s in sparse_mezo.SPARSITIES}
    rates = dict.fromkeys(smalls, 3e-3)
    assert held(sparse_mezo, table(equal | smalls, rates)) == [True] * 5


def test_qzo_judges_each_part():
    methods = [qzo.MEZO, *map(qzo.named, qzo.BITS)]
    losses = {qzo.untuned(m): 0.6 for m in methods} | dict.fromkeys(methods, 0.4)
    sizes = {qzo.MEZO: 4000, qzo.named(8): 1100, qzo.named(4): 600}
    held_bytes = sizes | {qzo.untuned(m): sizes[m] for m in methods}
    assert held(qzo, table(losses, block_bytes=held_bytes)) == [True] * 6
    little = losses | {qzo.named(b): 0.55 for b in qzo.BITS}
    assert held(qzo, table(little, block_bytes=held_bytes)) == [True, True, False] * 2
    large = dict.fromkeys(held_bytes, 4000)
    assert held(qzo, table(losses, block_bytes=large)) == [True, False, True] * 2
