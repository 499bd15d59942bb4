"""Mirror descent against closed forms, projected gradient and the support vector machine's dual."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest

import bilevel
from tests.bilevel.solutions import assert_solution, direct

from .first_order import SIMPLEX_Y, X, least_squares, on_the_simplex, simplex_residual, svm_dual

EUCLIDEAN = {"projection_fn": optax.projections.projection_simplex}


@pytest.mark.parametrize("geometry", [{}, EUCLIDEAN], ids=["entropy", "euclidean"])
def test_least_squares_on_the_simplex_where_one_weight_is_zero(geometry):
    def attached(x, y):
        return bilevel.mirror_descent(
            lambda w: least_squares(w, x, y),
            jnp.ones(4) / 4,
            step=0.5,
            tolerance=1e-11,
            max_steps=20000,
            solve=direct,
            **geometry,
        )[0]

    assert_solution(attached, on_the_simplex, X, SIMPLEX_Y)


@pytest.mark.slow
def test_the_dual_of_the_multiclass_support_vector_machine():
    """jaxopt's problem: by entropy, Euclid and jaxopt the same, with a small duality gap."""
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(random.normal(size=(10, 5)))
        y = jax.nn.one_hot(random.integers(3, size=10), 3)
        start = jnp.full((10, 3), 1 / 3)

        def dual(beta):
            return svm_dual(beta, 10.0, x, y)

        found, info = jax.jit(
            lambda: bilevel.mirror_descent(dual, start, step=1.0, tolerance=1e-8, max_steps=5000)
        )()
        assert info.converged and simplex_residual(dual, found) < 1e-6
        solver = jaxopt.MirrorDescent(
            dual,
            jaxopt.MirrorDescent.make_projection_grad(
                lambda z, _: jax.nn.softmax(z, axis=-1), jnp.log
            ),
            stepsize=1.0,
            tol=1e-8,
            maxiter=5000,
        )
        np.testing.assert_allclose(found, solver.run(start).params, atol=1e-6)
        euclidean, _ = bilevel.projected_gradient(
            dual,
            start,
            projection_fn=jax.vmap(optax.projections.projection_simplex),
            tolerance=1e-8,
        )
        # The dual is not strictly convex: its value is unique, and x'beta.
        np.testing.assert_allclose(dual(found), dual(euclidean), rtol=1e-8)
        np.testing.assert_allclose(x.T @ found, x.T @ euclidean, atol=1e-5)


@pytest.mark.slow
def test_a_schedule_and_a_tree():
    c = {"a": jnp.array([1.0, 0.0, -1.0]), "b": jnp.zeros((2, 2))}

    def run(c):
        def objective(x):
            terms = jax.tree.map(lambda x, c: jnp.sum(x * jnp.log(x) - c * x), x, c)
            return terms["a"] + terms["b"]

        start = jax.tree.map(lambda c: jnp.full(c.shape, 1 / c.shape[-1]), c)
        return bilevel.mirror_descent(
            objective, start, step=lambda count: 1 / jnp.sqrt(count + 1), tolerance=1e-5
        )

    x, info = jax.jit(run)(c)
    np.testing.assert_allclose(x["a"], jax.nn.softmax(c["a"]), atol=1e-5)
    assert (x["b"] == 0.5).all() and info.converged and x["a"].dtype == jnp.float32
    slope = jax.jit(jax.grad(lambda c: run(c)[0]["a"][0]))(c)["a"]
    np.testing.assert_allclose(slope, jax.jacobian(jax.nn.softmax)(c["a"])[0], atol=1e-4)


def test_a_batch_counts_for_each_member_and_what_did_not_converge_is_told():
    def run(c, **options):
        return bilevel.mirror_descent(
            lambda x: jnp.sum((x - c) ** 2), jnp.ones(2) / 2, step=0.2, **options
        )

    cs = jnp.array([[0.5, 0.5], [0.6, 0.4], [0.9, 0.1]])
    x, infos = jax.jit(jax.vmap(run))(cs)
    np.testing.assert_allclose(x, cs, atol=2e-2)
    assert list(infos.evaluations) == sorted({int(n) for n in infos.evaluations})
    assert infos.evaluations[0] == 1 and infos.evaluations[2] == jax.jit(run)(cs[2])[1].evaluations
    with pytest.warns(bilevel.NotConvergedWarning, match="mirror_descent: stopped at"):
        info = run(cs[2], max_steps=2)[1]
    assert info.iterations == 2 and not info.converged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": -1.0}, r"mirror_descent: step is -1\.0; accepted: step > 0\."),
        ({"step": 1.0, "tolerance": -1.0}, r"mirror_descent: tolerance is -1\.0; accepted: "),
        ({"step": 1.0, "mapping_fn": jnp.log}, r"projection_fn is None with the mapping_fn"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        bilevel.mirror_descent(lambda x: jnp.sum(x**2), jnp.ones(2), **options)
