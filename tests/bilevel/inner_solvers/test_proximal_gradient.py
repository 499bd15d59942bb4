"""Proximal and projected gradient against closed forms, jaxopt and their own promises."""

import functools

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest
from sklearn import datasets

import bilevel
from tests.bilevel.solutions import assert_solution, direct

from .first_order import (
    SIMPLEX_Y,
    STRENGTHS,
    X,
    elastic_net,
    elastic_net_target,
    least_squares,
    on_the_simplex,
)

TIGHT = {"tolerance": 1e-12, "max_steps": 5000, "solve": direct}
simplex = optax.projections.projection_simplex


def solved_elastic_net(strengths, x, y, **options):
    return bilevel.proximal_gradient(
        lambda w: least_squares(w, x, y),
        jnp.zeros(4, x.dtype),
        prox_fn=lambda w, s: bilevel.prox_elastic_net(w, tuple(strengths), s),
        **options,
    )


@pytest.mark.parametrize(
    "options", [{}, {"step": 0.4}, {"step": 0.4, "accelerate": False}], ids=str
)
def test_the_elastic_net_has_the_value_and_derivatives_of_its_closed_form(options):
    def attached(*arguments):
        return solved_elastic_net(*arguments, **options, **TIGHT)[0]

    arguments = (STRENGTHS, X, elastic_net_target())
    assert_solution(attached, elastic_net, *arguments, twice=not options)


def test_least_squares_on_the_simplex():
    def attached(x, y):
        return bilevel.projected_gradient(
            lambda w: least_squares(w, x, y), jnp.ones(4) / 4, projection_fn=simplex, **TIGHT
        )[0]

    assert_solution(attached, on_the_simplex, X, SIMPLEX_Y)


@pytest.mark.slow
def test_the_default_solve_is_as_exact_as_its_tolerance_in_float32():
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(elastic_net_target(), jnp.float32)
    strengths, moved = jnp.asarray(STRENGTHS, jnp.float32), jnp.array([1.0, 0.5])

    def pushed(function):
        return jax.jvp(lambda strengths: function(strengths, x, y), (strengths,), (moved,))[1]

    found = jax.jit(lambda: pushed(lambda *a: solved_elastic_net(*a, tolerance=1e-5)[0]))()
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, pushed(elastic_net), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_lasso_on_jaxopts_problem_and_a_residual_where_its_line_search_stalls():
    x, y = datasets.make_regression(n_samples=100, n_features=20, random_state=0)
    with jax.enable_x64(True):
        x, y = jnp.asarray(x), jnp.asarray(y)

        def prox(w, s):
            return bilevel.prox_lasso(w, 10.0, s)

        def objective(w):
            return least_squares(w, x, y)

        w, info = jax.jit(
            lambda: bilevel.proximal_gradient(
                objective, jnp.zeros(20), prox_fn=prox, tolerance=1e-11, max_steps=100
            )
        )()
        assert info.converged and info.iterations < 60
        residual = jnp.linalg.norm(w - prox(w - jax.grad(objective)(w), 1.0))
        np.testing.assert_allclose(residual, info.residual, rtol=1e-2, atol=1e-13)
        solver = jaxopt.ProximalGradient(objective, jaxopt.prox.prox_lasso, tol=1e-11, maxiter=200)
        theirs = solver.run(jnp.zeros(20), hyperparams_prox=10.0)
        np.testing.assert_allclose(w, theirs.params, atol=1e-6)
        assert theirs.state.error > 1e-9


def test_momentum_and_its_restart_take_fewer_steps():
    """A quadratic of condition 1e4, which plain descent needs some 1e4 steps for."""
    scales = jnp.geomspace(1e-4, 1.0, 30)

    @functools.partial(jax.jit, static_argnames="accelerate")
    def steps(accelerate):
        info = bilevel.projected_gradient(
            lambda x: jnp.sum(scales * x**2) / 2,
            jnp.ones(30),
            projection_fn=lambda x: x,
            step=1.0,
            accelerate=accelerate,
            tolerance=1e-6,
            max_steps=50000,
        )[1]
        return info.iterations, info.converged

    fast, slow = steps(True), steps(False)
    assert fast[1] and slow[1] and fast[0] * 10 < slow[0]


