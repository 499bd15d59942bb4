"""M-FAC: steps by hand, the dense inverse, what float32 keeps, odd leaves and gradients."""

import inspect
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from experiments.tpu_slice import libtpu_folder, run_python
from optim.solvers.windowed_inverse import Window, inverse_product
from tests import pretended_devices

from ..running import random_gradients, run, run_jitted

ROOT = pathlib.Path(__file__).parents[3]


def test_three_steps_by_hand():
    """A window of two: the third gradient replaces the first."""
    tx = optim.mfac(1.0, window_size=2, damping=2.0)
    # F = 2 I + g g' / 2 with g = (2, 0), which the gradient meets as 2 + 2.
    params, state = run(tx, jnp.array([1.0, 1.0]), [jnp.array([2.0, 0.0])])
    np.testing.assert_allclose(params, [0.5, 1.0], rtol=1e-6)
    params, state = run(tx, jnp.array([1.0, 1.0]), [jnp.array([2.0, 0.0]), jnp.array([0.0, 2.0])])
    np.testing.assert_allclose(params, [0.5, 0.5], rtol=1e-6)
    # F = ((4, 2), (2, 6)), F^-1 (2, 2) = (0.4, 0.2).
    updates, state = tx.update(jnp.array([2.0, 2.0]), state, params)
    np.testing.assert_allclose(params + updates, [0.1, 0.3], rtol=1e-6)
    assert state[1].window.tolist() == [[2.0, 2.0], [0.0, 2.0]] and state[1].oldest == 1
    assert state[1].gram.tolist() == [[8.0, 4.0], [4.0, 4.0]]


def test_decay_enters_the_window_and_momentum_averages_directions():
    tx = optim.mfac(1.0, window_size=2, damping=2.0, momentum=0.75, weight_decay=0.5)
    params, state = run(tx, jnp.array([2.0, 0.0]), [jnp.array([1.0, 0.0])])
    np.testing.assert_allclose(state[1].mu, [0.125, 0.0], rtol=1e-6)  # (2, 0) / 4, a quarter of it
    np.testing.assert_allclose(params, [1.875, 0.0], rtol=1e-6)
    assert state[1].window.tolist() == [[2.0, 0.0], [0.0, 0.0]]


def test_equals_the_dense_inverse_with_leaves_as_one_vector():
    rng = np.random.default_rng(0)
    p, v, gradients = rng.normal(size=7), np.zeros(7), rng.normal(size=(9, 7))
    start, window = p, np.zeros((4, 7))
    for step, g in enumerate(gradients):
        window[step % 4] = g + 0.1 * p
        fisher = 0.01 * np.eye(7) + window.T @ window / 4
        v = 0.5 * v + 0.5 * np.linalg.solve(fisher, g + 0.1 * p)
        p = p - 0.02 * v

    def tree(x):
        return {"w": jnp.asarray(x[:6].reshape(2, 3)), "b": jnp.asarray(x[6])}

    with jax.enable_x64(True):
        tx = optim.mfac(0.02, window_size=4, damping=0.01, momentum=0.5, weight_decay=0.1)
        ours, _ = run_jitted(tx, tree(start), [tree(g) for g in gradients])
    np.testing.assert_allclose(np.append(ours["w"].ravel(), ours["b"]), p, rtol=1e-12)


def test_large_damping_is_sgd():
    """And with it M-FAC's momentum is optax.ema."""
    gradients = random_gradients()
    start = jax.tree.map(jnp.ones_like, gradients[0])
    for momentum in (0.0, 0.9):
        tx = optim.mfac(1e6, damping=1e7, window_size=3, momentum=momentum)
        ours, _ = run_jitted(tx, start, gradients)
        sgd = optax.chain(optax.ema(momentum, debias=False), optax.sgd(0.1))
        theirs, _ = run_jitted(sgd, start, gradients)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)  # |g|^2 / damping of steps of 0.1


def test_a_window_of_one_divides_by_the_square():
    updates, _ = run(optim.mfac(1.0, window_size=1, damping=0.5), jnp.zeros(2), [jnp.ones(2)] * 2)
    np.testing.assert_allclose(updates, [-0.8, -0.8], rtol=1e-6)


@pytest.mark.slow
def test_the_order_of_the_window_does_not_matter():
    gradients = jax.random.normal(jax.random.key(0), (8, 5))
    tx = optim.scale_by_mfac(4, 0.1)
    _, straight = run_jitted(tx, jnp.zeros(5), gradients)
    _, turned = run_jitted(tx, jnp.zeros(5), jnp.concatenate([gradients[:2], gradients[4:]]))
    assert straight.oldest != turned.oldest
    for state in (straight, turned):  # the last four gradients are the same
        np.testing.assert_allclose(state.window.sum(0), straight.window.sum(0), rtol=1e-5)
    ours, theirs = (tx.update(jnp.ones(5), state)[0] for state in (straight, turned))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


