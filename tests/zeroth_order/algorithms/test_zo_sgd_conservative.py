"""The three candidates by hand, and a loss that never rises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order

ALONG = zeroth_order.direction()


def quadratic(p, target):
    return jnp.square(p["w"] - target)


def made(loss, rate, coefficient):
    """With an estimate that is given."""

    def estimator(loss_fn, params, seed, step=0):
        gradient = zeroth_order.SeededGradient(jnp.asarray(seed, jnp.uint32), coefficient[None])
        return zeroth_order.Estimate(jnp.mean(loss_fn(params)), gradient, jnp.int32(2))

    algorithm = zeroth_order.zo_sgd_conservative(loss, rate, estimator, ALONG)
    state = algorithm.init({"w": jnp.array(1.0)}, jax.random.key(0))
    return algorithm.update(state, jnp.array([0.0]))


# From w = 1 with its minimum at 0, by a step of this length, towards the minimum or away from it.
@pytest.mark.parametrize(("length", "expected"), [(0.5, 0.5), (1.5, 0.5), (3.0, 1.0)])
@pytest.mark.parametrize("towards", [True, False])
def test_the_best_of_three_is_taken(length, expected, towards):
    _, info = made(quadratic, 1.0, jnp.array(1.0))
    z = zeroth_order.perturb(ALONG, {"w": jnp.zeros(())}, info.gradient.seed, 1.0)["w"]
    coefficient = jnp.array(length) * (z if towards else -z)
    state, info = made(quadratic, 1.0, coefficient)
    np.testing.assert_allclose(abs(state.params["w"]), expected)
    assert info.learning_rate == (0 if expected == 1 else 1 if towards else -1)
    assert info.evaluations == 5 and info.loss == 1.0 and state.step == 1


def test_the_loss_of_a_batch_never_rises():
    def loss(p, batch):
        return jnp.sum(jnp.sin(3 * p["w"]) + jnp.square(p["w"]) / 10)

    estimator = zeroth_order.spsa(ALONG, epsilon=0.1)
    algorithm = zeroth_order.zo_sgd_conservative(loss, 0.03, estimator, ALONG)
    state = algorithm.init({"w": jnp.linspace(-3, 3, 8)}, jax.random.key(1))
    steps = jax.jit(lambda s: jax.lax.scan(lambda s, _: algorithm.update(s, None), s, length=60))
    state, info = steps(state)
    assert (jnp.diff(info.loss) <= 0).all() and info.loss[-1] < info.loss[0] - 3
    assert (info.learning_rate == 0).any() and (info.learning_rate > 0).any()
    replayed = {"w": jnp.linspace(-3, 3, 8)}
    for t in range(60):
        gradient = zeroth_order.SeededGradient(*(x[t] for x in info.gradient))
        replayed = zeroth_order.apply(ALONG, gradient, replayed, rate=info.learning_rate[t])
    np.testing.assert_array_equal(replayed["w"], state.params["w"])
