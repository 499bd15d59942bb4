"""CBO: a step in numpy, its limits, its rates, and batches as an epoch's permutation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order
from optim import trees


def square(p, batch):
    return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(p))


def particles(count=6):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=(count, *shape)), jnp.float32)

    return {"a": draw(2, 2), "b": draw(3), "c": draw()}


def flat(tree):
    return np.concatenate([np.reshape(x, (x.shape[0], -1)) for x in jax.tree.leaves(tree)], axis=1)


def drawn(tree, key, step):
    """The normal numbers of a step, by the leaves' paths as the state's key gives them."""
    key = jax.random.fold_in(trees.named_key(key, "cbo"), step)
    return {
        name: jax.random.normal(trees.named_key(jax.random.clone(key), name), x.shape)
        for name, x in tree.items()
    }


def by_hand(x, z, alpha, noise, dt=0.05, drift=2.0, sigma=0.7):
    losses = (x**2).sum(axis=1)
    weights = np.exp(-alpha * losses) / np.exp(-alpha * losses).sum()
    apart = x - weights @ x
    size = apart if noise == "anisotropic" else np.linalg.norm(apart, axis=1, keepdims=True)
    return x - drift * dt * apart + sigma * np.sqrt(dt) * size * z, weights @ x


@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
def test_two_steps_by_hand(noise):
    algorithm = zeroth_order.cbo(
        square, noise=noise, dt=0.05, drift=2.0, sigma=0.7, alpha=0.5, growth=3.0, alpha_max=1.2
    )
    key = jax.random.key(5)
    state, x = algorithm.init(particles(), jax.random.clone(key)), flat(particles()).astype(float)
    for step, alpha in enumerate((0.5, 1.2)):
        z = flat(drawn(particles(), jax.random.clone(key), step))
        lowest = (x**2).sum(axis=1).min()
        x, consensus = by_hand(x, z, alpha, noise)
        state, info = algorithm.update(state, None)
        np.testing.assert_allclose(flat(state.particles), x, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(
            flat(jax.tree.map(lambda c: c[None], info.consensus))[0], consensus, rtol=2e-5
        )
        np.testing.assert_allclose(info.loss, lowest, rtol=1e-5)
        np.testing.assert_allclose(info.alpha, alpha)
    assert info.evaluations == 6 and state.step == 2


def test_a_large_alpha_takes_the_best_particle_and_none_the_mean():
    for alpha, expected in ((1e5, None), (1e-9, "mean")):
        algorithm = zeroth_order.cbo(square, alpha=alpha)
        state = algorithm.init(particles(), jax.random.key(0))
        _, info = algorithm.update(state, None)
        x = flat(particles())
        best = x.mean(axis=0) if expected else x[(x**2).sum(axis=1).argmin()]
        found = flat(jax.tree.map(lambda c: c[None], info.consensus))[0]
        np.testing.assert_allclose(found, best, rtol=1e-5, atol=1e-6)


def test_weights_tell_near_losses_apart_where_alpha_is_large():
    """Of losses of 1000 and a thousandth more, alpha times each would be rounded to 1e8."""
    losses = jnp.float32(1000) + jnp.array([0.0, 2.0**-13])
    algorithm = zeroth_order.cbo(lambda p, batch: losses[p.astype(int)], alpha=8192.0)
    state = algorithm.init(jnp.array([0.0, 1.0]), jax.random.key(0))
    _, info = algorithm.update(state, None)
    np.testing.assert_allclose(info.consensus, 1 / (1 + np.e), rtol=1e-5)


@pytest.mark.slow
def test_one_particle_stays():
    algorithm = zeroth_order.cbo(square)
    alone = particles(1)
    state, _ = algorithm.update(algorithm.init(alone, jax.random.key(0)), None)
    np.testing.assert_array_equal(flat(state.particles), flat(alone))


def test_without_noise_distances_shrink_at_the_rate_of_the_drift():
    algorithm = zeroth_order.cbo(square, sigma=0.0, dt=0.1, drift=3.0)
    state = algorithm.init(particles(), jax.random.key(0))
    for _ in range(5):
        state, _ = algorithm.update(state, None)

    def apart(x):
        return flat(x) - flat(x)[0]

    np.testing.assert_allclose(apart(state.particles), 0.7**5 * apart(particles()), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "dimension"), [("anisotropic", 1), ("isotropic", 4)])
def test_noise_has_the_size_that_the_equations_say(noise, dimension):
    """E ||x - c||^2 grows by (1 - drift dt)^2 + sigma^2 dt, times d for isotropic noise.

    The loss is constant but for one particle, at the origin, which is c.
    """
    count, drift, sigma, dt = 20000, 1.0, 2.0, 0.04
    algorithm = zeroth_order.cbo(square, noise=noise, dt=dt, drift=drift, sigma=sigma, alpha=1e5)
    start = jnp.ones((count, dimension)).at[0].set(0.0)
    state, info = algorithm.update(algorithm.init(start, jax.random.key(1)), None)
    np.testing.assert_allclose(info.consensus, 0.0)
    grown = float(jnp.mean(jnp.sum(state.particles[1:] ** 2, axis=1))) / dimension
    expected = (1 - drift * dt) ** 2 + sigma**2 * dt * dimension
    # A square of a normal has a relative deviation of sqrt(2): 1 % over 20,000, four of them.
    np.testing.assert_allclose(grown, expected, rtol=0.04)


def test_batches_are_a_permutation_an_epoch():
    algorithm = zeroth_order.cbo(
        square, batch_size=3, sigma=0.0, drift=50.0, alpha=1e-3, growth=1.0
    )
    start = jnp.arange(1.0, 12.0)[:, None]
    state, seen = algorithm.init(start, jax.random.key(2)), []
    for _ in range(6):
        before = state.particles
        state, info = jax.jit(algorithm.update)(state, None)
        # The drift halves distances to a mean that is no particle: these three alone move.
        seen.append({int(i) for i in np.flatnonzero((state.particles != before)[:, 0])})
        assert info.evaluations == 3 and len(seen[-1]) == 3
        inside = np.asarray(before)[sorted(seen[-1]), 0]
        np.testing.assert_allclose(info.loss, (inside**2).min(), rtol=1e-6)
    for epoch in (seen[:3], seen[3:]):
        assert len(set.union(*epoch)) == 9
    assert seen[:3] != seen[3:]


def test_it_finds_the_lowest_of_many_minima():
    def rastrigin(x, batch):
        return jnp.sum((x - 1) ** 2 - 10 * jnp.cos(2 * jnp.pi * (x - 1)) + 10)

    algorithm = zeroth_order.cbo(rastrigin)
    start = jax.random.uniform(jax.random.key(0), (100, 4), minval=-3.0, maxval=3.0)
    state = algorithm.init(start, jax.random.key(1))
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: algorithm.update(s, None), s, length=600))
    _, info = run(state)
    np.testing.assert_allclose(info.consensus[-1], 1.0, atol=0.05)


@pytest.mark.slow
def test_particles_are_scattered_around_a_point():
    algorithm = zeroth_order.cbo(square, around=(4000, 0.5))
    point = {"w": jnp.array([2.0, -1.0], jnp.bfloat16), "b": jnp.array(3.0)}
    state = algorithm.init(point, jax.random.key(3))
    assert state.particles["w"].dtype == jnp.bfloat16 and state.particles["b"].shape == (4000,)
    # Five standard errors of a mean, 0.5 / sqrt(4000), and as many of a deviation.
    np.testing.assert_allclose(state.particles["b"].mean(), 3.0, atol=0.04)
    np.testing.assert_allclose(state.particles["b"].std(), 0.5, atol=0.03)
    state, info = algorithm.update(state, None)
    assert state.particles["w"].dtype == info.consensus["w"].dtype == jnp.bfloat16


@pytest.mark.slow
def test_losses_that_are_no_numbers_weigh_nothing_and_nothing_flies_off():
    def loss(x, batch):
        return jnp.where(x[0] > 1.5, jnp.nan, jnp.sum(x**2))

    algorithm = zeroth_order.cbo(loss, alpha=1e5, sigma=0.0)
    start = jnp.array([[0.5], [1.0], [2.0]])
    state, info = algorithm.update(algorithm.init(start, jax.random.key(0)), None)
    np.testing.assert_allclose(info.consensus, [0.5])
    np.testing.assert_allclose(info.loss, 0.25)
    wild = zeroth_order.cbo(square, noise="isotropic", sigma=1e6)
    state = wild.init(start, jax.random.key(0))
    for _ in range(9):
        state, _ = wild.update(state, None)
    assert float(jnp.abs(state.particles).max()) == 1e8


def test_losses_of_examples_are_averaged():
    def losses(x, batch):
        return jnp.sum(x**2) * batch

    algorithm = zeroth_order.cbo(losses)
    state = algorithm.init(jnp.array([[2.0], [3.0]]), jax.random.key(0))
    _, info = algorithm.update(state, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(info.loss, 6.0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dt": 0.0}, "cbo: dt is 0.0; accepted: dt > 0"),
        ({"sigma": -1.0}, "cbo: sigma is -1.0; accepted: sigma >= 0"),
        ({"growth": 0.5}, "cbo: growth is 0.5; accepted: growth >= 1"),
        ({"noise": "white"}, "cbo: noise is 'white'; accepted: 'anisotropic', 'isotropic'"),
        ({"batch_size": 0}, "cbo: batch_size is 0; accepted: batch_size >= 1"),
        ({"around": (0, 1.0)}, "cbo: around: N is 0; accepted: N >= 1"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        zeroth_order.cbo(square, **arguments)


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        ({"a": jnp.ones((3, 2)), "b": jnp.ones(4)}, r"first axes are \[\(3,\), \(4,\)\]"),
        (jnp.ones(()), "first axes are"),
        (jnp.arange(3), "dtypes int32; accepted: floats"),
        ({}, "dtypes none; accepted: floats"),
        (jnp.ones((3, 2)), "batch_size is 4; accepted: at most 3 particles"),
    ],
)
def test_bad_particles_are_named(start, sentence):
    with pytest.raises(ValueError, match=sentence):
        zeroth_order.cbo(square, batch_size=4).init(start, jax.random.key(0))
