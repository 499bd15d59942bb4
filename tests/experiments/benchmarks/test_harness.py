"""The harness calls what it says it calls, and its statistics are those of a hand count."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness


def counting(calls, name):
    """A compiled candidate that notes each call and adds its input to its carry."""

    def call(carry, inputs):
        calls.append(name)
        return carry + inputs

    return harness.Compiled(call, jnp.zeros(()), jnp.ones(()), {})


def test_every_round_calls_each_candidate_once_and_the_first_is_not_counted():
    calls = []
    candidates = {name: counting(calls, name) for name in "abc"}
    seconds = harness.time_interleaved(candidates, repeats=7)
    rounds = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert len(rounds) == 8
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1  # a fixed order would favour one place
    assert {name: len(samples) for name, samples in seconds.items()} == {"a": 7, "b": 7, "c": 7}


def test_the_carry_is_donated_and_threaded():
    carry = jnp.zeros(1000)
    compiled = harness.compile_candidate(
        harness.Candidate(lambda a, b: a + b, carry, jnp.ones(1000))
    )
    seen = []

    def call(carry, inputs):
        seen.append(float(carry[0]))
        return compiled.call(carry, inputs)

    harness.time_interleaved({"sum": compiled._replace(call=call)}, repeats=3)
    assert seen == [0.0, 1.0, 2.0, 3.0]
    assert carry.is_deleted()
    assert compiled.facts["donated_bytes"] == 4000
    assert compiled.facts["argument_bytes"] == 8000


def test_ratios_of_medians_and_within_rounds_differ_as_they_should():
    found = harness.ratios(np.array([2.0, 4.0, 9.0]), np.array([1.0, 4.0, 3.0]))
    assert found["of_medians"] == 4.0 / 3.0
    assert found["paired_median"] == 2.0
    assert found["paired_lower_quartile"] == 1.5
    assert found["paired_upper_quartile"] == 2.5


def test_the_limit_moves_the_ideal_bytes():
    step, carry, inputs, _ = harness.bandwidth(1200)
    assert 2 * carry.nbytes + inputs.nbytes == 1200
    assert step(carry, inputs).shape == carry.shape


def test_compare_measures_candidates_and_limit_against_both_peers():
    def build():
        return harness.Candidate(lambda a, b: jax.tree.map(jnp.add, a, b), jnp.ones(8), jnp.ones(8))

    comparison = harness.Comparison({"ours": build, "theirs": build}, "theirs", ideal_bytes=96)
    records = harness.compare(comparison, repeats=2)
    assert list(records) == ["ours", "theirs", harness.LIMIT]
    assert records["theirs"]["ratio_to"]["theirs"]["of_medians"] == 1.0
    assert set(records["ours"]["ratio_to"]) == {"theirs", harness.LIMIT}
    assert records["ours"]["median_seconds"] == np.median(records["ours"]["seconds"])

    records = harness.compare(comparison._replace(ideal_bytes=None), repeats=2)
    assert list(records) == ["ours", "theirs"]
