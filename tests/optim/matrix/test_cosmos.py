"""COSMOS: a step by hand, Adam where it is Adam, the subspace, signs, modes, stacks, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from optim.matrix import cosmos


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def updates_of(tx, params, gradients):
    """The update of every step, and the last state, of a jitted scan."""

    def step(state, g):
        update, state = tx.update(g, state, params)
        return state, update

    @jax.jit
    def run(gradients):
        return jax.lax.scan(step, tx.init(params), gradients)

    state, updates = run(gradients)
    return updates, state


def test_first_step_of_a_diagonal_matrix_by_hand():
    """U = e1, V / (1 - b2) = (9, 0), x = g: A = e1 e1', B = 2 e2 e2', D = diag(1, 0.25 * 2)."""
    tx = optim.scale_by_cosmos(rank=1, gamma=0.25, lr_ratio=0.5, dtype=None)
    params = jnp.zeros((2, 2))
    u, state = tx.update(jnp.diag(jnp.array([3.0, 1.0])), tx.init(params), params)
    expected = 0.5 * 2 * np.diag([1, 0.5]) / 1.25**0.5
    np.testing.assert_allclose(u, expected, rtol=1e-5, atol=1e-6)
    [subspace] = state.subspaces.values()
    np.testing.assert_allclose(np.abs(subspace.basis[0, :, 0]), [1, 0], atol=1e-6)
    np.testing.assert_allclose(subspace.gram[0], [[0.001 * 9]], rtol=1e-4)
    np.testing.assert_allclose(subspace.nu[0], [[0.001 * 9, 0]], rtol=1e-4)


def test_second_step_of_one_column_by_hand():
    """One input, so U = 1 or -1, and both second moments are 0.25 (0.75 + 4)."""
    tx = optim.scale_by_cosmos(0.5, 0.75, rank=3, eps=0.0, lr_ratio=1.0)
    params = jnp.zeros((1, 2))
    g = jnp.array([[1.0, -1.0]])
    _, state = tx.update(g, tx.init(params), params)
    u, state = tx.update(jnp.array([[2.0, 2.0]]), state, params)
    x = np.array([(2 + 0.5 * 2.5) / 1.75, (2 + 0.5 * 1.5) / 1.75])
    np.testing.assert_allclose(state.mu, [[2.5, 1.5]])
    np.testing.assert_allclose(state.subspaces["1x2_float32"].nu[0], [[1.1875, 1.1875]])
    np.testing.assert_allclose(u[0], np.sqrt(2) * x / np.linalg.norm(x), rtol=1e-6)


def test_a_single_input_without_look_ahead_is_adam_of_a_given_length():
    gradients = normal(0, 10, 1, 7)
    tx = optim.scale_by_cosmos(0.8, 0.9, nesterov=False, lr_ratio=0.3)
    ours, _ = updates_of(tx, jnp.zeros((1, 7)), gradients)
    theirs, _ = updates_of(optax.scale_by_adam(0.8, 0.9), jnp.zeros((1, 7)), gradients)
    lengths = jnp.linalg.norm(theirs, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(ours, 0.3 * 7**0.5 * theirs / lengths, rtol=1e-4, atol=1e-6)


def test_what_is_no_matrix_gets_adam():
    params = {"embed": jnp.zeros((5, 3)), "wide": jnp.zeros((3, 9)), "b": jnp.zeros(4)}
    gradients = jax.tree.map(lambda p: normal(p.size, 6, *p.shape), params)
    tx = optim.scale_by_cosmos(
        0.8, 0.9, rank=2, matrices={"embed": None, "wide": "m n"}, max_columns=8
    )
    ours, state = updates_of(tx, params, gradients)
    theirs, _ = updates_of(optax.scale_by_adam(0.8, 0.9), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), ours, theirs)
    assert state.subspaces == {}


def test_the_slips_of_the_code():
    gradients = jnp.ones((200, 3))
    for b1 in (0.9, 0.95):
        paper, code = (
            updates_of(optim.scale_by_cosmos(b1, mode=mode), jnp.zeros(3), gradients)[0]
            for mode in ("paper", "code")
        )
        # 0.1 / (1 - b1) in the steady state.
        np.testing.assert_allclose(code[-1] / paper[-1], 0.1 / (1 - b1), rtol=1e-3)
    steps = normal(0, 2, 4, 3) * jnp.array([1, 1e-6])[:, None, None]
    runs = {
        mode: updates_of(
            optim.scale_by_cosmos(nesterov=False, mode=mode, rank=1, dtype=None),
            jnp.zeros((4, 3)),
            steps,
        )[0]
        for mode in ("paper", "code")
    }
    np.testing.assert_array_equal(runs["code"][0], runs["paper"][0])
    # The momentum still points along the first gradient, and the code does not look at it.
    along = {mode: float(jnp.vdot(u[1], u[0]) / jnp.vdot(u[0], u[0])) for mode, u in runs.items()}
    assert along["paper"] > 0.95 > 0.6 > abs(along["code"])


def test_signs_of_the_basis_change_nothing():
    gradients = normal(0, 6, 6, 5)

    def flipped(g, rank):
        return cosmos.leading_eigenvectors(g, rank) * jnp.array([1.0, -1.0, -1.0])

    (ours, state), (theirs, other) = (
        updates_of(
            optim.scale_by_cosmos(rank=3, dtype=None, initial_basis=basis),
            jnp.zeros((6, 5)),
            gradients,
        )
        for basis in (cosmos.leading_eigenvectors, flipped)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    signs = jnp.sum(state.subspaces["6x5_float32"].basis * other.subspaces["6x5_float32"].basis, -2)
    np.testing.assert_allclose(jnp.abs(signs), 1, rtol=1e-4)


def test_every_matrix_moves_by_the_ratio():
    params = {"a": jnp.zeros((6, 5)), "b": jnp.zeros((2, 2, 3, 8))}
    gradients = jax.tree.map(lambda p: normal(p.size, 3, *p.shape), params)
    updates, _ = updates_of(optim.scale_by_cosmos(rank=2, lr_ratio=0.3), params, gradients)
    for u in jax.tree.leaves(updates):
        rms = jnp.sqrt(jnp.mean(u.reshape(3, -1) ** 2, -1))
        np.testing.assert_allclose(rms, 0.3, rtol=1e-4)


def test_the_basis_follows_the_leading_eigenspace():
    turn = jax.random.orthogonal(jax.random.key(0), 8)
    scales = jnp.array([9.0, 7.0, 5.0, 1, 1, 1, 1, 1])
    gradients = jnp.einsum("ij,j,tjk->tik", turn, scales, normal(1, 60, 8, 6))
    arbitrary = optim.scale_by_cosmos(
        b2=0.95, rank=3, initial_basis=lambda g, rank: jnp.eye(8, rank), dtype=None
    )
    _, state = updates_of(arbitrary, jnp.zeros((8, 6)), gradients)
    basis = state.subspaces["8x6_float32"].basis[0]
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-5)
    cosines = np.linalg.svd(basis.T @ turn[:, :3])[1]
    assert cosines.min() > 0.97


@pytest.mark.parametrize(("m", "n", "rank"), [(4, 7, 3), (9, 4, 3), (9, 4, 6), (5, 5, 5)])
def test_the_first_basis_spans_the_leading_singular_vectors(m, n, rank):
    g = normal(0, 2, m, n)
    basis = cosmos.leading_eigenvectors(g, rank)
    expected = np.linalg.svd(g)[0][..., :rank]
    np.testing.assert_allclose(
        basis.mT @ basis, np.broadcast_to(np.eye(rank), (2, rank, rank)), atol=1e-5
    )
    known = min(rank, n)  # beyond the rank of g they are arbitrary
    spans = np.linalg.svd(basis.mT @ expected[..., :known])[1]
    np.testing.assert_allclose(spans, 1, atol=1e-4)


@pytest.mark.parametrize(("shape", "rank"), [((6, 2), 3), ((3, 8), 3), ((3, 8), 64)])
def test_a_residual_of_rounding_errors_is_none(shape, rank):
    """Newton-Schulz would blow it up to gamma times the size of the rest."""
    g = normal(0, *shape)
    runs = [
        optim.scale_by_cosmos(rank=rank, gamma=gamma, dtype=None).update for gamma in (0.0, 0.2)
    ]
    state = optim.scale_by_cosmos(rank=rank).init(g)
    (without, _), (with_rest, _) = (update(g, state) for update in runs)
    np.testing.assert_array_equal(without, with_rest)


def test_stacked_layers_move_as_they_do_alone_in_chunks_or_not():
    gradients = {"w": normal(0, 4, 4, 6, 5)}
    runs = [
        updates_of(
            optim.scale_by_cosmos(rank=2, dtype=None, matrices={"w": "b m n"}, chunk=chunk),
            {"w": jnp.zeros((4, 6, 5))},
            gradients,
        )[0]["w"]
        for chunk in (1, 4)
    ]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-4, atol=1e-6)
    alone, _ = updates_of(
        optim.scale_by_cosmos(rank=2, dtype=None), jnp.zeros((6, 5)), gradients["w"][:, 2]
    )
    np.testing.assert_allclose(runs[0][:, 2], alone, rtol=1e-4, atol=1e-6)


def test_a_table_declared_by_its_outputs_is_its_transpose():
    gradients = normal(0, 3, 7, 4)
    table, _ = updates_of(
        optim.scale_by_cosmos(rank=2, dtype=None, matrices={"w": "n m"}),
        {"w": jnp.zeros((7, 4))},
        {"w": gradients},
    )
    kernel, _ = updates_of(
        optim.scale_by_cosmos(rank=2, dtype=None), jnp.zeros((4, 7)), gradients.mT
    )
    np.testing.assert_allclose(table["w"].mT, kernel, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_missing_gradient_leaves_its_slice_of_the_state():
    params = {"a": jnp.zeros((4, 3)), "b": jnp.zeros((4, 3))}
    tx = optim.scale_by_cosmos(rank=2)
    g = {"a": normal(0, 4, 3), "b": normal(1, 4, 3)}
    _, state = tx.update(g, tx.init(params))
    updates, after = tx.update({**g, "b": None}, state)
    assert updates["b"] is None and (after.mu["b"] == state.mu["b"]).all()
    for old, new in zip(state.subspaces["4x3_float32"], after.subspaces["4x3_float32"]):
        assert (old[1] == new[1]).all() and (old[0] != new[0]).any()


@pytest.mark.slow
def test_newton_schulz_in_bfloat16_is_the_default_and_near():
    g = normal(0, 8, 6)
    methods = optim.scale_by_cosmos(rank=2), optim.scale_by_cosmos(rank=2, dtype=None)
    default, exact = (tx.update(g, tx.init(g))[0] for tx in methods)
    assert default.dtype == jnp.float32 and 0 < float(jnp.abs(default - exact).max()) < 0.02


def test_the_decay_is_scaled_by_the_rate_alone():
    params = jnp.ones((3, 2))
    tx = optim.cosmos(0.5, lr_ratio=0.1, weight_decay=0.25)
    updates, _ = tx.update(jnp.zeros((3, 2)), tx.init(params), params)
    np.testing.assert_array_equal(updates, -0.125 * params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"b1": 1.0}, r"b1 is 1.0; accepted: 0 <= b1 < 1"),
        ({"b2": -0.1}, r"b2 is -0.1; accepted: 0 <= b2 < 1"),
        ({"eps": -1.0}, r"eps is -1.0; accepted: eps >= 0"),
        ({"gamma": -1.0}, r"gamma is -1.0; accepted: gamma >= 0"),
        ({"lr_ratio": -1.0}, r"lr_ratio is -1.0; accepted: lr_ratio >= 0"),
        ({"rank": 0}, r"rank is 0; accepted: rank >= 1"),
        ({"mode": "old"}, r"mode is 'old'; accepted: 'paper', 'code'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match="cosmos: " + message):
        optim.cosmos(0.1, **arguments)
