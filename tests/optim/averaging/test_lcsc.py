"""The search finds the least value over the plane of weights, within its budget, from its key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim

TRAJECTORY = np.cumsum(np.random.default_rng(0).normal(size=(4, 3)), axis=0)
CHECKPOINTS = [{"w": jnp.asarray(w, jnp.float32)} for w in TRAJECTORY]
TARGET = 0.5 * TRAJECTORY[0] - 0.9 * TRAJECTORY[1] + 1.4 * TRAJECTORY[3] + 0.1


def distance(params):
    return float(np.sum((np.asarray(params["w"], np.float64) - TARGET) ** 2))


@pytest.fixture(scope="module")
def searched():
    return optim.lcsc(CHECKPOINTS, distance, jax.random.key(1), evaluations=600)


def test_the_first_population_is_exponential(searched):
    _, info = searched
    for decay, value, weights in zip((0.0, 0.3, 0.5), info.values, info.weights):
        expected = optim.ema_weights(4, decay)
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
        merged = optim.combine_checkpoints(CHECKPOINTS, expected)
        assert value == pytest.approx(distance(merged), rel=1e-4)


def test_weights_of_every_candidate_sum_to_one_and_may_be_negative(searched):
    weights, info = searched
    np.testing.assert_allclose(info.weights.sum(axis=1), 1, atol=1e-6)
    assert weights[1] < 0
    assert info.values.shape == (600,) and info.weights.shape == (600, 4)


def test_it_ends_far_below_where_it_began(searched):
    """Affine weights of four points reach every point of space, so the least value is zero."""
    weights, info = searched
    start = info.values[:8].min()
    singles = min(distance(checkpoint) for checkpoint in CHECKPOINTS)
    assert info.value == info.values.min() < 0.01 * min(start, singles)
    found = distance(optim.combine_checkpoints(CHECKPOINTS, weights))
    assert found == pytest.approx(info.value, rel=1e-3, abs=1e-6)


def test_children_come_from_the_better_half(searched):
    """Of four rates the worse two lead nowhere; without mutation weights are mixed alone."""
    decays = (0.0, 0.5, 0.9, 0.999)
    value = {0: 1.0, 1: 2.0, 2: 8.0, 3: 9.0}
    calls = iter(range(40))
    _, info = optim.lcsc(
        CHECKPOINTS,
        lambda params: value.get(next(calls), 50.0),
        jax.random.key(2),
        evaluations=40,
        decays=decays,
        mutation=0.0,
    )
    first, second = info.weights[:2]
    for child in info.weights[4:]:
        # Without the shift that makes the sum 1, each weight is one parent's or the other's.
        shifts = np.stack([child - first, child - second])
        assert any(np.all(np.min(np.abs(shifts - s), axis=0) < 1e-6) for s in shifts[:, 0])


def test_the_key_decides(searched):
    again = optim.lcsc(CHECKPOINTS, distance, jax.random.key(1), evaluations=30)[1]
    other = optim.lcsc(CHECKPOINTS, distance, jax.random.key(3), evaluations=30)[1]
    np.testing.assert_array_equal(again.weights[:8], other.weights[:8])
    assert not np.array_equal(again.weights[8:], other.weights[8:])


def test_what_is_not_finite_is_the_worst():
    def fails_beside_the_last(params):
        value = distance(params)
        return value if value <= distance(CHECKPOINTS[-1]) + 1e-6 else np.nan

    weights, info = optim.lcsc(
        CHECKPOINTS, fails_beside_the_last, jax.random.key(0), evaluations=60
    )
    assert np.isinf(info.values).any() and np.isfinite(info.value)
    assert jnp.isfinite(weights).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoints": CHECKPOINTS[:1]}, "lcsc: there are 1 checkpoints and 8 decays"),
        ({"decays": (0.5,)}, "lcsc: there are 4 checkpoints and 1 decays"),
        ({"evaluations": 7}, "lcsc: evaluations is 7; accepted: evaluations >= 8"),
        ({"mutation": -1.0}, r"lcsc: mutation is -1.0; accepted: mutation >= 0"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    given = {"checkpoints": CHECKPOINTS, "evaluate": distance, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match=message):
        optim.lcsc(**{**given, **arguments})
