"""Windowed inverses: against dense ones and the authors' recursion, and what rounding does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim.solvers.windowed_inverse import (
    cholesky,
    combination,
    empty_window,
    inner_products,
    inverse_product,
    newest_product,
    replace_oldest,
    static_diagonal,
    static_inverse,
    static_product,
)

LIKE = {"w": np.zeros((2, 3)), "b": np.zeros(2), "scale": np.zeros(()), "empty": np.zeros((0, 3))}


def vectors(count, seed=0):
    rng = np.random.default_rng(seed)
    return [jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), LIKE) for _ in range(count)]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def dense(vectors, damping):
    """damping I + sum of x x'."""
    rows = np.stack([flat(x) for x in vectors])
    return damping * np.eye(rows.shape[1]) + rows.T @ rows


def filled(size, vectors, like=None, dtype=None):
    window = empty_window(vectors[0] if like is None else like, size, dtype)
    for x in vectors:
        window, taken = replace_oldest(window, jax.tree.map(jnp.asarray, x))
        assert taken
    return window


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_products_are_those_of_the_dense_inverse(count):
    """A window that is not full, full, and has gone round."""
    given, other = vectors(count), vectors(1, seed=1)[0]
    a = dense(given[-4:], 0.3)
    with jax.enable_x64(True):
        window = filled(4, given)
        newest, outside = newest_product(window, 0.3), inverse_product(window, other, 0.3)
        inside = inverse_product(window, given[-1], 0.3)
    np.testing.assert_allclose(flat(newest), np.linalg.solve(a, flat(given[-1])), rtol=1e-12)
    np.testing.assert_allclose(flat(inside), flat(newest), rtol=1e-11)
    np.testing.assert_allclose(flat(outside), np.linalg.solve(a, flat(other)), rtol=1e-12)
    assert jax.tree.map(np.shape, newest) == jax.tree.map(np.shape, LIKE)


def test_gram_is_that_of_the_rows():
    with jax.enable_x64(True):
        window = filled(3, vectors(5))
    rows = np.concatenate([np.reshape(x, (3, -1)) for x in jax.tree.leaves(window.rows)], axis=1)
    np.testing.assert_allclose(window.gram, rows @ rows.T, rtol=1e-14)
    assert window.oldest == 2


def test_sums_over_leaves_by_hand():
    rows = {"a": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([5.0, 6.0])}
    x = {"a": jnp.array([1.0, -1.0]), "b": jnp.array(2.0)}
    assert inner_products(rows, x, jnp.dtype("float32")).tolist() == [9.0, 11.0]
    mixed = combination(rows, jnp.array([1.0, -1.0]))
    assert mixed["a"].tolist() == [-2.0, -2.0] and mixed["b"] == -1.0


