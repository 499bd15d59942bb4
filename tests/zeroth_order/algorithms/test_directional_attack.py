"""Covering direct search with attacks: each step by hand, barriers, radii, and what is counted."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order
from zeroth_order.algorithms import directional_attack as module


def identity(x):
    return x


def square(y):
    return jnp.sum(jnp.square(y))


def run(method, start, steps, key=0):
    state, told = method.init(jnp.asarray(start), jax.random.key(key)), []
    states = [state]
    for _ in range(steps):
        state, info = method.update(state)
        states.append(state)
        told.append(info)
    return states, told


def test_a_poll_is_a_positive_basis_at_the_radius():
    method = zeroth_order.directional_attack(identity, square, radius=0.3)
    state = method.init(jnp.array([1.0, -2.0, 0.5]), jax.random.key(0))
    steps = np.asarray(module._trials("poll", jax.random.key(1), state, 0.3) - state.x)
    assert steps.shape == (6, 3)
    np.testing.assert_allclose(np.abs(steps).max(axis=1), 0.3, rtol=1e-5)
    np.testing.assert_allclose(steps[:3], -steps[3:], atol=1e-6)
    units = steps[:3] / np.linalg.norm(steps[:3], axis=1, keepdims=True)
    np.testing.assert_allclose(units @ units.T, np.eye(3), atol=1e-5)
    # So that of any gradient some step is a descent.
    for gradient in np.random.default_rng(0).normal(size=(20, 3)):
        assert (steps @ gradient).min() < 0


def test_covering_fills_the_ball_and_searches_go_further():
    method = zeroth_order.directional_attack(identity, square, radius=0.5)
    state = method.init(jnp.zeros(2), jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 400)
    covering = jax.vmap(lambda key: module._trials("covering", key, state, 0.5)[0])(keys)
    lengths = np.linalg.norm(covering, axis=1)
    # Uniform in the disc: squares of lengths are uniform; 400 of them, of which three deviations.
    assert lengths.max() <= 0.5
    assert np.mean(lengths**2) / 0.25 == pytest.approx(0.5, abs=0.045)
    searched = module._trials("search", jax.random.key(2), state._replace(searches=3), 0.5)
    np.testing.assert_allclose(np.linalg.norm(searched), 1.0, rtol=1e-5)


@pytest.mark.slow
def test_direct_search_descends_on_a_quadratic_and_its_radii_follow():
    method = zeroth_order.directional_attack(identity, square, radius=1.0, attack=False)
    states, told = run(method, [3.0, -2.0, 1.0], 120)
    values = [state.value for state in states]
    assert all(after <= before for before, after in itertools.pairwise(values))
    assert values[-1] < 1e-4
    for before, after, info in zip(states, states[1:], told):
        np.testing.assert_allclose(after.value, square(after.x), rtol=1e-5)
        assert len(info.kept) <= 1 and "attack" not in info.kept
        factor = {(): 0.5, ("covering",): 1.0}.get(info.kept, 2.0)
        assert after.radius == max(1e-5, factor * before.radius)
        assert after.attack_radius == 1.0
        assert info.evaluations == {("covering",): 1, ("search",): 2}.get(info.kept, 8)


def test_an_attack_on_a_linear_model_is_its_sign():
    """Of Phi(x) = A x and loss b . y the attack ends at x - r sign(A' b), at the larger radius."""
    matrix, by = jnp.array([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0]]), jnp.array([1.0, -0.5])
    method = zeroth_order.directional_attack(lambda x: matrix @ x, lambda y: by @ y, radius=0.1)
    (before, after), (info,) = run(method, [0.3, 0.2, 0.1], 1)
    assert info.kept[0] == "attack"
    np.testing.assert_allclose(after.attack_radius, 0.13, rtol=1e-6)
    corner = before.x - 0.12 * jnp.sign(matrix.T @ by)
    rest = after.x - corner
    if info.kept == ("attack",):
        np.testing.assert_allclose(rest, 0, atol=1e-6)
    assert after.value <= float(by @ matrix @ corner) + 1e-6


def network(x):
    """Two hidden layers of fixed random weights."""
    keys = jax.random.split(jax.random.key(7), 3)
    shapes = ((x.size, 24), (24, 24), (24, 3))
    for key, shape in zip(keys, shapes):
        x = jnp.tanh(x @ jax.random.normal(key, shape) / shape[0] ** 0.5)
    return x


@pytest.mark.slow
def test_attacks_reach_in_few_steps_what_direct_search_does_not():
    def loss(y):
        return jnp.sum((y - 0.6) ** 2)

    start = np.full(10, 0.1, np.float32)
    found = {}
    for attack in (True, False):
        method = zeroth_order.directional_attack(network, loss, radius=0.1, attack=attack)
        found[attack] = [run(method, start, 12, key)[0][-1].value for key in range(3)]
    assert max(found[True]) < min(found[False])


@pytest.mark.slow
def test_no_point_that_breaks_a_constraint_is_kept():
    def constraint(y):
        return jnp.stack([1.0 - y[0], y[1] - 2.0])

    for attack in (True, False):
        method = zeroth_order.directional_attack(
            identity, square, constraint, radius=0.5, attack=attack
        )
        states, _ = run(method, [3.0, 1.5], 60)
        assert all(bool((constraint(state.x) <= 0).all()) for state in states)
        assert states[-1].value < 1.05 and np.isfinite(states[-1].value)


def test_a_loss_that_is_no_number_is_not_kept():
    def loss(y):
        return jnp.where(y[0] < 1.0, jnp.nan, square(y))

    method = zeroth_order.directional_attack(identity, loss, radius=0.5, attack=False)
    states, _ = run(method, [2.0, 1.0], 40)
    assert states[-1].x[0] >= 1.0 and states[-1].value < 1.2


def test_bad_inputs_are_named():
    make = zeroth_order.directional_attack
    with pytest.raises(ValueError, match="directional_attack: radius is 0; accepted: radius > 0"):
        make(identity, square, radius=0)
    with pytest.raises(ValueError, match=r"x has the shape \(\) and the dtype float32"):
        make(identity, square).init(jnp.ones(()), jax.random.key(0))
    with pytest.raises(ValueError, match="accepted: a feasible start"):
        make(identity, square, lambda y: y).init(jnp.ones(2), jax.random.key(0))
