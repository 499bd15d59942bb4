"""Optimistic mirror descent: closed forms, optax where it agrees, games, adaptive rates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def run(tx, params, gradients):
    state, seen = tx.init(params), []
    for g in gradients:
        updates, state = tx.update(g, state, params)
        params = optim.apply_updates(params, updates)
        seen.append(params)
    return seen, state


def test_first_two_steps_by_hand():
    tx = optim.optimistic(lambda t: 1.0 / (t + 1))
    seen, state = run(tx, jnp.array([8.0]), [jnp.array([2.0]), jnp.array([6.0])])
    # y = 8 - 2, x = y - 2 / 2; then y = 6 - 6 / 2, x = y - 6 / 3.
    assert [x.tolist() for x in seen] == [[5.0], [1.0]]
    assert state.anchor.tolist() == [3.0]


def test_euclidean_map_equals_optax_once_its_last_gradient_is_zero():
    """optax takes the first gradient for the one before it; the paper takes zero."""
    gradients = np.random.default_rng(0).normal(size=(12, 5))
    with jax.enable_x64(True):
        params = jnp.ones(5)
        ours, _ = run(optim.optimistic(0.1), params, gradients)
        theirs = optax.optimistic_gradient_descent(0.1)
        first, *rest = theirs.init(params)
        state = (first._replace(is_initial_step=jnp.array(False)), *rest)
        for g, expected in zip(gradients, ours, strict=True):
            updates, state = theirs.update(g, state, params)
            params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(params, expected, rtol=1e-12)


def test_projection_is_of_both_iterates():
    clip = optim.euclidean_mirror_map(lambda x: jnp.clip(x, 0.0, 1.0))
    tx = optim.optimistic(1.0, mirror_map=clip)
    seen, state = run(tx, jnp.array([0.5]), [jnp.array([-2.0]), jnp.array([0.25])])
    # y = clip(2.5) = 1, x = 1; then y = 0.75, x = 0.5. Unprojected, y would be 2.25.
    assert [x.tolist() for x in seen] == [[1.0], [0.5]] and state.anchor.tolist() == [0.75]


def test_entropic_map_equals_the_closed_form():
    """x_{t+1} is proportional to x_1 exp(-r (g_1 + ... + g_t) - r g_t), row by row."""
    rng = np.random.default_rng(0)
    start = rng.dirichlet(np.ones(4), size=3)
    gradients = rng.normal(size=(10, 3, 4))
    with jax.enable_x64(True):
        tx = optim.optimistic(0.7, mirror_map=optim.entropic_mirror_map())
        seen, _ = run(tx, jnp.asarray(start), gradients)
    for t, ours in enumerate(seen):
        weights = start * np.exp(-0.7 * (gradients[: t + 1].sum(0) + gradients[t]))
        np.testing.assert_allclose(ours, weights / weights.sum(-1, keepdims=True), rtol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_entropic_steps_land_on_the_simplex(dtype):
    gradients = 3 * jax.random.normal(jax.random.key(0), (30, 5, 7)).astype(dtype)
    start = jnp.full((5, 7), 1 / 7, dtype)
    tx = optim.optimistic(1.0, mirror_map=optim.entropic_mirror_map())
    seen, state = run(tx, start, gradients)
    assert state.anchor.dtype == jnp.float32
    for x in seen:
        wide = np.asarray(x, np.float64)
        assert x.dtype == dtype and (wide >= 0).all()
        # Seven weights of at most 1, each rounded by half an ulp at the most.
        np.testing.assert_allclose(wide.sum(-1), 1, atol=7 * float(jnp.finfo(dtype).eps) / 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_entropic_map_keeps_to_the_accumulator_dtype(dtype):
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        params = jnp.full((2, 4), 0.25, dtype)
        for offset in (None, 1.0):
            tx = optim.optimistic(0.1, mirror_map=optim.entropic_mirror_map(), offset=offset)
            state = tx.init(params)
            updates, after = jax.eval_shape(tx.update, params, state, params)
            assert updates.dtype == wide
            dtypes = [leaf.dtype for leaf in jax.tree.leaves(after)]
            assert dtypes == [leaf.dtype for leaf in jax.tree.leaves(state)]
            assert set(dtypes) == {jnp.dtype(jnp.int32), jnp.dtype(wide)}


def test_a_weight_that_underflows_comes_back():
    tx = optim.optimistic(1.0, mirror_map=optim.entropic_mirror_map())
    down, up = jnp.array([200.0, 0.0]), jnp.array([-200.0, 0.0])
    seen, _ = run(tx, jnp.array([0.5, 0.5]), [down, up, 0 * up, up, 0 * up])
    assert seen[0][0] == 0.0
    assert seen[2].tolist() == [0.5, 0.5]
    assert seen[-1].tolist() == [1.0, 0.0]


def play(tx, payoff, row, column, steps):
    """The last iterates of a game whose row player pays and whose column player is paid."""
    players = {"row": row, "column": column}

    def step(carry, _):
        players, state = carry
        gradients = {"row": payoff @ players["column"], "column": -payoff.T @ players["row"]}
        updates, state = tx.update(gradients, state, players)
        return (optim.apply_updates(players, updates), state), None

    carry = (players, tx.init(players))
    return jax.jit(lambda c: jax.lax.scan(step, c, length=steps)[0][0])(carry)


def test_last_iterate_of_an_unconstrained_bilinear_game_converges():
    payoff = jnp.array([[2.0, 1.0], [0.0, 1.0]])
    start = jnp.array([1.0, -2.0])
    ours = play(optim.optimistic(0.2), payoff, start, start, 3000)
    np.testing.assert_allclose(jnp.concatenate([*ours.values()]), 0, atol=1e-5)
    plain = play(optax.sgd(0.1), payoff, start, start, 300)
    assert float(jnp.linalg.norm(plain["row"])) > 10 * float(jnp.linalg.norm(start))


def test_last_iterate_of_a_matrix_game_converges():
    """The payoffs 3, 0, 0, 1 have the only equilibrium (1/4, 3/4) for both players."""
    tx = optim.optimistic(0.2, mirror_map=optim.entropic_mirror_map())
    start = jnp.array([0.9, 0.1])
    ours = play(tx, jnp.array([[3.0, 0.0], [0.0, 1.0]]), start, start, 3000)
    np.testing.assert_allclose(ours["row"], [0.25, 0.75], atol=1e-4)
    np.testing.assert_allclose(ours["column"], [0.25, 0.75], atol=1e-4)


def test_rate_by_variation_agrees_with_numpy():
    gradients = np.random.default_rng(0).normal(size=(10, 5))
    diameter, offset = 2.0, 3.0
    y, last, variation, expected = np.ones(5), np.zeros(5), 0.0, []
    for g in gradients:
        y = y - diameter / np.sqrt(offset + variation) * g
        variation += ((g - last) ** 2).sum()
        expected.append(y - diameter / np.sqrt(offset + variation) * g)
        last = g
    with jax.enable_x64(True):
        params = {"a": jnp.ones(2), "b": jnp.ones(3)}
        trees = [{"a": jnp.asarray(g[:2]), "b": jnp.asarray(g[2:])} for g in gradients]
        seen, state = run(optim.optimistic(diameter, offset=offset), params, trees)
        for ours, theirs in zip(seen, expected, strict=True):
            np.testing.assert_allclose([*ours["a"], *ours["b"]], theirs, rtol=1e-12)
        np.testing.assert_allclose(state.variation, variation, rtol=1e-12)


def test_rate_stays_where_the_gradient_does():
    """Steady gradients vary once, from zero to the first; the regret is then that of a constant."""
    tx = optim.optimistic(1.0, offset=1.0)
    _, state = run(tx, jnp.zeros(4), [jnp.ones(4)] * 6)
    assert float(state.variation) == 4.0


def test_leaf_without_gradient_keeps_both_iterates():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = optim.optimistic(0.5, offset=1.0)
    updates, state = tx.update({"a": None, "b": jnp.ones(2)}, tx.init(params), params)
    assert updates["a"] is None
    assert state.anchor["a"].tolist() == [1.0, 1.0] and state.previous["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("offset", [0, -1.0, float("nan")])
def test_offset_out_of_range_is_named(offset):
    with pytest.raises(ValueError, match=rf"optimistic: offset is {offset}; accepted: offset > 0"):
        optim.optimistic(0.1, offset=offset)


def test_scalar_off_the_simplex_is_named():
    tx = optim.optimistic(0.1, mirror_map=optim.entropic_mirror_map())
    with pytest.raises(ValueError, match="optimistic: a leaf of params is a scalar; accepted"):
        tx.init({"w": jnp.ones(2), "s": jnp.float32(1.0)})


def test_forgotten_parameters_are_named():
    tx = optim.optimistic(0.1)
    with pytest.raises(ValueError, match=r"optimistic: params is None; call update\(updates"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
