"""Normalized logistic descent: the paper's table, the perceptron limit, softmax, bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def losses(params, points):
    """Logistic losses of points that are multiplied by their labels."""
    return jnp.logaddexp(0.0, -points @ params)


def worst_case(n=1000):
    """One point (1/2, -1) of class 1, n - 1 points (-1/2, -1) of class -1, times their labels."""
    return jnp.concatenate([jnp.array([[0.5, -1.0]]), jnp.tile(jnp.array([0.5, 1.0]), (n - 1, 1))])


def steps_to_separate(tx, points, most=1000):
    """The first step after which every point is on its side."""

    def go_on(carry):
        steps, params, _ = carry
        return (steps < most) & ~jnp.all(points @ params > 0)

    def step(carry):
        steps, params, state = carry
        gradient = jax.grad(lambda p: jnp.mean(losses(p, points)))(params)
        updates, state = tx.update(gradient, state, params, value=losses(params, points))
        return steps + 1, optim.apply_updates(params, updates), state

    start = jnp.zeros(2)
    return int(jax.lax.while_loop(go_on, step, (0, start, tx.init(start)))[0])


@pytest.mark.parametrize(("rate", "steps"), [(100.0, 2), (10.0, 2), (1.0, 16), (0.1, 157)])
def test_steps_of_the_papers_table(rate, steps):
    assert steps_to_separate(optim.normalized_gradient(rate), worst_case()) == steps


def test_plain_descent_needs_the_papers_number_of_steps():
    tx = optax.with_extra_args_support(optax.sgd(100.0))
    assert steps_to_separate(tx, worst_case()) == 308


def test_direction_is_an_average_weighted_by_the_wrong_probability():
    rng = np.random.default_rng(0)
    points, params = rng.normal(size=(20, 3)), rng.normal(size=3)
    weights = 1 / (1 + np.exp(points @ params))
    with jax.enable_x64(True):
        tx = optim.scale_by_normalized_gradient()
        value = losses(params, points)
        gradient = jax.grad(lambda p: jnp.mean(losses(p, points)))(jnp.asarray(params))
        direction, _ = tx.update(gradient, tx.init(params), value=value)
    np.testing.assert_allclose(direction, -weights @ points / weights.sum(), rtol=1e-12)


def test_far_from_the_boundary_it_is_the_perceptron_over_the_mistakes():
    rng = np.random.default_rng(1)
    points, params = rng.normal(size=(20, 3)), 1e4 * rng.normal(size=3)
    mistakes = points[points @ params < 0]
    assert 0 < len(mistakes) < 20
    with jax.enable_x64(True):
        tx = optim.scale_by_normalized_gradient()
        gradient = jax.grad(lambda p: jnp.mean(losses(p, points)))(jnp.asarray(params))
        direction, _ = tx.update(gradient, tx.init(params), value=losses(params, points))
    np.testing.assert_allclose(direction, -mistakes.mean(axis=0), rtol=1e-6)


def test_losses_too_small_for_one_minus_exp_still_give_whole_steps():
    """exp(-1e-10) is 1 in float32; the direction has length |a| all the same."""
    points, params = jnp.array([[1.0, 0.0]]), jnp.array([23.0, 0.0])
    value = losses(params, points)
    assert 0 < value[0] < 1e-9
    tx = optim.normalized_gradient(1.0)
    gradient = jax.grad(lambda p: jnp.mean(losses(p, points)))(params)
    updates, _ = tx.update(gradient, tx.init(params), params, value=value)
    np.testing.assert_allclose(updates, [1.0, 0.0], rtol=1e-6)


@pytest.mark.slow
def test_two_class_softmax_is_the_logistic_rule():
    rng = np.random.default_rng(2)
    points, kernel = rng.normal(size=(9, 4)), rng.normal(size=(4, 2))
    labels = rng.integers(0, 2, size=9)
    signed = points * (2 * labels - 1)[:, None]
    with jax.enable_x64(True):
        tx = optim.scale_by_normalized_gradient()

        def softmax_losses(kernel):
            return optax.softmax_cross_entropy_with_integer_labels(points @ kernel, labels)

        gradient = jax.grad(lambda k: jnp.mean(softmax_losses(k)))(jnp.asarray(kernel))
        ours, _ = tx.update(gradient, tx.init(kernel), value=softmax_losses(kernel))
        slope = jnp.asarray(kernel[:, 1] - kernel[:, 0])
        gradient = jax.grad(lambda p: jnp.mean(losses(p, signed)))(slope)
        logistic, _ = tx.update(gradient, tx.init(slope), value=losses(slope, signed))
    np.testing.assert_allclose(ours, np.stack([-logistic, logistic], axis=1), rtol=1e-12)


def test_no_loss_leaves_no_step():
    tx = optim.normalized_gradient(1.0)
    updates, _ = tx.update(jnp.zeros(2), tx.init(jnp.ones(2)), value=jnp.zeros(3))
    assert updates.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("value", "given"), [(None, "None"), (jnp.float32(0.7), "a scalar")])
def test_value_that_is_missing_or_a_mean_is_named(value, given):
    tx = optim.normalized_gradient(1.0)
    with pytest.raises(ValueError, match=rf"normalized_gradient: value is {given}; call update\("):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=value)
