"""MARS: steps by hand, its three forms, which leaves it takes, what it keeps, what it refuses."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from optim.solvers.newton_schulz import newton_schulz


def run(tx, params, gradients, extras=None):
    @jax.jit
    def step(params, state, g, extra):
        updates, state = tx.update(g, state, params, **extra)
        return optim.apply_updates(params, updates), state

    state = tx.init(params)
    for t, g in enumerate(gradients):
        extra = {name: value[t] for name, value in (extras or {}).items()}
        params, state = step(params, state, g, extra)
    return params, state


def normals(shape, seed=0, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape))


def test_first_two_steps_by_hand():
    """c = g + (g - h) here, since gamma b1 / (1 - b1) = 1; the second c has length 5."""
    tx = optim.mars(0.5, b1=0.5, b2=0.75, gamma=1.0, eps=0.25, weight_decay=0.5)
    params, state = run(tx, jnp.array([[4.0, 4.0]]), [jnp.array([[0.25, 0.0]])])
    # c = (0.5, 0), m = c / 2, v = c^2 / 4; unbiased 0.5 and 0.25, so u = 0.5 / 0.75.
    np.testing.assert_allclose(params, [[4 - 0.5 * (2 + 2 / 3), 3.0]], rtol=1e-6)
    updates, state = tx.update(jnp.array([[1.625, 2.0]]), state, params)
    # c = (3, 4) / 5; m = (0.125 + 0.3, 0.4), over 3/4; v = (0.75 / 16 + 0.09, 0.16), over 7/16.
    u = np.array([0.425, 0.4]) / 0.75
    u /= np.sqrt(np.array([0.046875 + 0.09, 0.16]) / 0.4375) + 0.25
    np.testing.assert_allclose(updates[0], -0.5 * (0.5 * np.asarray(params)[0] + u), rtol=1e-6)


def test_lion_is_the_sign_of_the_new_moment():
    tx = optim.scale_by_mars(b1=0.5, gamma=0.0, form="lion")
    params = jnp.zeros((1, 3))
    updates, state = tx.update(jnp.array([[0.6, -0.2, 0.0]]), tx.init(params))
    assert updates.tolist() == [[1.0, -1.0, 0.0]]
    updates, state = tx.update(jnp.array([[-0.2, 0.5, 0.0]]), state)
    np.testing.assert_allclose(state.mu, [[0.05, 0.2, 0.0]], rtol=1e-5)
    assert updates.tolist() == [[1.0, 1.0, 0.0]]


def test_shampoo_is_newton_schulz_of_the_moment_and_adam_where_there_is_no_matrix():
    """Two wide and two tall matrices in one group, with the factor of more outputs than inputs."""
    wide, bias = normals((2, 8), scale=0.1), normals((8,), scale=0.1)
    gradient = {"wide": wide, "tall": wide.T, "bias": bias}
    tx = optim.scale_by_mars(gamma=0.0, form="shampoo", dtype=None)
    updates, _ = tx.update(gradient, tx.init(gradient))
    expected = newton_schulz(wide, eps=1e-8)
    np.testing.assert_allclose(updates["wide"], 2 * expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(updates["tall"], expected.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(updates["bias"], jnp.sign(bias), rtol=1e-5)


@pytest.mark.parametrize("optimize_1d", [False, True])
def test_without_correction_and_clipping_it_is_adamw(optimize_1d):
    shapes = {"w": (3, 4), "conv": (2, 2, 3, 4), "b": (4,), "scalar": ()}
    with jax.enable_x64(True):
        params = {name: normals(shape, 1) for name, shape in shapes.items()}
        # Small enough that no tensor reaches the norm of 1.
        gradients = [jax.tree.map(lambda p, t=t: 0.1 * jnp.sin(t * p), params) for t in range(1, 6)]
        common = {"b1": 0.8, "b2": 0.9, "eps": 1e-3, "weight_decay": 0.2}
        others = {"b1_1d": 0.8, "b2_1d": 0.9, "weight_decay_1d": 0.2}
        tx = optim.mars(0.1, gamma=0.0, optimize_1d=optimize_1d, **common, **others)
        ours, _ = run(tx, params, gradients)
        theirs, _ = run(optax.adamw(0.1, **common), params, gradients)
    for name in params:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-10, err_msg=name)


def test_each_leaf_is_clipped_alone_and_only_above_1():
    gradient = {"long": jnp.full((2, 2), 4.0), "one": jnp.array([[0.6, 0.8]]), "b": jnp.ones(4)}
    tx = optim.scale_by_mars(b1=0.5, gamma=0.0)
    _, state = tx.update(gradient, tx.init(gradient))
    for name, expected in {"long": 0.25, "one": [[0.3, 0.4]], "b": 0.25}.items():
        np.testing.assert_allclose(state.mu[name], expected, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("form", ["adamw", "lion", "shampoo"])
def test_stacked_layers_are_a_list_of_layers(form):
    gradients = normals((2, 3, 4, 6))
    tx = optim.mars(0.1, form=form, matrices={"w": "b m n"}, weight_decay=0.1, dtype=None)
    stacked, _ = run(tx, {"w": jnp.ones((3, 4, 6))}, [{"w": g} for g in gradients])
    tx = optim.mars(0.1, form=form, weight_decay=0.1, dtype=None)
    listed, _ = run(tx, [jnp.ones((4, 6))] * 3, [list(g) for g in gradients])
    np.testing.assert_allclose(stacked["w"], jnp.stack(listed), rtol=1e-4)


def test_only_two_axes_make_a_matrix_unless_declared():
    params = {"w": jnp.ones((2, 3)), "conv": jnp.ones((2, 2, 2, 3)), "b": jnp.ones(3)}

    def zero_step(**kwargs):
        moved, _ = run(
            optim.mars(1.0, weight_decay=0.5, weight_decay_1d=0.25, **kwargs),
            params,
            [jax.tree.map(jnp.zeros_like, params)],
        )
        return {name: leaf.ravel()[0].item() for name, leaf in moved.items()}

    assert zero_step() == {"w": 0.5, "conv": 0.75, "b": 0.75}
    assert zero_step(optimize_1d=True) == {"w": 0.5, "conv": 0.5, "b": 0.5}
    declared = {"w": None, "conv": "m m m n"}
    assert zero_step(matrices=declared) == {"w": 0.75, "conv": 0.5, "b": 0.75}
    assert zero_step(lr_1d_factor=2.0) == {"w": 0.5, "conv": 0.5, "b": 0.5}
    mask = {"w": True, "conv": False, "b": True}
    assert zero_step(mask=mask) == {"w": 0.5, "conv": 1.0, "b": 0.75}
    assert zero_step(mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)) == {
        "w": 0.5,
        "conv": 0.75,
        "b": 1.0,
    }


def test_other_leaves_follow_a_schedule_at_their_factor():
    tx = optim.mars(lambda t: 1.0 + t, lr_1d_factor=0.5, eps=0.0, weight_decay_1d=0.0)
    params, gradient = {"b": jnp.zeros(1)}, {"b": jnp.ones(1)}
    moved, _ = run(tx, params, [gradient, gradient])
    np.testing.assert_allclose(moved["b"], [-0.5 * (1 + 2)], rtol=1e-6)


def test_amsgrad_divides_by_the_largest_moment():
    """v is 1/2 and then 1/4 and 1/8, its maximum 1/2; m is 1/2 and then 1/4, 1/8."""
    gradients = [jnp.ones((1, 1)), jnp.zeros((1, 1)), jnp.zeros((1, 1))]
    tx = optim.mars(1.0, b1=0.5, b2=0.5, gamma=0.0, eps=0.0, amsgrad=True)
    moved, _ = run(tx, jnp.zeros((1, 1)), gradients)
    u = [1.0, 0.25 / 0.75 / np.sqrt(0.5 / 0.75), 0.125 / 0.875 / np.sqrt(0.5 / 0.875)]
    np.testing.assert_allclose(moved[0, 0], -sum(u), rtol=1e-6)
    # Of a vector, by AdamW, too.
    tx = optim.mars(1.0, b1_1d=0.5, b2_1d=0.5, eps=0.0, amsgrad=True, weight_decay_1d=0.0)
    moved, _ = run(tx, jnp.zeros(1), [g[0] for g in gradients])
    np.testing.assert_allclose(moved[0], -sum(u), rtol=1e-6)


@pytest.mark.parametrize("form", ["adamw", "lion", "shampoo"])
def test_exact_with_the_gradients_of_the_step_before_is_approximate(form):
    gradients = normals((4, 3, 5))
    approximate, _ = run(optim.mars(0.1, form=form, dtype=None), jnp.ones((3, 5)), gradients)
    before = jnp.concatenate([jnp.zeros((1, 3, 5)), gradients[:-1]])
    tx = optim.mars(0.1, form=form, approximate=False, dtype=None)
    exact, _ = run(tx, jnp.ones((3, 5)), gradients, {"previous_gradient": before})
    np.testing.assert_allclose(exact, approximate, rtol=1e-6)


def test_nothing_is_kept_that_is_not_read():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = optim.scale_by_mars(form="lion").init(params)
    assert state.nu is None and state.nu_max is None and state.previous is not None
    state = optim.scale_by_mars(form="shampoo", amsgrad=True, approximate=False).init(params)
    assert state.nu["w"] is None and state.nu["b"].shape == (3,)
    assert state.nu_max["w"] is None and state.previous is None
    held = jax.tree.leaves(optim.mars(0.1).init({"b": jnp.ones(3)}))
    assert sum(leaf.size for leaf in held) == 2 * 3 + 2  # two moments, two counts


def test_odd_leaves():
    params = {
        "none": None,
        "unused": jnp.ones((2, 2)),
        "masked": optax.MaskedNode(),
        "scalar": jnp.float32(1.0),
        "empty": jnp.zeros((0, 3)),
        "integer": jnp.array([[0, 100]]),
    }
    gradients = {**params, "unused": None, "integer": np.zeros((1, 2), jax.dtypes.float0)}
    for form in ("adamw", "lion", "shampoo"):
        tx = optim.mars(0.5, form=form, weight_decay_1d=0.0)
        state = tx.init(params)
        updates, after = tx.update(gradients, state, params)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        moved = optim.apply_updates(params, updates)
        assert moved["unused"].tolist() == [[1.0, 1.0]] * 2 and moved["none"] is None
        np.testing.assert_allclose(moved["scalar"], 0.5, rtol=1e-6)
        assert moved["empty"].shape == (0, 3) and moved["integer"].tolist() == [[0, 100]]


@pytest.mark.parametrize("kwargs", [{"b1": 1.0}, {"b2": -0.1}, {"b1_1d": 1}, {"b2_1d": 2.0}])
def test_betas_out_of_range_are_named(kwargs):
    [(name, value)] = kwargs.items()
    with pytest.raises(ValueError, match=rf"mars: {name} is {value}; accepted: 0 <= {name} < 1"):
        optim.mars(0.1, **kwargs)


@pytest.mark.parametrize("kwargs", [{"eps": -1.0}, {"gamma": -0.1}])
def test_negative_numbers_are_named(kwargs):
    [(name, value)] = kwargs.items()
    with pytest.raises(ValueError, match=rf"mars: {name} is {value}; accepted: {name} >= 0"):
        optim.mars(0.1, **kwargs)


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match="mars: form is 'mars-lion'; accepted: adamw, lion, sham"):
        optim.mars(0.1, form="mars-lion")
    params = jnp.ones((2, 2))
    tx = optim.mars(0.1, approximate=False)
    with pytest.raises(ValueError, match=r"previous_gradient is missing; pass tx.update\("):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        tx.update(params, tx.init(params), previous_gradient=params)
    with pytest.raises(ValueError, match="mars: matrices has no pattern for the leaf 'w'"):
        optim.mars(0.1, matrices={"v": "m n"}).init({"v": params, "w": params})
    with pytest.raises(ValueError, match="mars: mesh_axis is 'x'"):
        optim.mars(0.1, mesh_axis="x").init(params)


def test_on_a_mesh():
    gradients = normals((2, 4, 6))
    alone, _ = run(optim.mars(0.1, form="shampoo", dtype=None), jnp.ones((4, 6)), gradients)
    with jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))):
        tx = optim.mars(0.1, form="shampoo", dtype=None, mesh_axis="x")
        spread, _ = run(tx, jnp.ones((4, 6)), gradients)
    np.testing.assert_allclose(spread, alone, rtol=1e-5)


def test_bfloat16_newton_schulz_is_near():
    gradient = normals((8, 8))
    exact, rounded = (optim.scale_by_mars(form="shampoo", dtype=d) for d in (None, "bfloat16"))
    exact, rounded = (tx.update(gradient, tx.init(gradient))[0] for tx in (exact, rounded))
    assert rounded.dtype == jnp.float32
    cosine = jnp.sum(exact * rounded) / jnp.linalg.norm(exact) / jnp.linalg.norm(rounded)
    assert cosine > 0.99 and (rounded == rounded.astype(jnp.bfloat16)).all()


def test_defaults_are_the_authors():
    defaults = {k: p.default for k, p in inspect.signature(optim.mars).parameters.items()}
    assert (defaults["b1"], defaults["b2"], defaults["eps"]) == (0.95, 0.99, 1e-8)
    assert (defaults["b1_1d"], defaults["b2_1d"], defaults["weight_decay_1d"]) == (0.9, 0.95, 0.1)
    assert (defaults["gamma"], defaults["form"], defaults["weight_decay"]) == (0.025, "adamw", 0.0)
    assert (defaults["approximate"], defaults["optimize_1d"], defaults["amsgrad"]) == (
        True,
        False,
        False,
    )
    # Both of their rates are 3e-3 by default.
    assert (defaults["lr_1d_factor"], defaults["dtype"]) == (1.0, "bfloat16")
