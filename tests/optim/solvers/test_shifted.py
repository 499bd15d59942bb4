"""Shifted solves against NumPy's, each way, in other norms, and what is no descent."""

import functools

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


CG = functools.partial(optim.cg, tolerance=1e-13)


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
            "solver": (optim.shifted_by(CG), lambda x: jnp.asarray(h) @ x),
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


@pytest.mark.slow
def test_trees_of_two_dtypes_keep_them():
    """H couples the leaves: v -> the sum of all numbers, in each."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        b = {"a": jnp.ones((2, 2), jnp.float32), "b": jnp.float64(3.0)}

        def ones(v):
            total = v["a"].astype(jnp.float64).sum() + v["b"]
            return jax.tree.map(lambda x: jnp.full(x.shape, total, x.dtype), v)

        rank_one = optim.RankOne(1.0, jax.tree.map(jnp.ones_like, b))
        ways = (
            optim.shifted_dense(ones, b),
            optim.shifted_rank_one(rank_one, b),
            optim.shifted_by(CG)(ones, b),
        )
        for solve in ways:
            x = solve(jnp.float64(2.0))
            # The sum s of x satisfies 2 s + 5 s = 7.
            np.testing.assert_allclose(x["a"], 0.0, atol=1e-7)
            np.testing.assert_allclose(x["b"], 1.0, rtol=1e-7)
            assert x["a"].dtype == jnp.float32 and x["b"].dtype == jnp.float64


def test_what_is_not_positive_definite_answers_nan():
    solve = optim.shifted_dense(jnp.diag(jnp.array([-1.0, 2.0])), jnp.ones(2))
    assert np.isnan(solve(0.5)).all()
    np.testing.assert_allclose(solve(2.0), np.array([1.0, 0.25]), rtol=1e-6)


@pytest.mark.slow
def test_bfloat16_is_widened_and_comes_back():
    """x = (H + 1)^-1 b = 5 / 4, of which bfloat16 has all digits, as it has not of v'v = 257."""
    b = jnp.full(257, 1.25, jnp.bfloat16)
    ones = jnp.ones_like(b)
    given = {
        optim.shifted_dense: 0 * jnp.eye(257),
        optim.shifted_diagonal: 0 * ones,
        optim.shifted_by(CG): lambda v: 0 * v,
    }
    with jax.numpy_dtype_promotion("strict"):
        for way, curvature in given.items():
            x = way(curvature, b)(jnp.float32(1.0))
            assert x.dtype == jnp.bfloat16 and set(x.tolist()) == {1.25}
        x = optim.shifted_rank_one(optim.RankOne(1.0, ones), b)(jnp.float32(1.0))
        # 1.25 (1 - 257 / 258), where a sum in bfloat16, 256, gives more than twice as much.
        assert x.dtype == jnp.bfloat16
        np.testing.assert_allclose(x.astype(jnp.float32), 1.25 / 258, rtol=2**-8)


def test_numbers_have_to_be_floats():
    for way, name in ((optim.shifted_dense, "dense"), (optim.shifted_diagonal, "diagonal")):
        with pytest.raises(ValueError, match=f"shifted_{name}: b is of int32; accepted: real"):
            way(jnp.eye(2), jnp.arange(2))
    with pytest.raises(ValueError, match="shifted_rank_one: b is of int32; accepted: real floats"):
        optim.shifted_rank_one(optim.RankOne(1.0, jnp.ones(2)), jnp.arange(2))


def test_a_matrix_of_the_wrong_size_is_named():
    with pytest.raises(ValueError, match=r"shifted_dense: curvature has shape \(3, 3\); accepted"):
        optim.shifted_dense(jnp.eye(3), {"a": jnp.ones(2), "b": jnp.ones(3)})
