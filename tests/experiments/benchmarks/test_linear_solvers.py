"""The table's counts and verdicts, taken from outside, are those that the solvers report."""

import jax
import numpy as np
import pytest

import optim
from experiments.benchmarks import linear_solvers

ROWS = 24


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def findings(problem, solver):
    return linear_solvers.candidate(problem, solver).findings


@pytest.mark.parametrize("kind", linear_solvers.BY_KIND)
@pytest.mark.parametrize("condition", [1e1, 1e6])
def test_the_matrices_have_their_condition_number_and_kind(kind, condition):
    a = linear_solvers.matrix(kind, condition, ROWS)
    values = np.linalg.svd(a, compute_uv=False)
    np.testing.assert_allclose([values[0], values[-1]], [1, 1 / condition], rtol=1e-8)
    symmetric = np.allclose(a, a.T, atol=1e-12)
    assert symmetric == (kind != "nonsymmetric")
    if symmetric:
        assert (np.linalg.eigvalsh(a).min() > 0) == (kind == "spd")
    else:
        assert np.linalg.eigvals(a).real.min() > 0


@pytest.mark.parametrize("name", ["cg", "minres", "gmres", "bicgstab", "normal_cg"])
def test_products_counted_from_outside_are_those_reported(name):
    p = linear_solvers.problem(linear_solvers.matrix("spd", 1e2, ROWS))
    reported = []

    def kept(matvec, b, **asked):
        x, info = getattr(optim, name)(matvec, b, **asked)
        jax.debug.callback(reported.append, info.products)
        return x, info

    _, products = linear_solvers.counted(p, linear_solvers.ours(kept), name == "normal_cg")
    assert products == int(reported[0]) > 5
    solvers = {k: v for kind in linear_solvers.BY_KIND.values() for k, v in kind.items()}
    found = findings(p, solvers[name])
    assert found["products"] == products
    assert found["residual"] <= p.tolerance


def test_a_start_at_the_solution_costs_one_product():
    p, solvers = linear_solvers.edges(ROWS)["from the solution"]
    for name in ("cg", "minres", "bicgstab", "normal_cg", "gmres"):
        found = findings(p, solvers[name])
        assert (found["products"], found["steps"], found["says"]) == (1, 0, "solved"), name


@pytest.mark.parametrize(
    ("group", "says"),
    [
        ("indefinite", "not solved"),
        ("singular, b outside", "not solved"),
        ("singular, b inside", "solved"),
    ],
)
def test_conjugate_gradients_say_where_they_have_no_business(group, says):
    p, solvers = linear_solvers.edges(ROWS)[group]
    found = findings(p, solvers["cg"])
    assert found["says"] == says
    assert (found["residual"] <= p.tolerance) == (says == "solved")
    assert found["products"] < 100


@pytest.mark.parametrize("group", ["20 large", "badly scaled"])
def test_preconditioners_save_steps(group):
    p, solvers = linear_solvers.edges(ROWS)[group]
    without, preconditioned = (findings(p, solver) for solver in solvers.values())
    assert without["says"] == preconditioned["says"] == "solved"
    assert 2 * preconditioned["steps"] < 1.2 * without["steps"]