@pytest.mark.slow
def test_logistic_regression_and_non_negative_least_squares_are_at_their_conditions():
    x, labels = datasets.make_classification(
        n_samples=30, n_features=5, n_informative=3, n_classes=3, random_state=0
    )
    with jax.enable_x64(True):
        x, labels = jnp.asarray(x), jnp.asarray(labels)

        def logistic(p):
            scores = x @ p["w"] + p["b"]
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels))

        def prox(p, s):
            return {"w": bilevel.prox_lasso(p["w"], 0.05, s), "b": p["b"]}

        init = {"w": jnp.zeros((5, 3)), "b": jnp.zeros(3)}
        p, info = bilevel.proximal_gradient(logistic, init, prox_fn=prox, tolerance=1e-9)
        g = jax.grad(logistic)(p)
        assert info.converged and abs(g["b"]).max() < 1e-8
        zero = p["w"] == 0
        assert zero.any() and (abs(g["w"])[zero] < 0.05).all()
        at = jnp.where(zero, 0, g["w"] + 0.05 * jnp.sign(p["w"]))
        np.testing.assert_allclose(at, 0, atol=1e-8)

        y = x @ jnp.array([1.0, -1.0, 0.5, 0.0, 2.0])
        w, info = bilevel.projected_gradient(
            lambda w: least_squares(w, x, y),
            jnp.ones(5),
            projection_fn=optax.projections.projection_non_negative,
            tolerance=1e-10,
        )
        g = jax.grad(least_squares)(w, x, y)
        assert info.converged and (w >= 0).all() and (g > -1e-9).all() and abs(w @ g) < 1e-8


def test_members_of_a_batch_are_what_they_are_alone():
    with jax.enable_x64(True):
        x, y = jnp.asarray(X), jnp.asarray(elastic_net_target())
        strengths = jnp.array([[0.4, 0.5], [0.01, 0.0], [9.0, 0.1]])

        def run(strengths):
            return solved_elastic_net(strengths, x, y)

        w, infos = jax.jit(jax.vmap(run))(strengths)
        assert infos.converged.all() and len({int(n) for n in infos.evaluations}) == 3
        run = jax.jit(run)
        for i, strength in enumerate(strengths):
            alone, info = run(strength)
            np.testing.assert_allclose(w[i], alone, rtol=1e-9)
            assert info.iterations == infos.iterations[i]
            assert info.evaluations == infos.evaluations[i]


@pytest.mark.parametrize("options", [{}, {"step": 0.4}], ids=str)
def test_bfloat16_keeps_its_dtype_through_a_projection_that_does_not(options):
    c = jnp.array([0.5, 0.25, 0.25, -0.25], jnp.bfloat16)
    x, info = bilevel.projected_gradient(
        lambda x: jnp.sum((x - c) ** 2),
        jnp.ones(4, jnp.bfloat16) / 4,
        projection_fn=lambda x: jax.nn.relu(x.astype(jnp.float32)),
        tolerance=3e-2,
        **options,
    )
    assert x.dtype == jnp.bfloat16 and info.converged
    np.testing.assert_allclose(x.astype(jnp.float32), [0.5, 0.25, 0.25, 0], atol=2e-2)


def test_what_did_not_converge_is_told_and_is_still_in_the_set():
    def run():
        return bilevel.projected_gradient(
            lambda w: 1e3 * least_squares(w, X, SIMPLEX_Y),
            jnp.ones(4) / 4,
            projection_fn=simplex,
            max_steps=7,
            tolerance=1e-6,
        )

    with pytest.warns(bilevel.NotConvergedWarning, match="projected_gradient: stopped at"):
        w, info = run()
    assert not info.converged and info.iterations == 7
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-5)
    assert (w >= 0).all()


def test_at_the_solution_one_gradient_is_enough_and_a_nan_stops():
    def run(c):
        return bilevel.projected_gradient(
            lambda x: jnp.sum((x - c) ** 2), jnp.ones(2), projection_fn=lambda x: x
        )

    x, info = run(1.0)
    assert (x == 1).all() and info.iterations == 1 and info.residual == 0
    info = jax.jit(run)(jnp.nan)[1]
    assert info.iterations == 1 and not info.converged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.0}, r"proximal_gradient: step is 0\.0; accepted: step > 0\."),
        ({"tolerance": -1.0}, r"proximal_gradient: tolerance is -1\.0; accepted: tolerance >= 0\."),
        ({"max_steps": 0}, r"proximal_gradient: max_steps is 0; accepted: max_steps >= 1\."),
        ({"on_failure": "stop"}, r"on_failure is 'stop'; accepted: ignore, "),
        (
            {"prox_fn": lambda x, s: (x,)},
            r"proximal_gradient: prox_fn gives PyTreeDef",
        ),
        ({"init": jnp.arange(2)}, r"proximal_gradient: init is of int32; accepted: real floats\."),
    ],
)
def test_errors(options, message):
    arguments = {"init": jnp.ones(2), "prox_fn": lambda x, s: x, **options}
    with pytest.raises(ValueError, match=message):
        bilevel.proximal_gradient(lambda x: jnp.sum(x**2), **arguments)
