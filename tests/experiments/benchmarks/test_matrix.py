"""The matrix benchmark compares methods that do the same work."""

import jax
import numpy as np
import pytest

from experiments.benchmarks import matrix


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["1 listed", "1 stacked"])
def test_all_take_the_same_first_step(layers):
    """Later ones differ by optax's bias correction; roundings are amplified by the iteration."""
    found = matrix.candidates(quick=True).candidates
    steps = {}
    for name, build in found.items():
        if name.startswith(layers):
            candidate = build()
            steps[name], _ = jax.jit(candidate.step)(candidate.carry, candidate.inputs)
    expected = steps[f"{layers}: optax"]
    assert len(steps) == len(matrix.METHODS)
    for step in steps.values():
        for ours, theirs in zip(jax.tree.leaves(step), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours / matrix.RATE, theirs / matrix.RATE, atol=2e-3)


def test_the_full_comparison_has_every_depth_and_runs_one():
    found = matrix.candidates(quick=False)
    depths = [{int(name.split()[0]) for name in x} for x in (found.candidates, found.compiled_only)]
    assert depths == [{12}, {24, 48}] and found.reference in found.candidates
    assert found.most_repeats == matrix.ROUNDS