# Float32.


def similar(count, size, norm, correlation):
    """Gradients of one norm, each pair with that cosine but for chance."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(count, size)) * np.sqrt(1 - correlation)
    drawn += rng.normal(size=size) * np.sqrt(correlation)
    return (norm * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def errors(count, size):
    """Of the update after a full window and of Woodbury's difference, relative to float64."""
    gradients = similar(count, size, 10.0, 0.95)
    tx = optim.scale_by_mfac(count)

    @jax.jit
    def walk(gradients):
        def step(state, g):
            updates, state = tx.update(g, state)
            return state, updates[:1]  # not to keep all of them

        state, _ = jax.lax.scan(step, tx.init(gradients[0]), gradients[:-1])
        updates, state = tx.update(gradients[-1], state)
        window = Window(state.window, state.gram, state.oldest)
        return updates, count * inverse_product(window, gradients[-1], count * 1e-5)

    exact = gradients.astype(np.float64)
    weights = np.linalg.solve(exact @ exact.T + count * 1e-5 * np.eye(count), np.eye(count)[-1])
    expected = count * exact.T @ weights
    return [
        float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))
        for ours in walk(jnp.asarray(gradients))
    ]


def test_float32_keeps_what_a_difference_loses():
    ours, difference = errors(64, 1024)
    assert ours < 2e-4 and difference > 0.1


@pytest.mark.slow
def test_float32_keeps_it_at_the_default_window():
    ours, difference = errors(1024, 20_000)
    assert ours < 1e-3 and difference > 0.05


def test_equal_gradients_stay_finite():
    """Their inner products are singular but for rounding a million times the damping."""
    updates, state = run_jitted(
        optim.mfac(1.0, window_size=8), jnp.zeros(64), [100 * jnp.ones(64)] * 12
    )
    assert jnp.isfinite(updates).all() and jnp.isfinite(state[1].gram).all()


def test_bfloat16_window():
    gradients = jnp.asarray(similar(16, 64, 1.0, 0.5))
    exact, wide = run_jitted(optim.mfac(1.0, window_size=8, damping=0.1), jnp.zeros(64), gradients)
    tx = optim.mfac(1.0, window_size=8, damping=0.1, buffer_dtype="bfloat16")
    ours, narrow = run_jitted(tx, jnp.zeros(64), gradients)
    assert narrow[1].window.dtype == jnp.bfloat16 and narrow[1].gram.dtype == jnp.float32
    assert 2 * narrow[1].window.nbytes == wide[1].window.nbytes == 4 * 8 * 64
    # An entry of a gradient is rounded by 2^-9 at most.
    assert 0 < jnp.linalg.norm(ours - exact) < 2**-8 * jnp.linalg.norm(exact)


# Gradients that are not finite, leaves that are absent.


def test_a_gradient_that_is_not_finite_leaves_the_state():
    tx = optim.scale_by_mfac(3, 0.1, momentum=0.5)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    _, state = run(tx, params, [{"a": jnp.ones(2), "b": jnp.arange(3.0)}])
    updates, after = tx.update({"a": jnp.array([jnp.nan, 1.0]), "b": jnp.ones(3)}, state)
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(updates))
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_keep_if_finite_after_the_window_leaves_the_step_out():
    tx = optax.chain(
        optim.scale_by_mfac(3, 0.1), optim.keep_if_finite(optax.scale_by_learning_rate(0.1))
    )
    good, bad = jnp.array([1.0, 2.0]), jnp.array([jnp.inf, 0.0])
    with_bad, state = run(tx, jnp.ones(2), [good, bad, 2 * good])
    without, _ = run(tx, jnp.ones(2), [good, 2 * good])
    np.testing.assert_array_equal(with_bad, without)
    assert state[1].total == 1


