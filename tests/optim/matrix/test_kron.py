"""PSGD Kron: a step by hand, whitening, the counter, shapes of factors, stacks, draws, errors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from optim.matrix import kron


def key(seed=0):
    """A fresh one, so that none is used twice."""
    return jax.random.key(seed)


def never(key, count):
    return jnp.array(False)


def third_if(on, key, count):
    return jnp.array(on) & (count == 3)


def updates_of(tx, params, gradients):
    """The update of every step, and the last state, of a jitted scan."""

    def step(state, inputs):
        count, g = inputs
        update, state = tx.update(g, state, params, key=jax.random.fold_in(key(), count))
        return state, update

    @jax.jit
    def run(gradients):
        steps = len(jax.tree.leaves(gradients)[0])
        return jax.lax.scan(step, tx.init(params), (jnp.arange(steps), gradients))

    state, updates = run(gradients)
    return updates, state


def test_first_two_steps_of_a_scalar_by_hand():
    tx = optim.scale_by_kron(
        0.5, precond_lr=0.1, probe=lambda key, count, tree: jnp.float32(2.0), balance=never
    )
    state = tx.init(jnp.float32(0.0))
    noise = 2.0**-11.5
    # x = 0.5; with noise 2 * 0.5 * 2^-11.5; A = x, B = 2; q = 1 - 0.1 (x^2 - 4) / (x^2 + 4).
    x = 0.5 + noise * 0.5 * 2
    q = 1 - 0.1 * (x * x - 4) / (x * x + 4)
    u, state = tx.update(jnp.float32(0.5), state)
    np.testing.assert_allclose([u, state.factors["1_float32"][0][0, 0]], [q * q * x, q], rtol=1e-6)
    # m = 0.25 / 2 - 2 / 2, x = m / 0.75; A = q x, B = 2 / q; rms 1.1 at most.
    x = -(0.875 / 0.75) * (1 - noise * 2)
    aa, bb = (q * x) ** 2, (2 / q) ** 2
    q = q - 0.1 * q * (aa - bb) / (aa + bb)
    u, state = tx.update(jnp.float32(-2.0), state)
    assert q * q * abs(x) > 1.1
    np.testing.assert_allclose(state.factors["1_float32"][0][0, 0], q, rtol=1e-6)
    np.testing.assert_allclose(u, -1.1, rtol=1e-6)


def test_before_its_first_update_it_is_momentum_with_the_rms_clipped():
    gradients = jax.random.normal(key(), (5, 3, 4)) * jnp.array([1, 1, 1, 9, 1])[:, None, None]
    tx = optim.scale_by_kron(0.8, preconditioner_update_probability=0.01)
    ours, _ = updates_of(tx, jnp.zeros((3, 4)), gradients)
    ema = optax.ema(0.8, debias=True)
    state = ema.init(gradients[0])
    for g, u in zip(gradients, ours, strict=True):
        m, state = ema.update(g, state)
        rms = jnp.sqrt(jnp.mean(m**2))
        np.testing.assert_allclose(u, m * jnp.minimum(1, 1.1 / rms), rtol=1e-5, atol=1e-6)
    assert float(rms) > 1.1


def test_gradients_of_a_kronecker_covariance_become_white():
    """The fixed point of the update: q'q left and right r'r are orthogonal, times a scalar."""
    left = jnp.diag(jnp.array([1.0, 10.0, 30.0])) @ jax.random.orthogonal(key(1), 3)
    right = jax.random.orthogonal(key(2), 4) @ jnp.diag(jnp.array([0.1, 1.0, 5.0, 20.0]))
    gradients = left @ jax.random.normal(key(), (1500, 3, 4)) @ right
    tx = optim.scale_by_kron(0.0, preconditioner_update_probability=1.0)
    _, state = updates_of(tx, jnp.zeros((3, 4)), gradients)
    q, r = (factor[0] for factor in state.factors["3x4_float32"])
    condition = [np.linalg.cond(q.T @ q @ left), np.linalg.cond(right @ r.T @ r)]
    # A step of a tenth, on one gradient at a time, leaves a spread of tens of per cent.
    assert max(condition) < 2 and min(np.linalg.cond(left), np.linalg.cond(right)) > 29
    np.testing.assert_allclose(np.tril(q, -1), 0)


@pytest.mark.parametrize(
    ("probability", "due"), [(1.0, "111111"), (0.5, "010101"), (0.4, "001001")]
)
def test_an_update_waits_for_the_counter(probability, due):
    tx = optim.scale_by_kron(preconditioner_update_probability=probability)
    state = tx.init(jnp.zeros(3))
    moved = ""
    for _ in due:
        before = state.factors["3_float32"][0]
        _, state = tx.update(jnp.ones(3), state, key=key())
        moved += str(int((before != state.factors["3_float32"][0]).all()))
    assert moved == due


def test_the_default_probability_is_the_authors_schedule():
    schedule = optim.update_probability_schedule()
    values = [float(schedule(t)) for t in (0, 500, 1500, 10_000)]
    np.testing.assert_allclose(values, [1, 1, np.exp(-1), 0.03], rtol=1e-6)


def test_balancing_changes_factors_and_no_update():
    gradients = jax.random.normal(key(), (4, 3, 5))
    runs = [
        updates_of(
            optim.scale_by_kron(balance=functools.partial(third_if, on)),
            jnp.zeros((3, 5)),
            gradients,
        )
        for on in (False, True)
    ]
    (plain, state), (balanced, other) = runs
    np.testing.assert_allclose(balanced, plain, rtol=1e-4, atol=1e-5)
    assert (state.factors["3x5_float32"][0] != other.factors["3x5_float32"][0]).any()


def test_balanced_factors_have_one_largest_entry_and_the_same_product():
    left, right = jnp.full((1, 2, 2), 8.0), jnp.full((1, 3), 2.0)
    a, b = kron._balanced((left, right), jnp.array(True))
    np.testing.assert_allclose([a.max(), b.max()], [4, 4], rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "arguments", "expected"),
    [
        ((3, 5), {}, [(1, 3, 3), (1, 5, 5)]),
        ((5, 3), {}, [(1, 3, 3), (1, 5, 5)]),
        ((3, 5), {"memory_save_mode": "smart_one_diag"}, [(1, 3, 3), (1, 5)]),
        ((4, 4), {"memory_save_mode": "smart_one_diag"}, [(1, 4, 4), (1, 4, 4)]),
        ((4, 4), {"memory_save_mode": "one_diag"}, [(1, 4, 4), (1, 4)]),
        ((3, 5), {"memory_save_mode": "all_diag"}, [(1, 3), (1, 5)]),
        ((3, 5), {"max_size_triangular": 4}, [(1, 3, 3), (1, 5)]),
        ((3, 5), {"min_ndim_triangular": 3}, [(1, 3), (1, 5)]),
        ((1, 5), {}, [(1, 1), (1, 5, 5)]),
        ((5,), {}, [(1, 5)]),
        ((5,), {"min_ndim_triangular": 1}, [(1, 5, 5)]),
        ((), {}, [(1, 1)]),
        ((2, 2, 3, 5), {}, [(1, 5, 5), (1, 12, 12)]),
        ((2, 2, 3, 5), {"merge_dims": False}, [(1, 2, 2), (1, 2, 2), (1, 3, 3), (1, 5, 5)]),
        ((4, 3, 5), {"matrices": {"w": "b m n"}}, [(4, 3, 3), (4, 5, 5)]),
        ((4, 5), {"matrices": {"w": None}}, [(1, 20)]),
    ],
)
def test_shapes_of_factors(shape, arguments, expected):
    tx = optim.scale_by_kron(**arguments)
    params = {"w": jnp.ones(shape)}
    state = tx.init(params)
    [factors] = state.factors.values()
    assert [q.shape for q in factors] == expected
    update, after = jax.eval_shape(lambda g, s: tx.update(g, s, key=key()), params, state)
    assert update["w"].shape == shape
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def test_every_factor_has_its_root_of_the_initial_scale():
    state = optim.scale_by_kron(merge_dims=False, precond_init_scale=8.0).init(jnp.ones((2, 3, 4)))
    assert [float(q[0, 0, 0]) for q in state.factors["2x3x4_float32"]] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("arguments", [{}, {"memory_save_mode": "one_diag"}, {"chunk": 3}])
def test_stacked_layers_and_a_transpose_move_as_they_do_alone(arguments):
    gradients = jax.random.normal(key(), (4, 3, 6, 4))
    probes = jax.random.normal(key(1), (4, 3, 6, 4))

    def run(view, shape, **more):
        tx = optim.scale_by_kron(
            probe=lambda key, count, tree: {"w": view(probes[count])},
            balance=never,
            **arguments,
            **more,
        )
        stacked = {"w": jnp.stack([view(g) for g in gradients])}
        return updates_of(tx, {"w": jnp.zeros(shape)}, stacked)[0]["w"]

    together = run(lambda x: x, (3, 6, 4), matrices={"w": "b m n"})
    flipped = run(lambda x: x[1].T, (4, 6))
    np.testing.assert_allclose(together[:, 1].mT, flipped, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_silent_leaf_keeps_its_factors_and_a_missing_gradient_its_momentum():
    params = {"silent": jnp.ones((2, 3)), "missing": jnp.ones((2, 3)), "live": jnp.ones((2, 3))}
    tx = optim.scale_by_kron(preconditioner_update_probability=1.0, balance=never)
    state = first = tx.init(params)
    update = jax.jit(tx.update)
    for i in range(300):
        g = {"silent": jnp.zeros((2, 3)), "missing": None, "live": params["live"]}
        updates, state = update(g, state, key=jax.random.fold_in(key(), i))
    assert updates["missing"] is None and (updates["silent"] == 0).all()
    assert jnp.isfinite(updates["live"]).all()
    for before, after in zip(first.factors["2x3_float32"], state.factors["2x3_float32"]):
        live, missing, silent = (after[i] != before[i] for i in range(3))
        assert live.any() and not missing.any() and not silent.any()


@pytest.mark.slow
def test_the_gradient_is_seen_clean_of_the_noise_that_the_momentum_carries():
    params = jnp.ones((2, 3))
    for momentum in (True, False):
        tx = optim.scale_by_kron(0.0, momentum_into_precond_update=momentum, precond_lr=0.0)
        update, _ = tx.update(0.1 * params, tx.init(params), key=key())
        assert (update == jnp.float32(0.1)).all() == (not momentum)
        np.testing.assert_allclose(update, 0.1, atol=0.1 * 2.0**-11.5 * 5)


@pytest.mark.slow
def test_vectors_do_not_decay_unless_the_mask_says_so():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for mask, bias in ((None, 1.0), ({"w": True, "b": True}, 0.5)):
        tx = optim.kron(1.0, weight_decay=0.5, mask=mask)
        updates, _ = tx.update(zeros, tx.init(params), params, key=key())
        moved = optim.apply_updates(params, updates)
        assert (moved["w"] == 0.5).all() and (moved["b"] == bias).all()


def test_the_default_probe_is_standard_normal_and_another_for_each_leaf_and_step():
    tree = {"a": jnp.zeros((100, 100)), "b": jnp.zeros((100, 100), jnp.float32), "none": None}
    drawn = [kron.gaussian_probe(key(i), jnp.int32(0), tree) for i in range(2)]
    samples = np.stack([np.ravel(x) for d in drawn for x in jax.tree.leaves(d)])
    # 40,000 numbers: 5 standard errors of the mean, of the variance and of the correlations.
    assert abs(samples.mean()) < 5 / 200 and abs(samples.var() - 1) < 5 * 2**0.5 / 200
    assert np.abs(np.corrcoef(samples) - np.eye(4)).max() < 5 / 100
    assert abs((samples**4).mean() - 3) < 5 * 96**0.5 / 200


def test_the_default_balance_comes_once_in_a_hundred():
    keys = jax.random.split(key(), 20_000)
    drawn = jax.vmap(functools.partial(kron.rare_balance, count=jnp.int32(0)))(keys)
    assert abs(int(drawn.sum()) - 200) < 5 * 198**0.5


def test_mu_dtype_is_kept():
    params = jnp.ones((2, 3))
    tx = optim.scale_by_kron(mu_dtype="bfloat16")
    update, state = tx.update(params, tx.init(params), key=key())
    assert state.mu.dtype == jnp.bfloat16 and update.dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"b1": 1.0}, r"b1 is 1.0; accepted: 0 <= b1 < 1"),
        ({"precond_lr": -0.1}, r"precond_lr is -0.1; accepted: precond_lr >= 0"),
        ({"precond_init_scale": 0.0}, r"precond_init_scale is 0.0; accepted: above 0"),
        (
            {"preconditioner_update_probability": 1.5},
            r"preconditioner_update_probability is 1.5; accepted: above 0, at most 1, or a sched",
        ),
        (
            {"memory_save_mode": "two_diag"},
            r"memory_save_mode is 'two_diag'; accepted: None, 'smart",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match="kron: " + message):
        optim.kron(0.1, **arguments)


def test_a_forgotten_key_shows_the_call_that_would_pass_it():
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "probe"),
        ({"probe": lambda key, count, tree: tree}, "balance"),
    )
    for arguments, what in cases:
        tx = optim.scale_by_kron(**arguments)
        with pytest.raises(ValueError, match=rf"kron: the default {what} draws.*key=key\)"):
            tx.update(jnp.ones(3), tx.init(jnp.ones(3)))


def test_a_wrong_layout_or_mesh_axis_is_named():
    with pytest.raises(ValueError, match="kron: matrices: the layout 'm n'"):
        optim.scale_by_kron(matrices={"w": "m n"}).init({"w": jnp.ones((2, 3, 4))})
    with pytest.raises(ValueError, match="kron: mesh_axis is 'fsdp'"):
        optim.scale_by_kron(mesh_axis="fsdp").init(jnp.ones((2, 3)))
