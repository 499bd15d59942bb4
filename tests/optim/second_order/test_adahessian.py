"""AdaHessian: steps by hand, its averages, estimates at some steps only or left out."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def test_two_steps_by_hand():
    tx = optim.adahessian(0.1, b1=0.5, b2=0.75, eps=0.5, weight_decay=0.5)
    params = jnp.array([2.0, -1.0])
    state = tx.init(params)
    first, state = tx.update(
        jnp.array([3.0, -1.0]), state, params, curvature=jnp.array([-1.0, 1.5])
    )
    # corrected moments are g and |c|
    u = np.array([3.0 / 1.5, -1.0 / 2.0])
    np.testing.assert_allclose(first, -0.1 * (u + 0.5 * np.array([2.0, -1.0])), rtol=1e-6)
    params = optim.apply_updates(params, first)
    second, _ = tx.update(jnp.array([1.0, 1.0]), state, params, curvature=jnp.array([2.0, 0.5]))
    m = (0.5 * np.array([1.5, -0.5]) + 0.5 * np.array([1.0, 1.0])) / 0.75
    v = (0.75 * 0.25 * np.array([1, 2.25]) + 0.25 * np.array([4, 0.25])) / (1 - 0.75**2)
    u = m / (np.sqrt(v) + 0.5)
    np.testing.assert_allclose(second, -0.1 * (u + 0.5 * np.asarray(params)), rtol=1e-6)


def test_hessian_power_is_of_the_root_alone():
    gradient, curvature = jnp.array([2.0]), jnp.array([16.0])
    for power, divisor in ((1.0, 16.5), (0.5, 4.5), (0.0, 1.5)):
        tx = optim.scale_by_adahessian(eps=0.5, hessian_power=power)
        updates, _ = tx.update(gradient, tx.init(gradient), curvature=curvature)
        np.testing.assert_allclose(updates, 2.0 / divisor, rtol=1e-5)


def test_estimates_as_large_as_the_gradient_make_adam():
    """|c| = |g| at every step: then v is Adam's second moment."""
    ours = optim.adahessian(0.1, eps=1e-8, averaging="windows")
    adam = optax.adam(0.1, eps=1e-8)
    params = jnp.array([1.0, 2.0, -3.0])
    mine, theirs = ours.init(params), adam.init(params)
    for k in range(4):
        g = jnp.sin(params + k)
        u, mine = ours.update(g, mine, params, curvature=-g)
        w, theirs = adam.update(g, theirs, params)
        np.testing.assert_allclose(u, w, rtol=2e-5)


def test_v_is_corrected_by_the_number_of_estimates():
    tx = optim.scale_by_adahessian(eps=0.0)
    gradient = jnp.array([2.0])
    state = tx.init(gradient)
    before, state = tx.update(gradient, state, curvature=None)
    np.testing.assert_array_equal(before, 0)
    for curvature in (None, jnp.array([4.0]), None):
        updates, state = tx.update(gradient, state, curvature=curvature)
    np.testing.assert_allclose(updates, 0.5, rtol=1e-5)
    assert (int(state.steps), int(state.estimates)) == (4, 1)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_an_estimate_that_is_not_finite_is_left_out_whole(bad):
    tx = optim.scale_by_adahessian()
    gradient = {"a": jnp.ones((2, 2)), "b": jnp.ones(())}
    state = tx.init(gradient)
    good = jax.tree.map(lambda g: 3 * g, gradient)
    _, state = tx.update(gradient, state, curvature=good)
    broken = {"a": jnp.array([[1.0, bad], [1.0, 1.0]]), "b": jnp.array(1.0)}
    kept, after = tx.update(gradient, state, curvature=broken)
    without, _ = tx.update(gradient, state, curvature=None)
    jax.tree.map(np.testing.assert_array_equal, (kept, after.nu), (without, state.nu))
    assert int(after.estimates) == 1


