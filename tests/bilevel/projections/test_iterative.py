"""Projections that iterate: transport plans, doubly stochastic matrices, polyhedra."""

import functools

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest

import bilevel

FORMS = {"euclidean": bilevel.projection_transport, "entropic": bilevel.projection_transport_kl}
JITTED = {name: jax.jit(form) for name, form in FORMS.items()}
by_form = pytest.mark.parametrize("form", FORMS)
polyhedron = jax.jit(bilevel.projection_polyhedron)


def problem(m, n, size, seed=0):
    random = np.random.default_rng(seed)
    a, b = random.random(m), random.random(n)
    return size * random.normal(size=(m, n)), a / a.sum(), b / b.sum()


def assert_optimal(form, p, s, a, b, within):
    """Sums are right, and P - S or log P - S is f 1' + 1 g' where P > 0, and no less elsewhere."""
    np.testing.assert_allclose(p.sum(1), a, atol=within * a.max())
    np.testing.assert_allclose(p.sum(0), b, atol=within * a.max())
    assert (p >= 0).all()
    # A path of positive entries leads from each row to each column: f and g by least squares.
    rows, columns = np.nonzero(p)
    m, n = p.shape
    design = np.zeros((len(rows), m + n))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), m + columns] = 1
    gap = (p if form == "euclidean" else np.log(np.where(p > 0, p, 1))) - s
    f_g = np.linalg.lstsq(design, gap[rows, columns], rcond=None)[0]
    slack = gap - f_g[:m, None] - f_g[m:]
    allowed = within * (1 + np.abs(s).max())
    np.testing.assert_allclose(slack[rows, columns], 0, atol=allowed)
    if form == "euclidean":
        assert np.linalg.matrix_rank(design) == m + n - 1  # else slack proves nothing
        assert (slack >= -allowed).all()


@by_form
@pytest.mark.parametrize("size", [0.1, 10.0, 1000.0])
def test_plans_meet_their_conditions_to_float64_however_large_s_is(form, size):
    s, a, b = problem(5, 7, size)
    with jax.enable_x64(True):
        p = np.asarray(JITTED[form](s, a, b))
    assert_optimal(form, p, s, a, b, 1e-12)


@by_form
def test_plans_in_float32_have_their_sums_where_potentials_are_in_the_thousands(form):
    s, a, b = (np.float32(v) for v in problem(5, 7, 1000.0))
    p = np.asarray(JITTED[form](s, a, b))
    np.testing.assert_allclose(p.sum(1), a, atol=2e-5 * a.max())
    np.testing.assert_allclose(p.sum(0), b, atol=2e-5 * a.max())


@pytest.mark.slow
@by_form
def test_larger_plans_in_few_steps(form):
    """Sinkhorn's iteration alone would take thousands, at this strength of entropy."""
    s, a, b = problem(60, 80, 10.0)
    with jax.enable_x64(True):
        p = np.asarray(FORMS[form](s, a, b, max_steps=150))
    assert_optimal(form, p, s, a, b, 1e-12)


@pytest.mark.slow
def test_plans_are_jaxopts_as_far_as_that_is_exact():
    """Its test's problem. It stops at 1e-3."""
    random = np.random.RandomState(0)
    s, a, b = (jnp.asarray(random.rand(*shape), jnp.float32) for shape in ((5, 6), (5,), (6,)))
    a, b = a / a.sum(), b / b.sum()
    peers = jaxopt.projection.projection_transport, jaxopt.projection.kl_projection_transport
    for form, peer in zip(FORMS, peers, strict=True):
        np.testing.assert_allclose(JITTED[form](s, a, b), peer(s, (a, b)), atol=2e-3)


def test_entropic_plan_is_sinkhorns():
    s, a, b = problem(4, 5, 1.0)
    kernel, g = np.exp(s), np.ones(5)
    for _ in range(500):
        f = a / (kernel @ g)
        g = b / (kernel.T @ f)
    with jax.enable_x64(True):
        found = JITTED["entropic"](s, a, b)
    np.testing.assert_allclose(found, f[:, None] * kernel * g, atol=1e-13)


@by_form
def test_what_there_is_no_plan_for_is_nan(form):
    project = JITTED[form]
    s, ones = jnp.zeros((2, 2)), jnp.ones(2)
    for a in (jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0])):
        assert jnp.isnan(project(s, a, ones)).all()


@by_form
def test_too_few_steps_are_nan(form):
    s, a, b = (jnp.asarray(v, jnp.float32) for v in problem(5, 7, 10.0))
    assert jnp.isnan(FORMS[form](s, a, b, max_steps=1)).all()
    assert jnp.isfinite(FORMS[form](s, a, b, max_steps=100)).all()
    with pytest.raises(ValueError, match=r"max_steps is 0; accepted: max_steps >= 1"):
        FORMS[form](s, a, b, max_steps=0)
    with pytest.raises(ValueError, match=r"tolerance is -1; accepted: tolerance >= 0"):
        FORMS[form](s, a, b, tolerance=-1)


@pytest.mark.slow
@by_form
def test_zero_sums_are_zero_rows_and_derivatives_stay_finite(form):
    s = jnp.array([[1.0, 0.0, 0.3], [0.2, 0.4, 0.1]])
    a, b = jnp.array([1.0, 0.0]), jnp.array([0.25, 0.75, 0.0])
    np.testing.assert_allclose(JITTED[form](s, a, b), [[0.25, 0.75, 0], [0, 0, 0]], atol=1e-6)
    slopes = jax.jit(jax.jacrev(FORMS[form], (0, 1, 2)))(s, a, b)
    assert all(jnp.isfinite(slope).all() for slope in slopes)


