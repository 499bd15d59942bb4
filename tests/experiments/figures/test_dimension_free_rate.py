"""The rotation is orthonormal, runs fall as theory says, and the judge can say no."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from experiments.figures import dimension_free_rate as target

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data():
    return target.measure(quick=True)


def test_the_rotation_is_hadamards_and_its_own_inverse():
    x = jax.random.normal(jax.random.key(0), (16,))
    np.testing.assert_allclose(target.rotated(x), scipy.linalg.hadamard(16) @ x / 4, atol=1e-5)
    np.testing.assert_allclose(target.rotated(target.rotated(x)), x, atol=1e-6)


def test_spectra_have_the_ranks_that_the_docstring_says():
    for dimension in (64, 1024):
        ranks = {n: target.spectrum(n, dimension).sum() for n in (*target.FIXED, target.IDENTITY)}
        assert ranks["16 ones"] == 16
        assert ranks["geometric"] == pytest.approx(8, rel=1e-3)
        assert ranks["1 / i^2"] == pytest.approx(np.pi**2 / 6, rel=0.01)
        assert ranks["identity"] == dimension
        assert all(target.spectrum(n, dimension).max() == 1 for n in ranks)


def test_gamma_by_hand():
    assert target.gamma(2, 1.0) == 1.5
    assert target.gamma(100, 100.0) == pytest.approx(100)
    assert target.gamma(10**9, 16.0) == pytest.approx(18)
    assert target.gamma(10**9, 16.0, samples=17) == pytest.approx(2)


def test_the_identity_falls_by_one_over_d_a_step_whatever_the_draw():
    """z z' / d is a projection on one direction, for +-1 as on the sphere: all runs fall alike."""
    dimension = 64
    rate = 1 / target.gamma(dimension, dimension)
    run = jax.jit(lambda k: target.descend(jnp.ones(dimension), rate, 512, k))
    losses = np.array([run(k) for k in jax.random.split(jax.random.key(1), 8)])
    assert (np.diff(losses, axis=1) <= 1e-7).all()
    falls = -np.log(losses[:, -1]) / 512
    # A step divides the loss by 1 - u with u the squared cosine, of mean 1 / d; -log(1 - u) > u.
    assert 1 / dimension < falls.mean() < 1.2 / dimension + 0.02


def test_a_rate_beyond_twice_the_theorys_does_not_descend():
    dimension, rank = 256, 16
    values = jnp.asarray(target.spectrum("16 ones", dimension), jnp.float32)
    rate = 2.5 / target.gamma(dimension, rank)
    runs = jax.jit(jax.vmap(lambda k: target.descend(values, rate, 256, k)))
    losses = runs(jax.random.split(jax.random.key(2), 16))
    assert jnp.mean(losses[:, -1]) > 1


def table(falls, dimensions=(64, 256), seeds=4):
    """Losses that fall by so much in their logarithm, with a little spread."""
    rows = []
    for name, of in falls.items():
        for d, fall in zip(dimensions, of, strict=True):
            for seed in range(seeds):
                for step in (0, target.STEPS):
                    log = -(fall + 0.01 * (seed - 1.5)) * (step > 0)
                    rank = target.spectrum(name, d).sum()
                    rows.append((name, d, target.gamma(d, rank), seed, step, np.exp(log)))
    names = ("spectrum", "dimension", "gamma", "seed", "step", "loss")
    return {k: np.array(v) for k, v in zip(names, zip(*rows, strict=True), strict=True)}


def test_the_judge_says_no():
    fast = {"16 ones": (16, 16.5), "geometric": (3, 3.1), "1 / i^2": (3, 3.2)}
    good = table({**fast, "identity": (4.1, 1.02)})
    assert [part.holds for part in target.judge(good)] == [True] * 5
    slower = table({**fast, "geometric": (3, 2.6), "identity": (4.1, 1.02)})
    assert [p.holds for p in target.judge(slower)] == [True, False, True, True, True]
    not_by_d = table({**fast, "identity": (4.1, 2.0)})
    assert [p.holds for p in target.judge(not_by_d)] == [True, True, True, False, True]
    above = table({**fast, "16 ones": (10, 10.5), "identity": (4.1, 1.02)})
    assert [p.holds for p in target.judge(above)] == [True, True, True, True, False]


def test_the_quick_trial_is_judged_and_drawn(data):
    assert len(target.judge(data)) == 5
    assert len(target.plot(data).axes) == 2
    chosen = (data["spectrum"] == "identity") & (data["step"] == 0)
    assert (data["loss"][chosen] == 1).all()