def test_leaves_without_a_gradient_count_as_zeros_and_stay():
    params = {
        "none": None,
        "unused": jnp.ones(2),
        "masked": optax.MaskedNode(),
        "used": jnp.ones(2),
        "integer": jnp.array([0, 100]),
    }
    gradients = {**params, "integer": np.zeros(2, jax.dtypes.float0)}
    tx = optim.mfac(0.5, window_size=2, damping=0.5, momentum=0.5, weight_decay=0.25)
    _, state = tx.update(gradients, tx.init(params), params)
    updates, after = tx.update({**gradients, "unused": None}, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    moved = optim.apply_updates(params, updates)
    assert updates["unused"] is None and moved["unused"].tolist() == [1.0, 1.0]
    assert moved["integer"].tolist() == [0, 100]
    window, mu = after[1].window, after[1].mu
    assert window["integer"] == optax.MaskedNode() and window["none"] is None
    assert window["unused"].tolist() == [[1.25, 1.25], [0.0, 0.0]]
    np.testing.assert_array_equal(mu["unused"], state[1].mu["unused"])
    # Decay of the integers, 100 / 4, would be in the inner products.
    np.testing.assert_allclose(np.diag(after[1].gram), [4 * 1.25**2, 2 * 1.25**2], rtol=1e-6)


def test_mask_chooses_what_decays():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = optim.mfac(1.0, window_size=2, weight_decay=0.5, mask={"w": True, "b": False})
    moved, state = run(tx, params, [zeros])
    assert (moved["w"] != 1.0).all() and (moved["b"] == 1.0).all()
    assert (state[1].window["w"][0] == 0.5).all()


# Arguments and memory.


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"window_size": 0}, "mfac: window_size is 0; accepted: an integer, at least 1"),
        ({"window_size": 2.5}, "mfac: window_size is 2.5; accepted: an integer"),
        ({"damping": 0.0}, "mfac: damping is 0.0; accepted: damping > 0"),
        ({"momentum": 1.0}, "mfac: momentum is 1.0; accepted: 0 <= momentum < 1"),
    ],
)
def test_arguments_out_of_range_are_named(argument, message):
    with pytest.raises(ValueError, match=message):
        optim.mfac(0.1, **argument)
    with pytest.raises(ValueError, match=message):
        optim.scale_by_mfac(**argument)


def test_defaults_are_the_authors():
    for function in (optim.mfac, optim.scale_by_mfac):
        values = {k: p.default for k, p in inspect.signature(function).parameters.items()}
        assert (values["window_size"], values["damping"], values["momentum"]) == (1024, 1e-5, 0)
    assert inspect.signature(optim.mfac).parameters["weight_decay"].default == 0


def test_without_momentum_none_is_stored_and_a_traced_one_is():
    assert optim.scale_by_mfac(2).init(jnp.ones(3)).mu is None
    tx = optim.inject_hyperparams(optim.mfac)(
        learning_rate=1.0, window_size=2, damping=0.5, momentum=0.0
    )
    moved, _ = run(tx, jnp.zeros(2), [jnp.ones(2)] * 3)
    plain, _ = run(optim.mfac(1.0, window_size=2, damping=0.5), jnp.zeros(2), [jnp.ones(2)] * 3)
    np.testing.assert_allclose(moved, plain, rtol=1e-6)


SHARDED = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import optim

mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
params = jax.device_put(jnp.ones((8, 2)), NamedSharding(mesh, P("rows")))
tx = optim.scale_by_mfac(3, momentum=0.5)
state = tx.init(params)
assert state.window.sharding.spec == P(None, "rows"), state.window.sharding
updates, state = jax.jit(tx.update)(params, state)
assert state.window.sharding.spec == P(None, "rows"), state.window.sharding
assert updates.sharding.spec == P("rows"), updates.sharding
"""

COMPILED = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import optim
from experiments.tpu_slice import slice_mesh

mesh = slice_mesh("v5e:2x2", (4,), ("rows",))
specs = {(2048, 1024): P("rows"), (128, 2048, 1024): P(None, "rows")}


def placed(x):
    place = NamedSharding(mesh, specs.get(x.shape, P()))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


for dtype in (None, "bfloat16"):
    tx = optim.scale_by_mfac(128, buffer_dtype=dtype)
    params = {"w": jax.ShapeDtypeStruct((2048, 1024), "float32")}
    params, state = jax.tree.map(placed, (params, jax.eval_shape(tx.init, params)))
    step = jax.jit(tx.update, donate_argnums=(0, 1)).lower(params, state).compile()
    used = step.memory_analysis().temp_size_in_bytes
    assert used < 2048 * 1024, f"{used} bytes beside a window of {dtype}"
    assert "all-gather" not in step.as_text() and "all-to-all" not in step.as_text()
"""


@pytest.mark.slow
def test_the_window_is_sharded_as_the_parameters_are():
    command = [sys.executable, "-c", SHARDED]
    environment = pretended_devices.environment(4)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_step_on_four_tpus_writes_the_window_in_place_and_gathers_nothing():
    """On each, windows of 268 and 134 MB, and temporaries below its part of a gradient."""
    if libtpu_folder() is None:
        pytest.skip("libtpu, the compiler, is not installed")
    assert run_python(["-c", COMPILED]) == 0
