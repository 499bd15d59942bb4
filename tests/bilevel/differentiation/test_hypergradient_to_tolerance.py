"""Hypergradients to a tolerance: that they keep it, what they spend, and when they give up."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
import optim

from .problems import FEATURES, case, exact


def descend(objective, init, *, tolerance, rate, max_steps=10_000):
    """Gradient descent, one gradient a step."""
    slope = jax.grad(objective)

    def step(carry):
        y, g, evaluations = carry
        y = y - rate * g
        return y, slope(y), evaluations + 1

    def goes_on(carry):
        return (jnp.linalg.norm(carry[1]) > tolerance) & (carry[2] <= max_steps)

    y, _, evaluations = jax.lax.while_loop(goes_on, step, (init, slope(init), jnp.int32(1)))
    return y, types.SimpleNamespace(evaluations=evaluations)


SOLVERS = {
    name: functools.partial(descend, rate=rate)
    for name, rate in {"ridge": 2.0, "logistic": 0.6}.items()
}


def cold(dtype=np.float64):
    return bilevel.ToleranceState(
        jnp.zeros(FEATURES, dtype), jnp.zeros((), dtype), jnp.zeros((), dtype)
    )


@functools.partial(jax.jit, static_argnames=("problem", "name", "max_rounds"))
def call(problem, name, penalties, w, state, batch, tolerance, absolute=0.0, max_rounds=10):
    return bilevel.hypergradient_to_tolerance(
        problem,
        penalties,
        w,
        state,
        batch,
        solver=SOLVERS[name],
        tolerance=tolerance,
        absolute_tolerance=absolute,
        max_rounds=max_rounds,
    )


cached_case = functools.cache(case)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ridge", "logistic"])
def test_the_error_is_within_the_tolerance_and_near_its_estimate(name):
    with jax.enable_x64(True):
        problem, batch, penalties, _ = cached_case(name)
        _, _, wanted = exact(problem, penalties, batch)
        spent = []
        for tolerance in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
            gradient, _, _, info = call(
                problem, name, penalties, jnp.zeros(FEATURES), cold(), batch, tolerance
            )
            error = np.linalg.norm(gradient - wanted)
            assert info.converged and info.rounds <= 3
            assert error <= tolerance * np.linalg.norm(wanted)
            # The parts may have opposite signs, and the estimate's own solves leave 1e-2.
            assert 0.95 * error < info.estimate < 3 * error
            np.testing.assert_allclose(info.estimate, info.inner_part + info.adjoint_part)
            spent.append((int(info.evaluations), int(info.products)))
        print(name, "(evaluations, products) for 1e-2 .. 1e-6:", spent)
        assert sum(spent[-1]) < 3 * sum(spent[0])


def test_only_what_dominates_is_tightened():
    """From the minimiser the inner solver has nothing to do; with its adjoint, y is what is off."""
    with jax.enable_x64(True):
        problem, batch, penalties, _ = cached_case("ridge")
        w, _, wanted = exact(problem, penalties, batch)
        loose = cold()._replace(inner_tolerance=jnp.array(1e-12), adjoint_tolerance=jnp.array(1.0))
        gradient, w_end, state, info = call(problem, "ridge", penalties, w, loose, batch, 1e-4)
        assert info.converged and info.rounds == 2 and info.evaluations == 2 * info.rounds
        np.testing.assert_allclose(w_end, w, rtol=1e-13)  # Newton's step may move an ulp
        # What is returned belongs together.
        report = info.hypergradient
        again, _, same = bilevel.hypergradient(
            problem, penalties, w_end, batch=batch, solve=lambda *_, **__: (state.v, report.solve)
        )
        np.testing.assert_allclose(again, gradient, rtol=1e-12)
        np.testing.assert_allclose(same.adjoint_residual, report.adjoint_residual, atol=1e-15)
        tight = bilevel.ToleranceState(state.v, jnp.array(1.0), jnp.array(1e-2))
        gradient, _, _, info = call(problem, "ridge", penalties, w + 0.1, tight, batch, 1e-4)
        assert info.converged and info.rounds == 2
        assert np.linalg.norm(gradient - wanted) <= 1e-4 * np.linalg.norm(wanted)


def test_a_warm_start_spends_less_along_an_outer_descent():
    with jax.enable_x64(True):
        problem, batch, penalties, _ = cached_case("logistic")
        x, w, state = penalties, jnp.zeros(FEATURES), cold()
        for step in range(5):
            wanted = exact(problem, x, batch)[2]
            warm, now = (
                call(problem, "logistic", x, *start, batch, 1e-3)
                for start in ((w, state), (jnp.zeros(FEATURES), cold()))
            )
            gradient, w, state, info = warm
            assert info.converged
            assert np.linalg.norm(gradient - wanted) <= 1e-3 * np.linalg.norm(wanted)
            spent, anew = (i.evaluations + i.products for i in (info, now[3]))
            assert step == 0 or spent < 0.8 * anew
            x = x - gradient
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, cold())


@pytest.mark.slow
def test_an_absolute_tolerance_alone():
    with jax.enable_x64(True):
        problem, batch, penalties, _ = cached_case("ridge")
        wanted = exact(problem, penalties, batch)[2]
        gradient, *_, info = call(
            problem, "ridge", penalties, jnp.zeros(FEATURES), cold(), batch, 0.0, 1e-7
        )
        assert info.converged and info.estimate <= 1e-7
        assert 1e-12 < np.linalg.norm(gradient - wanted) <= 1e-7


@pytest.mark.slow
def test_what_cannot_be_reached_is_not_claimed():
    """At rounding the residuals no longer fall, and it stops; as it does where rounds run out."""
    problem, batch, penalties, _ = cached_case("ridge")
    args = (problem, "ridge", *jax.tree.map(jnp.float32, (penalties, np.zeros(FEATURES))))
    batch = jax.tree.map(jnp.float32, batch)
    *_, info = call(*args, cold(np.float32), batch, 1e-12)
    assert not info.converged and info.rounds < 10 and info.estimate.dtype == jnp.float32
    wanted = 1e-3
    *_, info = call(*args, cold(np.float32), batch, wanted, max_rounds=1)
    assert not info.converged and info.rounds == 1
    *_, info = call(*args, cold(np.float32), batch, wanted)
    assert info.converged and info.rounds == 2


@pytest.mark.slow
def test_an_estimate_whose_solves_failed_certifies_nothing():
    with jax.enable_x64(True):
        curvatures = jnp.geomspace(1.0, 100.0, 10)
        problem = bilevel.BilevelProblem(
            outer=lambda x, y, batch: jnp.sum(y),
            inner=lambda x, y, batch: jnp.sum(curvatures * y**2) / 2 - x @ y,
        )
        x = jnp.ones(10)

        def info(max_steps):
            return bilevel.hypergradient_to_tolerance(
                problem,
                x,
                x / curvatures * 1.01,
                solver=lambda objective, init, *, tolerance: (
                    init,
                    types.SimpleNamespace(evaluations=0),
                ),
                tolerance=0.5,
                solve=functools.partial(optim.cg, max_steps=max_steps),
            )[3]

        assert info(100).converged and not info(1).converged


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": 1j}, r"hypergradient_to_tolerance: x is of complex64; accepted: real floats\."),
        ({"y": 1}, r"hypergradient_to_tolerance: y is of int32; accepted: real floats\."),
        (
            {"tolerance": -1.0},
            r"hypergradient_to_tolerance: tolerance is -1\.0; accepted: tolerance >= 0\.",
        ),
        (
            {"max_rounds": 0},
            r"hypergradient_to_tolerance: max_rounds is 0; accepted: max_rounds >= 1\.",
        ),
    ],
)
def test_errors_name_the_argument_the_value_and_what_is_accepted(changed, message):
    problem = bilevel.BilevelProblem(lambda x, y, batch: y, lambda x, y, batch: (y - x) ** 2)
    given = {"x": 1.0, "y": 1.0, "solver": descend} | changed
    with pytest.raises(ValueError, match=message):
        bilevel.hypergradient_to_tolerance(problem, **given)