def test_what_may_not_be_sent_is_not():
    s = jnp.array([[0.0, -jnp.inf], [1.0, 2.0]])
    found = JITTED["entropic"](s, jnp.array([0.5, 1.5]), jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(found, [[0.5, 0], [0.5, 1]], atol=1e-6)


def test_birkhoff_by_hand():
    """Its entropic form is that of transport with ones; jaxopt's test has the first matrix."""
    x = jnp.array([[0.6, 0.4], [0.4, 0.6]])
    np.testing.assert_allclose(bilevel.projection_birkhoff(x), x, atol=1e-7)
    # In two dimensions P is p on the diagonal, with p from a line.
    x = jnp.array([[0.9, 0.1], [0.5, 0.3]])
    p = (0.9 + 0.3 - 0.1 - 0.5 + 2) / 4
    np.testing.assert_allclose(bilevel.projection_birkhoff(x), [[p, 1 - p], [1 - p, p]], atol=1e-6)
    # Far away, it is the best permutation.
    found = bilevel.projection_birkhoff(1e4 * jnp.array([[1.0, 3.0, 0], [2.0, 9.0, 1], [5, 6, 0]]))
    np.testing.assert_allclose(found, jnp.eye(3)[jnp.array([2, 1, 0])], atol=1e-5)
    with pytest.raises(ValueError, match=r"x has the shape \[2, 3\]; accepted: \[2, 2\]"):
        bilevel.projection_birkhoff(jnp.ones((2, 3)))


def test_polyhedron_meets_its_conditions_where_many_constraints_are_active():
    """x - y = A' nu + G' mu with mu >= 0 and mu (h - G y) = 0, by non-negative least squares."""
    random = np.random.default_rng(0)
    x, a, g = (random.normal(size=s) for s in (8, (2, 8), (20, 8)))
    b, h = a @ np.ones(8), g @ np.ones(8) + 0.3 * random.random(20)
    with jax.enable_x64(True):
        y = np.asarray(polyhedron(5 * x, a, b, g, h))
    np.testing.assert_allclose(a @ y, b, atol=1e-12)
    slack = h - g @ y
    active = slack < 1e-10
    assert slack.min() > -1e-12 and active.sum() >= 4
    rows = np.concatenate([a, g[active]])
    multipliers, *_ = np.linalg.lstsq(rows.T, 5 * x - y, rcond=None)
    np.testing.assert_allclose(rows.T @ multipliers, 5 * x - y, atol=1e-11)
    assert (multipliers[2:] > 0).all()


@pytest.mark.slow
def test_polyhedron_that_is_a_box_a_simplex_or_everything():
    x = jnp.array([2.0, -1.0, 0.3])
    eye, none = jnp.eye(3), (jnp.zeros((0, 3)), jnp.zeros(0))
    # Each bound twice, so that the constraints depend on each other.
    g = jnp.concatenate([eye, -eye, 2 * eye, -eye])
    h = jnp.concatenate([jnp.ones(3), jnp.zeros(3), 2 * jnp.ones(3), jnp.zeros(3)])
    np.testing.assert_allclose(polyhedron(x, *none, g, h), jnp.clip(x, 0, 1), atol=1e-6)
    found = polyhedron(x, jnp.ones((1, 3)), jnp.ones(1), -eye, jnp.zeros(3))
    np.testing.assert_allclose(found, optax.projections.projection_simplex(x), atol=1e-6)
    assert (bilevel.projection_polyhedron(x, *none, *none) == x).all()


def test_polyhedron_without_points_is_nan():
    """The first is that of jaxopt's test, where an error is raised."""
    a, b = jnp.array([[1.0, 1.0], [0.0, 1.0], [-1.0, 1.0]]), jnp.array([1.0, 1.0, -1.0])
    assert jnp.isnan(polyhedron(jnp.zeros(2), a, b, -jnp.eye(2), jnp.zeros(2))).all()
    # Inequalities that exclude each other, and one that the equations exclude.
    g, h = jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.array([0.0, -1.0])
    none = jnp.zeros((0, 2)), jnp.zeros(0)
    assert jnp.isnan(polyhedron(jnp.ones(2), *none, g, h)).all()
    a, b = jnp.array([[1.0, 1.0]]), jnp.array([1.0])
    assert jnp.isnan(polyhedron(jnp.ones(2), a, b, -2 * a, jnp.array([-3.0]))).all()
    found = polyhedron(jnp.ones(2), a, b, 2 * a, jnp.array([3.0]))
    np.testing.assert_allclose(found, [0.5, 0.5], rtol=1e-6)


@pytest.mark.slow
def test_polyhedron_is_jaxopts_and_says_where_steps_ran_out():
    random = np.random.RandomState(0)
    x, a, b, g, h = (
        jnp.asarray(random.randn(*s), jnp.float32) for s in ((5,), (3, 5), (3,), (2, 5), (2,))
    )
    found = polyhedron(x, a, b, g, h)
    peer = jaxopt.projection.projection_polyhedron(x, (a, b, g, h), check_feasible=False)
    np.testing.assert_allclose(found, peer, rtol=2e-3)  # as far as that is exact
    few = functools.partial(bilevel.projection_polyhedron, max_steps=1)
    assert jnp.isnan(few(jnp.full(3, 2.0), *none_of(3), jnp.eye(3), jnp.ones(3))).all()


def none_of(n):
    return jnp.zeros((0, n)), jnp.zeros(0)
