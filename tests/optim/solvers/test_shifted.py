"""Shifted solves against NumPy's, each way, in other norms, and what is no descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim

N = 5
SHIFTS = (0.25, 3.0)


def problem(seed=0):
    """A positive definite H and B, a vector v, and a right-hand side."""
    rng = np.random.default_rng(seed)
    h, b = (x @ x.T + np.eye(N) for x in rng.normal(size=(2, N, N)))
    return h, b, rng.normal(size=N), rng.normal(size=N)


def metric(b):
    return optim.Metric(lambda x: jnp.asarray(b) @ x, lambda g: jnp.linalg.solve(jnp.asarray(b), g))


def conjugate_gradients(matvec, b, *, preconditioner=None):
    m = preconditioner
    return jax.scipy.sparse.linalg.cg(matvec, b, tol=1e-14, M=m)


@pytest.mark.parametrize("euclidean", [True, False])
@pytest.mark.parametrize("way", ["matrix", "products", "rank one", "solver"])
def test_each_way_solves(way, euclidean):
    h, b, v, rhs = problem()
    norm = np.eye(N) if euclidean else b
    with jax.enable_x64(True):
        given = {
            "matrix": (optim.shifted_dense, jnp.asarray(h)),
            "products": (optim.shifted_dense, lambda x: jnp.asarray(h) @ x),
            "rank one": (optim.shifted_rank_one, optim.RankOne(2.0, jnp.asarray(v))),
            "solver": (optim.shifted_by(conjugate_gradients), lambda x: jnp.asarray(h) @ x),
        }
        prepare, curvature = given[way]
        solve = prepare(curvature, jnp.asarray(rhs), None if euclidean else metric(b))
        matrix = 2.0 * np.outer(v, v) if way == "rank one" else h
        for shift in SHIFTS:
            expected = np.linalg.solve(matrix + shift * norm, rhs)
            np.testing.assert_allclose(solve(jnp.float64(shift)), expected, rtol=1e-9)


def test_a_diagonal_is_divided_by():
    solve = optim.shifted_diagonal({"a": jnp.array([1.0, 3.0])}, {"a": jnp.array([4.0, 2.0])})
    assert solve(1.0)["a"].tolist() == [2.0, 0.5]
    with pytest.raises(ValueError, match="shifted_diagonal: metric is given; accepted: None"):
        optim.shifted_diagonal(jnp.ones(5), jnp.ones(5), metric(np.eye(5)))


def test_trees_of_two_dtypes_keep_them():
    """H couples the leaves: v -> the sum of all numbers, in each."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        b = {"a": jnp.ones((2, 2), jnp.float32), "b": jnp.float64(3.0)}

        def ones(v):
            total = v["a"].astype(jnp.float64).sum() + v["b"]
            return jax.tree.map(lambda x: jnp.full(x.shape, total, x.dtype), v)

        rank_one = optim.RankOne(1.0, jax.tree.map(jnp.ones_like, b))
        for solve in (optim.shifted_dense(ones, b), optim.shifted_rank_one(rank_one, b)):
            x = solve(jnp.float64(2.0))
            # The sum s of x satisfies 2 s + 5 s = 7.
            np.testing.assert_allclose(x["a"], 0.0, atol=1e-7)
            np.testing.assert_allclose(x["b"], 1.0, rtol=1e-7)
            assert x["a"].dtype == jnp.float32 and x["b"].dtype == jnp.float64


def test_what_is_not_positive_definite_answers_nan():
    solve = optim.shifted_dense(jnp.diag(jnp.array([-1.0, 2.0])), jnp.ones(2))
    assert np.isnan(solve(0.5)).all()
    np.testing.assert_allclose(solve(2.0), np.array([1.0, 0.25]), rtol=1e-6)


def test_a_matrix_of_the_wrong_size_is_named():
    with pytest.raises(ValueError, match=r"shifted_dense: curvature has shape \(3, 3\); accepted"):
        optim.shifted_dense(jnp.eye(3), {"a": jnp.ones(2), "b": jnp.ones(3)})
