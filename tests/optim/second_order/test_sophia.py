"""Sophia: steps by hand, its two variants, signs before an estimate, estimates left out."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def step(tx, gradient, curvature, params=None, state=None):
    params = jnp.zeros_like(gradient) if params is None else params
    state = tx.init(params) if state is None else state
    return tx.update(gradient, state, params, curvature=curvature)


def test_two_steps_of_the_official_variant_by_hand():
    tx = optim.sophia(0.1, b1=0.5, b2=0.75, gamma=0.5, weight_decay=0.5)
    params = jnp.array([1.0, -2.0, 4.0])
    first, state = step(tx, jnp.array([2.0, -0.2, 0.0]), jnp.array([16.0, 2.0, 1.0]), params)
    # m = (1, -.1, 0), h = (4, .5, .25), gamma h = (2, .25, .125)
    np.testing.assert_allclose(first, [-0.1 * (0.5 + 0.5), -0.1 * (-0.4 - 1), -0.1 * 2], rtol=1e-6)
    params = optim.apply_updates(params, first)
    second, state = step(tx, jnp.array([-3.0, 0.3, 0.5]), None, params, state)
    # m = (-1, .1, .25), and the diagonal stays
    u = np.array([-0.5, 0.4, 1.0])
    np.testing.assert_allclose(second, -0.1 * (u + 0.5 * np.asarray(params)), rtol=1e-6)
    np.testing.assert_allclose(state[0].diagonal, [4, 0.5, 0.25], rtol=1e-6)


def test_the_paper_divides_by_the_larger_of_gamma_h_and_eps():
    tx = optim.scale_by_sophia(b1=0.0, b2=0.0, gamma=0.5, eps=0.25, variant="paper")
    gradient = jnp.array([1.0, 0.1, 0.1, -0.1, 3.0])
    updates, _ = step(tx, gradient, jnp.array([4.0, 0.1, -8.0, 1.0, 4.0]))
    np.testing.assert_allclose(updates, [0.5, 0.4, 0.4, -0.2, 1.0], rtol=1e-6)


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_without_curvature_every_step_is_the_sign_of_the_momentum(variant):
    gradient = jnp.array([3.0, -1e-6, 0.0])
    tx = optim.scale_by_sophia(variant=variant)
    for curvature in (None, jnp.zeros(3), -jnp.ones(3)):
        updates, _ = step(tx, gradient, curvature)
        np.testing.assert_array_equal(updates, [1, -1, 0])


def test_defaults_are_the_authors_and_the_papers():
    gradient, curvature = jnp.array([1e-3]), jnp.array([10.0])
    for variant, b1, gamma in (("official", 0.965, 0.04), ("paper", 0.96, 0.05)):
        updates, _ = step(optim.scale_by_sophia(variant=variant), gradient, curvature)
        np.testing.assert_allclose(updates, (1 - b1) * 1e-3 / (gamma * 0.01 * 10), rtol=1e-4)
    defaults = {k: v.default for k, v in inspect.signature(optim.sophia).parameters.items()}
    assert (defaults["b2"], defaults["weight_decay"]) == (0.99, 0.1)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_an_estimate_that_is_not_finite_is_left_out_whole(bad):
    tx = optim.scale_by_sophia(b1=0.0)
    gradient = {"a": jnp.ones(2), "b": jnp.ones(())}
    good = {"a": jnp.array([50.0, 80.0]), "b": jnp.array(90.0)}
    _, state = step(tx, gradient, good, params=gradient)
    broken = {"a": jnp.array([1.0, bad]), "b": jnp.array(1.0)}
    kept, after = jax.jit(lambda c, s: step(tx, gradient, c, gradient, s))(broken, state)
    without, _ = step(tx, gradient, None, gradient, state)
    jax.tree.map(np.testing.assert_array_equal, after.diagonal, state.diagonal)
    jax.tree.map(np.testing.assert_array_equal, kept, without)


def test_a_step_with_a_nan_estimate_in_training_keeps_the_old_diagonal():
    """The estimator gives nan at its second turn; the run goes on as if it had had none."""
    curvatures = jnp.array([4.0, jnp.nan, 9.0])

    def curvature_fn(params, key):
        return jnp.broadcast_to(curvatures[key], params.shape)

    tx = optim.with_curvature(optim.sophia(0.1, b2=0.5, gamma=1.0))
    params = jnp.array([1.0, -2.0])
    state, diagonals = tx.init(params), []
    for turn in range(3):
        extras = {"curvature_fn": curvature_fn, "key": turn}
        updates, state = tx.update(params, state, params, **extras)
        params = optim.apply_updates(params, updates)
        diagonals.append(state.inner_state[0].diagonal)
    np.testing.assert_allclose(diagonals, [[2, 2], [2, 2], [5.5, 5.5]])
    assert jnp.isfinite(params).all()


def test_updates_are_never_longer_than_the_rate():
    rng = np.random.default_rng(0)
    gradient, curvature = jnp.asarray(rng.standard_cauchy((2, 1000)), jnp.float32)
    for variant in ("official", "paper"):
        updates, _ = step(optim.scale_by_sophia(variant=variant), gradient, curvature)
        assert jnp.abs(updates).max() == 1
        # Downhill along the momentum, wherever it is not zero.
        assert (updates * gradient > 0).all()


def test_decay_is_of_what_the_mask_says():
    tx = optim.sophia(0.1, mask=lambda params: {"w": True, "b": False})
    params = {"w": jnp.ones(1), "b": jnp.ones(1)}
    updates, _ = step(tx, jax.tree.map(jnp.zeros_like, params), None, params)
    np.testing.assert_allclose([updates["w"], updates["b"]], [[-0.01], [0]], rtol=1e-6)


def test_partitions_see_their_own_part_of_the_estimate():
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    groups = {"curved": optim.sophia(0.1, weight_decay=0.0), "flat": optax.sgd(0.5)}
    inner = optax.partition(groups, {"w": "curved", "b": "flat"}, mask_compatible_extra_args=True)
    tx = optim.with_curvature(inner)
    scales = {"w": jnp.array([2000.0, 4000.0])}

    def loss_fn(p):
        return (jnp.sum(scales["w"] * p["w"] ** 2) + jnp.sum(p["b"] ** 2)) / 2

    extras = {"curvature_fn": optim.hutchinson(loss_fn), "key": jax.random.key(0)}
    updates, _ = tx.update(jax.grad(loss_fn)(params), tx.init(params), params, **extras)
    # m = .035 s against .04 * .01 s
    np.testing.assert_allclose(updates["w"], [-0.1, -0.1])
    np.testing.assert_allclose(updates["b"], [-0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "levanter"}, "sophia: variant is 'levanter'; accepted: official, paper"),
        ({"b1": 1.0}, "sophia: b1 is 1.0"),
        ({"b2": -0.1}, "sophia: b2 is -0.1"),
        ({"gamma": 0.0}, "sophia: gamma is 0.0"),
        ({"eps": 0.0}, "sophia: eps is 0.0"),
    ],
)
def test_hyper_parameters_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        optim.sophia(0.1, **options)


def test_an_update_without_curvature_says_what_is_missing():
    tx = optim.sophia(0.1)
    with pytest.raises(ValueError, match=r"sophia: curvature is missing; .*with_curvature\(optim"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
