"""Estimates against their formulas, their expectation, and the exact directional derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order

ALONG = zeroth_order.direction()
PARAMS = {"v": jnp.array([0.5, -1.0]), "w": jnp.array([[1.0, 2.0], [3.0, -4.0]])}
BATCH = jnp.array([[1.0, -2.0], [0.5, 0.3], [2.0, 1.0]])


def losses(p):
    """(examples,), smooth and not quadratic."""
    return jnp.sum(jnp.sin(BATCH @ p["w"] + p["v"]), axis=1)


def probed(scale, seed):
    return losses(zeroth_order.perturb(ALONG, PARAMS, seed, scale))


def test_two_sides_are_the_central_difference_of_every_sample():
    estimator = zeroth_order.spsa(ALONG, epsilon=0.01, samples=3)
    found = jax.jit(lambda seed: estimator(losses, PARAMS, seed))(jnp.uint32(5))
    sides = [(probed(0.01, s), probed(-0.01, s)) for s in (5, 6, 7)]
    expected = [jnp.mean(plus - minus) / 0.02 / 3 for plus, minus in sides]
    np.testing.assert_allclose(found.gradient.coefficients, expected, rtol=1e-5)
    np.testing.assert_allclose(found.value, np.mean(sides), rtol=1e-6)
    assert found.gradient.seed == 5 and found.evaluations == 6


def test_one_side_is_the_forward_difference():
    found = zeroth_order.spsa(ALONG, epsilon=0.01, samples=2, one_sided=True)(losses, PARAMS, 5)
    expected = [jnp.mean(probed(0.01, s) - losses(PARAMS)) / 0.01 / 2 for s in (5, 6)]
    np.testing.assert_allclose(found.gradient.coefficients, expected, rtol=1e-5)
    np.testing.assert_allclose(found.value, jnp.mean(losses(PARAMS)), rtol=1e-6)
    assert found.evaluations == 3


def test_forward_gradients_are_products_of_gradient_and_direction():
    found = zeroth_order.forward_gradient(ALONG, samples=2)(losses, PARAMS, 5)
    gradient = jax.grad(lambda p: jnp.mean(losses(p)))(PARAMS)
    for j, coefficient in enumerate(found.gradient.coefficients):
        one = zeroth_order.SeededGradient(jnp.uint32(5 + j), jnp.ones(1))
        z = zeroth_order.materialize(ALONG, one, PARAMS)
        expected = sum(jnp.vdot(gradient[k], z[k]) for k in z) / 2
        np.testing.assert_allclose(coefficient, expected, rtol=1e-5)
    np.testing.assert_allclose(found.value, jnp.mean(losses(PARAMS)), rtol=1e-6)


@pytest.mark.parametrize("draws", [zeroth_order.rademacher, zeroth_order.popcount_normal])
@pytest.mark.parametrize("scales", [1.0, {"v": 3.0, "w": 0.5}])
def test_the_mean_over_seeds_is_the_gradient(draws, scales):
    """Probed along z d and read along z / d as well."""
    plain = zeroth_order.direction(draws)
    probe = zeroth_order.scaled(plain, scales)
    read = zeroth_order.scaled(plain, jax.tree.map(lambda d: 1 / d, scales))
    estimator = zeroth_order.forward_gradient(probe)
    fn = zeroth_order.value_and_grad(losses, estimator, read)
    seeds = jnp.arange(4000, dtype=jnp.uint32)
    _, estimates = jax.jit(jax.vmap(fn, (None, 0)))(PARAMS, seeds)
    gradient = jax.grad(lambda p: jnp.mean(losses(p)))(PARAMS)
    for name, found in estimates.items():
        error = found.mean(axis=0) - gradient[name]
        assert (jnp.abs(error) < 5 * found.std(axis=0) / 4000**0.5).all()


def test_the_mean_square_is_that_of_the_closed_form():
    """E |g|^2 = (d + n - 1) / n |grad|^2 for +-1, whose z'z is d."""
    samples, size = 4, 6
    estimator = zeroth_order.forward_gradient(ALONG, samples=samples)
    fn = zeroth_order.value_and_grad(losses, estimator, ALONG)
    _, found = jax.jit(jax.vmap(fn, (None, 0)))(PARAMS, 7 * jnp.arange(4000, dtype=jnp.uint32))
    squares = sum(jnp.sum(jnp.square(g.reshape(4000, -1)), axis=1) for g in found.values())
    gradient = jax.grad(lambda p: jnp.mean(losses(p)))(PARAMS)
    exact = sum(jnp.sum(jnp.square(g)) for g in gradient.values())
    ratio = squares / exact
    assert abs(ratio.mean() - (size + samples - 1) / samples) < 5 * ratio.std() / 4000**0.5