def test_rules_average_what_they_say():
    curvature = {"kernel": jnp.array([[1.0, -2.0], [-3.0, 4.0]]), "bias": jnp.array([1.0, -2.0])}
    expected = {
        "rows": [[2, 3], [2, 3]],
        "windows": [[1, 2], [3, 4]],
        # Outputs before inputs: (1, 3) and (2, 4) are successive.
        "blocks": [[2, 3], [2, 3]],
    }
    for rule, kernel in expected.items():
        size = 2 if rule == "blocks" else None
        tx = optim.scale_by_adahessian(b2=0.0, averaging=rule, block_size=size)
        _, state = tx.update(curvature, tx.init(curvature), curvature=curvature)
        np.testing.assert_allclose(jnp.sqrt(state.nu["kernel"]), kernel, rtol=1e-6)
        np.testing.assert_allclose(jnp.sqrt(state.nu["bias"]), [1, 2], rtol=1e-6)


def test_stacked_layers_are_averaged_each_on_its_own():
    params = {"blocks": {"kernel": jnp.arange(8.0).reshape(2, 2, 2), "scale": jnp.eye(2)}}
    matrices = {".*/kernel": "b m n", ".*/scale": None}
    tx = optim.scale_by_adahessian(b2=0.0, matrices=matrices)
    _, state = tx.update(params, tx.init(params), curvature=params)
    kernel, scale = params["blocks"]["kernel"], params["blocks"]["scale"]
    expected = np.broadcast_to(np.asarray(kernel).mean(1, keepdims=True), (2, 2, 2))
    np.testing.assert_allclose(jnp.sqrt(state.nu["blocks"]["kernel"]), expected, rtol=1e-6)
    np.testing.assert_array_equal(state.nu["blocks"]["scale"], scale)


def test_a_matrix_that_no_pattern_takes_is_named():
    tx = optim.scale_by_adahessian(matrices={"a": "m n"})
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="adahessian: matrices has no pattern for the leaf 'b'"):
        tx.init(params)


def test_the_rate_of_one_is_newtons_step_on_a_diagonal_quadratic():
    scales = jnp.array([1.0, 100.0, 1e4])
    loss_fn = lambda p: jnp.sum(scales * p**2) / 2  # noqa: E731
    params = jnp.array([3.0, -2.0, 1.0])
    tx = optim.with_curvature(optim.adahessian(1.0, eps=0.0))
    extras = {"curvature_fn": optim.hutchinson(loss_fn), "key": jax.random.key(0)}
    updates, _ = tx.update(jax.grad(loss_fn)(params), tx.init(params), params, **extras)
    np.testing.assert_allclose(optim.apply_updates(params, updates), 0, atol=2e-5)


def test_defaults_are_the_authors():
    defaults = {k: v.default for k, v in inspect.signature(optim.adahessian).parameters.items()}
    found = [defaults[k] for k in ("b1", "b2", "eps", "hessian_power", "weight_decay")]
    assert found == [0.9, 0.999, 1e-4, 1.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b1": 1.0}, "adahessian: b1 is 1.0"),
        ({"b2": -1.0}, "adahessian: b2 is -1.0"),
        ({"eps": -1.0}, "adahessian: eps is -1.0"),
        ({"hessian_power": 1.5}, "adahessian: hessian_power is 1.5; accepted: 0 <= hessian_power"),
        ({"hessian_power": -0.5}, "adahessian: hessian_power is -0.5"),
        ({"averaging": "columns"}, "adahessian: averaging is 'columns'; accepted: rows, windows"),
        ({"averaging": "blocks"}, "adahessian: block_size is None"),
    ],
)
def test_hyper_parameters_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        optim.adahessian(0.1, **options)


def test_an_update_without_curvature_says_what_is_missing():
    tx = optim.adahessian(0.1)
    with pytest.raises(ValueError, match=r"adahessian: curvature is missing; wrap the whole"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