def test_a_bfloat16_window_is_exact_for_the_vectors_that_it_holds():
    given = [{"w": x["w"].astype("float32")} for x in vectors(5)]
    window = filled(4, given, dtype=jnp.bfloat16)
    rounded = [jax.tree.map(lambda x: np.float64(x.astype(jnp.bfloat16)), x) for x in given[-4:]]
    expected = np.linalg.solve(dense(rounded, 0.3), flat(rounded[-1]))
    assert window.rows["w"].dtype == jnp.bfloat16 and window.gram.dtype == jnp.float32
    newest = newest_product(window, 0.3)
    assert newest["w"].dtype == jnp.float32
    np.testing.assert_allclose(flat(newest), expected, rtol=1e-5, atol=1e-6)
    # Other vectors are not rounded on the way.
    other = {"w": jnp.asarray(vectors(1, seed=1)[0]["w"], "float32")}
    expected = np.linalg.solve(dense(rounded, 0.3), flat(other))
    np.testing.assert_allclose(flat(inverse_product(window, other, 0.3)), expected, rtol=2e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_vector_without_a_finite_square_is_left_out(bad):
    window = filled(3, [np.ones(2, "float32"), np.arange(2, dtype="float32")])
    after, taken = replace_oldest(window, jnp.array([1.0, bad]))
    assert not taken
    jax.tree.map(np.testing.assert_array_equal, after, window)


# Rounding.


def test_damping_is_raised_only_where_rounding_asks_for_it():
    spread = jnp.diag(jnp.array([1e8, 1.0, 0.0]))
    factor, damping = cholesky(spread, 1e-4)
    assert damping == jnp.float32(1e-4)
    np.testing.assert_allclose(factor @ factor.T, spread + 1e-4 * jnp.eye(3), rtol=1e-6)
    # Equal vectors but for rounding: eigenvalues of -1 beside 3e6.
    noise = np.random.default_rng(0).normal(size=(32, 32))
    gram = jnp.asarray(1e5 + (noise + noise.T) / 8, jnp.float32)
    assert jnp.isnan(jnp.linalg.cholesky(gram + 1e-4 * jnp.eye(32))).any()
    factor, damping = cholesky(gram, 1e-4)
    assert 1e-4 < damping < 1e-3 * 1e5 and jnp.isfinite(factor).all()
    np.testing.assert_allclose(factor @ factor.T, gram + damping * jnp.eye(32), rtol=1e-5)


def test_what_can_not_be_factored_comes_back_as_nan():
    factor, _ = cholesky(jnp.full((2, 2), jnp.nan), 1.0)
    assert jnp.isnan(jnp.diag(factor)).all()


def test_damping_may_be_a_batch():
    window = filled(3, [x["w"].astype("float32") for x in vectors(3)])
    batch = jax.vmap(lambda damping: newest_product(window, damping))(jnp.array([0.1, 2.0]))
    for damping, ours in zip([0.1, 2.0], batch, strict=True):
        np.testing.assert_allclose(ours, newest_product(window, damping), rtol=2e-5)


# A window that stays.


def recursion(rows, damp):
    """Hg_i and denominators as the authors define them, with the sum divided by m."""
    m = len(rows)
    hg, denominators = np.zeros_like(rows), np.zeros(m)
    for i, g in enumerate(rows):
        hg[i] = g / damp - sum((hg[j] @ g) / denominators[j] * hg[j] for j in range(i))
        denominators[i] = m + g @ hg[i]
    return hg, denominators


@pytest.mark.parametrize("block_size", [None, 4, 5, 11])
def test_static_inverse_is_the_authors_recursion_and_the_dense_inverse(block_size):
    """Blocks that divide 10 entries, that do not, and one that is larger."""
    rng = np.random.default_rng(0)
    rows, y, damp = rng.normal(size=(6, 10)), rng.normal(size=10), 0.01
    with jax.enable_x64(True):
        inverse = static_inverse(jnp.asarray(rows), 6 * damp, block_size=block_size)
        product = 6 * static_product(inverse, jnp.asarray(y))
        diagonal = 6 * static_diagonal(inverse)
    for start in range(0, 10, block_size or 10):
        block = slice(start, start + (block_size or 10))
        fisher = damp * np.eye(len(y[block])) + rows[:, block].T @ rows[:, block] / 6
        exact = np.linalg.inv(fisher)
        np.testing.assert_allclose(product[block], exact @ y[block], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(diagonal[block], np.diag(exact), rtol=1e-10)
        hg, denominators = recursion(rows[:, block], damp)
        theirs = 1 / damp - (hg**2 / denominators[:, None]).sum(axis=0)
        np.testing.assert_allclose(diagonal[block], theirs, rtol=1e-10)
    if block_size is None:
        scaled = hg / np.sqrt(denominators)[:, None] * np.sqrt(damp)
        np.testing.assert_allclose(inverse.factor[0], scaled, rtol=1e-10, atol=1e-13)


def test_static_inverse_passes_through_jit():
    rows = jnp.asarray(vectors(1)[0]["w"], "float32")
    inverse = jax.jit(static_inverse, static_argnames="block_size")(rows, 0.5, block_size=2)
    assert inverse.factor.shape == (2, 2, 2) and inverse.size == 3
    assert jax.jit(static_diagonal)(inverse).shape == (3,)


def test_block_size_below_one_is_named():
    with pytest.raises(ValueError, match="static_inverse: block_size is 0; accepted: .*>= 1"):
        static_inverse(jnp.ones((2, 3)), 0.1, block_size=0)