def test_bfloat16_losses_are_subtracted_in_float32():
    """A scalar in bfloat16 near 1 has steps of 2^-7; those of examples have their own."""

    def of_examples(p):
        return (p["w"] + jnp.array([0.0, 3.0])).astype(jnp.bfloat16)

    estimator = zeroth_order.spsa(ALONG, epsilon=2.0**-6)
    found = estimator(of_examples, {"w": jnp.zeros(())}, 0)
    assert found.value.dtype == found.gradient.coefficients.dtype == jnp.float32
    assert jnp.abs(found.gradient.coefficients[0]) == 1.0


def test_a_loss_need_not_be_differentiable():
    def errors(p):
        return (BATCH @ p["w"] @ p["v"] > 0).astype(jnp.float32)

    found = zeroth_order.spsa(ALONG, epsilon=2.0, samples=8)(errors, PARAMS, 0)
    assert (found.gradient.coefficients != 0).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0}, "spsa: epsilon is 0; accepted: epsilon > 0"),
        ({"epsilon": -1e-3}, "spsa: epsilon is -0.001"),
        ({"samples": 0}, "spsa: samples is 0; accepted: samples >= 1"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        zeroth_order.spsa(ALONG, **arguments)


@pytest.mark.parametrize("make", [zeroth_order.spsa, zeroth_order.forward_gradient])
def test_seeds_and_losses_that_are_none_are_named(make):
    estimator, name = make(ALONG), make.__name__
    with pytest.raises(ValueError, match=f"{name}: seed is -1; accepted: seed >= 0"):
        estimator(losses, PARAMS, -1)
    with pytest.raises(ValueError, match=rf"{name}: the loss has the shape \(2, 2\)"):
        estimator(lambda p: p["w"], PARAMS, 0)
    with pytest.raises(ValueError, match=f"{name}: the loss has the shape .* dtype int32"):
        estimator(lambda p: jnp.sum(p["w"]).astype(jnp.int32), PARAMS, 0)
    with pytest.raises(ValueError, match="spsa: samples|forward_gradient: samples"):
        make(ALONG, samples=0)


@pytest.mark.parametrize(("step", "taken"), [(0, 1), (49, 1), (50, 2), (99, 3), (100, 4), (500, 4)])
def test_samples_grow_with_the_step(step, taken):
    estimator = zeroth_order.spsa(ALONG, epsilon=0.01, samples=4, growth_steps=100)
    found = jax.jit(lambda step: estimator(losses, PARAMS, 5, step))(step)
    expected = zeroth_order.spsa(ALONG, epsilon=0.01, samples=taken)(losses, PARAMS, 5)
    np.testing.assert_allclose(
        found.gradient.coefficients[:taken], expected.gradient.coefficients, rtol=1e-5
    )
    assert not found.gradient.coefficients[taken:].any()
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-6)
    assert found.evaluations == expected.evaluations == 2 * taken


def test_samples_that_are_not_taken_are_not_computed():
    called = []

    def counted(p):
        jax.debug.callback(lambda _: called.append(1), p["v"][0])
        return losses(p)

    estimator = zeroth_order.spsa(ALONG, samples=4, growth_steps=100)
    jax.block_until_ready(jax.jit(lambda step: estimator(counted, PARAMS, 5, step))(60))
    jax.effects_barrier()
    assert len(called) == 4


@pytest.mark.parametrize("one_sided", [False, True])
def test_all_at_once_is_one_after_the_other(one_sided):
    arguments = {"epsilon": 0.01, "samples": 3, "one_sided": one_sided}
    slow = zeroth_order.spsa(ALONG, **arguments)(losses, PARAMS, 5)
    fast = zeroth_order.spsa(ALONG, **arguments, vectorized=True)(losses, PARAMS, 5)
    np.testing.assert_allclose(
        fast.gradient.coefficients, slow.gradient.coefficients, atol=2e-5, rtol=1e-4
    )
    assert fast.evaluations == slow.evaluations


def test_objectives_without_a_derivative_are_estimated():
    """Accuracy, of which the estimate is that of its smoothing."""
    x = jax.random.normal(jax.random.key(0), (256, 4))
    label = x @ jnp.array([1.0, -1.0, 2.0, 0.5]) > 0

    def wrong(p):
        return ((x @ p["w"] > 0) != label).astype(jnp.float32)

    def step(p, seed):
        found = estimator(wrong, p, seed)
        return zeroth_order.apply(ALONG, found.gradient, p, rate=0.3), found.value

    estimator = zeroth_order.spsa(ALONG, epsilon=0.2)
    start = {"w": jnp.array([-1.0, 0.2, 0.1, 0.3])}
    _, values = jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(300, dtype=jnp.uint32)))()
    assert values[0] > 0.3 and values[-20:].mean() < 0.1
