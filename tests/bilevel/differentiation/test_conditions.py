"""Conditions and maps: zero or fixed at solutions in closed form, with the derivatives of those."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
import optim
from tests.bilevel.solutions import assert_solution, direct

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(12, 4)), RANDOM.normal(size=12)
Q = X.T @ X / 12
C = -X.T @ Y / 12
A, B = RANDOM.normal(size=(2, 4)), RANDOM.normal(size=2)
DENSE = functools.partial(bilevel.attach_root, solve=direct)


def least_squares(w, x, y):
    return jnp.sum((x @ w - y) ** 2) / (2 * len(y))


def fixed(step, y):
    """y with the derivative of the map's fixed point."""
    return DENSE(lambda y: jax.tree.map(jnp.subtract, y, step(y)), y)


def assert_vanishes(tree):
    for leaf in jax.tree.leaves(tree):
        np.testing.assert_allclose(leaf, 0, atol=1e-12)


def ridge(strength, x, y):
    return jnp.linalg.solve(x.T @ x / 12 + strength * jnp.eye(4), x.T @ y / 12)


@pytest.mark.parametrize("kind", ["stationary", "gradient map", "proximal", "newton"])
def test_ridge(kind):
    def attached(strength, x, y):
        w = jax.lax.stop_gradient(ridge(strength, x, y))

        def penalised(w):
            return least_squares(w, x, y) + strength * jnp.sum(w**2) / 2

        if kind == "stationary":
            return DENSE(bilevel.stationary_condition(penalised), w, symmetric=True)
        if kind == "newton":
            return fixed(bilevel.newton_map(jax.grad(penalised), solve=direct), w)
        if kind == "gradient map":
            return fixed(bilevel.projected_gradient_map(penalised, lambda w: w, 0.5), w)
        return fixed(
            bilevel.proximal_gradient_map(
                lambda w: least_squares(w, x, y),
                lambda w, s: bilevel.prox_ridge(w, strength, s),
                0.5,
            ),
            w,
        )

    assert_solution(attached, ridge, 0.3, X, Y, twice=kind == "stationary")


@pytest.mark.slow
def test_newtons_map_is_flat_at_the_root_and_finds_it_in_one_step_where_linear():
    with jax.enable_x64(True):
        step = bilevel.newton_map(lambda y: {"a": Q @ y["a"] + C})
        solution = step({"a": jnp.ones(4)})
        np.testing.assert_allclose(solution["a"], -np.linalg.solve(Q, C), rtol=1e-12)
        np.testing.assert_allclose(jax.jacobian(step)(solution)["a"]["a"], 0, atol=1e-12)


def test_the_elastic_net_on_its_support():
    """On the support S with signs s: (Q_SS + l g I) w_S = (X'y / n)_S - l s; zero elsewhere."""
    support, signs = jnp.array([0, 2]), jnp.array([1.0, -1.0])
    # X'(y - X w) / n is l (s + g w) on the support, and less than l elsewhere.
    w = np.array([2.0, 0.0, -1.5, 0.0])
    slope = 0.4 * np.array([1 + 0.5 * 2, 0.3, -1 - 0.5 * 1.5, -0.5])
    target = X @ (w + np.linalg.solve(Q, slope))

    def exact(strengths, x, y):
        x = x[:, support]
        l, gamma = strengths
        matrix = x.T @ x / 12 + l * gamma * jnp.eye(2)
        w = jnp.linalg.solve(matrix, x.T @ y / 12 - l * signs)
        return jnp.zeros(4).at[support].set(w)

    def map_of(strengths, x, y):
        return bilevel.proximal_gradient_map(
            lambda w: least_squares(w, x, y),
            lambda w, s: bilevel.prox_elastic_net(w, tuple(strengths), s),
            0.3,
        )

    arguments = (np.array([0.4, 0.5]), X, target)
    with jax.enable_x64(True):
        np.testing.assert_allclose(exact(*map(jnp.asarray, arguments)), w, atol=1e-12)
        assert_vanishes(map_of(*arguments)(jnp.asarray(w)) - w)

    def attached(*arguments):
        return fixed(map_of(*arguments), jax.lax.stop_gradient(exact(*arguments)))

    assert_solution(attached, exact, *arguments)


def simplex_least_squares(x, y):
    """On the support {0, 2, 3} of the solution of the data below: w = u + v nu, 1'w = 1."""
    support = jnp.array([0, 2, 3])
    x = x[:, support]
    u, v = jnp.linalg.solve(x.T @ x, jnp.stack([x.T @ y, jnp.ones(3)], axis=1)).T
    return jnp.zeros(4).at[support].set(u + v * (1 - jnp.sum(u)) / jnp.sum(v))


SIMPLEX_Y = X @ np.array([0.5, -0.4, 0.3, 0.6])


@pytest.mark.parametrize("kind", ["euclidean", "mirror euclidean", "entropy", "frank-wolfe"])
def test_least_squares_on_the_simplex(kind):
    simplex = optax.projections.projection_simplex

    def map_of(x, y):
        def objective(w):
            return least_squares(w, x, y)

        return {
            "euclidean": lambda: bilevel.projected_gradient_map(objective, simplex),
            "mirror euclidean": lambda: bilevel.mirror_descent_map(objective, simplex),
            "entropy": lambda: bilevel.mirror_descent_map(objective),
            "frank-wolfe": lambda: bilevel.frank_wolfe_map(objective, jnp.eye(4)),
        }[kind]()

    with jax.enable_x64(True):
        w = simplex_least_squares(X, SIMPLEX_Y)
        assert w[1] == 0 and (w[jnp.array([0, 2, 3])] > 0.05).all()
        assert_vanishes(map_of(X, SIMPLEX_Y)(w) - w)
        gradient = jax.grad(least_squares)(w, X, SIMPLEX_Y)
        assert gradient[1] > gradient[0] + 1e-3  # it is a minimum, and strictly so

    def attached(x, y):
        return fixed(map_of(x, y), jax.lax.stop_gradient(simplex_least_squares(x, y)))

    twice = kind == "entropy"
    assert_solution(attached, simplex_least_squares, X, SIMPLEX_Y, twice=twice)


def test_entropy_is_the_softmax_of_the_logarithm_whatever_the_scale():
    y = jnp.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    slope = jnp.array([[300.0, -700.0, -699.0], [0.0, 1.0, -1e4]])
    step = bilevel.mirror_descent_map(lambda y: jnp.sum(slope * y["a"]), step=2.0)
    out = step({"a": y})["a"]
    np.testing.assert_allclose(out, jax.nn.softmax(jnp.log(y) - 2 * slope), rtol=1e-4, atol=1e-30)
    assert jnp.isfinite(jax.jacobian(step)({"a": y})["a"]["a"]).all()


def test_mirror_descent_by_another_map():
    """phi = y log y - y on y >= 0: y exp(-s g). The least sum(y - c log y) is c."""

    def map_of(c):
        return bilevel.mirror_descent_map(
            lambda y: jnp.sum(y - c * jnp.log(y)), jnp.exp, jnp.log, step=0.3
        )

    assert_solution(lambda c: fixed(map_of(c), jax.lax.stop_gradient(c)), lambda c: c, np.ones(2))


def test_blocks_with_steps_of_their_own():
    """Group lasso on X'X = I: each row of X'Y is shrunk."""

    def exact(strength, target):
        return jax.vmap(lambda row: bilevel.prox_group_lasso(row, strength))(target)

    def attached(strength, target):
        step = bilevel.block_proximal_map(
            lambda w: jnp.sum((w - target) ** 2) / 2,
            lambda block, s: bilevel.prox_group_lasso(block, strength, s),
            jnp.array([0.5, 1.0, 2.0]),
        )
        return fixed(step, jax.lax.stop_gradient(exact(strength, target)))

    target = np.array([[3.0, 1.0], [0.1, -0.1], [-1.0, 2.0]])
    assert_solution(attached, exact, 0.7, target)


def test_frank_wolfe_in_a_polytope_and_a_tree():
    """The nearest point of a segment, x = a + t (b - a): t = (c - a)'(b - a) / |b - a|^2."""

    def exact(ends, c):
        t = jnp.vdot(c - ends[0], ends[1] - ends[0]) / jnp.sum((ends[1] - ends[0]) ** 2)
        return jnp.stack([1 - t, t])

    def attached(ends, c):
        def objective(x):
            return jnp.sum((x["first"] - c[:1]) ** 2) + jnp.sum((x["rest"] - c[1:]) ** 2)

        atoms = {"first": ends[:, :1], "rest": ends[:, 1:]}
        weights = jax.lax.stop_gradient(exact(ends, c))
        return fixed(bilevel.frank_wolfe_map(objective, atoms, 0.1), weights)

    ends = np.array([[0.0, 1.0, 0.0], [2.0, 0.0, 1.0]])
    assert_solution(attached, exact, ends, np.array([1.0, 0.5, 1.5]))


def equality_qp(q, c, a, b):
    """x and the multipliers by the KKT system; Q counts by its symmetric part."""
    matrix = jnp.block([[(q + q.T) / 2, a.T], [a, jnp.zeros((len(b), len(b)))]])
    out = jnp.linalg.solve(matrix, jnp.concatenate([-c, b]))
    return bilevel.KKTSolution(out[:4], out[4:])


def test_a_qp_with_equations():
    def attached(q, c, a, b):
        y = jax.lax.stop_gradient(equality_qp(q, c, a, b))
        solve = functools.partial(optim.minres, tolerance=1e-13)
        condition = bilevel.qp_condition(q, c, a, b)
        return bilevel.attach_root(condition, y, symmetric=True, solve=solve)

    skewed = Q + np.triu(np.ones((4, 4)), 1) - np.tril(np.ones((4, 4)), -1)
    with jax.enable_x64(True):
        y = equality_qp(skewed, C, A, B)
        assert_vanishes(bilevel.qp_condition(skewed, C, A, B)(y))
    assert_solution(attached, equality_qp, skewed, C, A, B)


def inequality_qp(q, c, a, b, g, h):
    """One equation, and two inequalities of which the first is active: from the KKT system."""
    rows = jnp.concatenate([a[:1], g[:1]])
    matrix = jnp.block([[q, rows.T], [rows, jnp.zeros((2, 2))]])
    out = jnp.linalg.solve(matrix, jnp.concatenate([-c, b[:1], h[:1]]))
    return bilevel.KKTSolution(out[:4], out[4:5], jnp.array([out[5], 0.0]))


def active_inequalities():
    """G and h such that the first cuts the solution without it off, and the second is far."""
    free = equality_qp(jnp.asarray(Q), C, A[:1], B[:1]).primal
    g = np.random.default_rng(2).normal(size=(2, 4))
    return g, np.asarray(g @ free) + np.array([-0.5, 5.0])


@pytest.mark.slow
def test_a_qp_with_inequalities_and_the_same_in_conic_form():
    with jax.enable_x64(True):
        g, h = active_inequalities()
        arguments = (Q, C, A, B, g, h)
        y = inequality_qp(*arguments)
        condition = bilevel.qp_condition(Q, C, A[:1], B[:1], g, h)
        assert_vanishes(condition(y))
        assert y.dual_inequality[0] > 0.01 and g[1] @ y.primal < h[1] - 0.1

    def by_kkt(q, c, a, b, g, h):
        y = jax.lax.stop_gradient(inequality_qp(q, c, a, b, g, h))
        return DENSE(bilevel.qp_condition(q, c, a[:1], b[:1], g, h), y)

    def by_cone(q, c, a, b, g, h):
        e, d = jnp.concatenate([a[:1], g]), jnp.concatenate([b[:1], h])

        def project(v):
            return jnp.concatenate([v[:1], jax.nn.relu(v[1:])])

        x, nu, lam = jax.lax.stop_gradient(inequality_qp(q, c, a, b, g, h))
        start = bilevel.ConicSolution(
            x, jnp.concatenate([nu, lam]) - jax.lax.stop_gradient(d - e @ x)
        )
        residual = bilevel.conic_residual(c, e, d, project, q)
        assert_vanishes(jax.tree.map(jax.lax.stop_gradient, ()))
        z = DENSE(residual, start)
        y = project(z.difference)
        return bilevel.KKTSolution(z.primal, y[:1], y[1:])

    def symmetric(q, *others):
        return inequality_qp((q + q.T) / 2, *others)

    assert_solution(by_kkt, symmetric, *arguments, twice=True)

    def by_symmetric_cone(q, *others):
        return by_cone((q + q.T) / 2, *others)

    assert_solution(by_symmetric_cone, symmetric, *arguments)


def test_a_linear_program_in_conic_form():
    """The least c'x with x >= 0 and x_1 + 2 x_2 = b, where x_1 = 0: x_2 = b / 2."""

    def attached(c, b):
        e = jnp.array([[1.0, 2.0], [-1.0, 0.0], [0.0, -1.0]])
        d = jnp.concatenate([b, jnp.zeros(2)])
        x, y = exact(jax.lax.stop_gradient(c), jax.lax.stop_gradient(b))
        start = bilevel.ConicSolution(x, y - (jax.lax.stop_gradient(d) - e @ x))

        def project(v):
            return jnp.concatenate([v[:1], jax.nn.relu(v[1:])])

        z = DENSE(bilevel.conic_residual(c, e, d, project), start)
        return z.primal, project(z.difference)

    def exact(c, b):
        # nu = -c_2 / 2, and the multiplier of x_1 >= 0 is c_1 + nu.
        nu = -c[1] / 2
        return jnp.stack([0 * b[0], b[0] / 2]), jnp.stack([nu, c[0] + nu, 0 * nu])

    assert_solution(attached, exact, np.array([3.0, 2.0]), np.array([1.5]))


def test_a_second_order_cone():
    """The greatest c'x with |x| <= r is r c / |c|: E = (0; -I), s = (r, x), K its own dual."""

    def project(v):
        t, u = v[0], v[1:]
        norm = jnp.linalg.norm(u)
        middle = (t + norm) / 2 * jnp.concatenate([jnp.ones(1), u / norm])
        return jnp.where(norm <= t, v, jnp.where(norm <= -t, 0, middle))

    def exact(c, r):
        return r * c / jnp.linalg.norm(c)

    def attached(c, r):
        e = jnp.concatenate([jnp.zeros((1, 3)), -jnp.eye(3)])
        d = jnp.concatenate([jnp.stack([r]), jnp.zeros(3)])
        x, s = jax.lax.stop_gradient((exact(c, r), d))
        # y = (|c|, -c), orthogonal to s = (r, x).
        y = jax.lax.stop_gradient(jnp.concatenate([jnp.linalg.norm(c)[None], -c]))
        start = bilevel.ConicSolution(x, y - (s - e @ x))
        return DENSE(bilevel.conic_residual(-c, e, d, project), start).primal

    with jax.enable_x64(True):
        assert_solution(attached, exact, np.array([1.0, -2.0, 0.5]), 1.7)


def test_kkt_of_trees_and_of_a_constraint_that_is_not_linear():
    """The least c'x on |x|^2 = r^2 is -r c / |c|, with nu = |c| / (2 r)."""

    def exact(c, r):
        norm = jnp.linalg.norm(c)
        return bilevel.KKTSolution({"x": -r * c / norm}, (norm / (2 * r),))

    def attached(c, r):
        condition = bilevel.kkt_condition(
            lambda p: jnp.vdot(c, p["x"]), lambda p: (jnp.sum(p["x"] ** 2) - r**2,)
        )
        return DENSE(condition, jax.lax.stop_gradient(exact(c, r)))

    assert_solution(attached, exact, np.array([1.0, -2.0, 0.5]), 1.7)


@pytest.mark.slow
def test_a_batch_and_float32_and_bfloat16():
    def solution(strength):
        step = bilevel.proximal_gradient_map(
            lambda y: jnp.sum((y - 3) ** 2) / 2, lambda y, s: bilevel.prox_lasso(y, strength, s)
        )
        return fixed(step, step(jnp.zeros(2))).sum()

    strengths = jnp.array([1.0, 2.0, 4.0])
    slopes = jax.jit(jax.vmap(jax.grad(solution)))(strengths)
    np.testing.assert_allclose(slopes, [-2.0, -2.0, 0.0], atol=1e-6)
    y = jnp.ones(3, jnp.bfloat16)
    for step in (
        bilevel.projected_gradient_map(jnp.sum, lambda y: y, 0.1),
        bilevel.mirror_descent_map(jnp.sum, step=jnp.float32(0.1)),
        bilevel.block_proximal_map(jnp.sum, lambda y, s: y, jnp.ones(3)),
        bilevel.newton_map(lambda y: 2 * y),
    ):
        assert step(y).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bilevel.kkt_condition(jnp.sum, lambda x: x)(bilevel.KKTSolution(jnp.ones(2))),
            r"kkt_condition: dual_equality is PyTreeDef\(None\) of shapes \[\]; accepted: what "
            r"equality_fn gives, PyTreeDef\(\*\) of shapes \[\(2,\)\]\.",
        ),
        (
            lambda: bilevel.kkt_condition(jnp.sum)(
                bilevel.KKTSolution(jnp.ones(2), dual_inequality=jnp.ones(1))
            ),
            r"kkt_condition: dual_inequality is PyTreeDef\(\*\) of shapes \[\(1,\)\]; accepted: ",
        ),
        (
            lambda: bilevel.qp_condition(Q, C, A),
            r"qp_condition: one of a_eq and b_eq is None; accepted: both or neither\.",
        ),
        (
            lambda: bilevel.mirror_descent_map(jnp.sum, mapping_fn=jnp.log),
            r"mirror_descent_map: projection_fn is None with the mapping_fn .*; accepted: both,",
        ),
        (
            lambda: bilevel.mirror_descent_map(lambda y: y)(1.0),
            r"mirror_descent_map: y has a leaf of shape \(\); accepted: axes, the last a simplex\.",
        ),
        (
            lambda: bilevel.newton_map(lambda y: (y,))(1.0),
            r"newton_map: root_fn gives PyTreeDef\(\(\*,\)\); accepted: the structure of y, ",
        ),
        *(
            (functools.partial(make, step=0.0), r"_map: step is 0\.0; accepted: step > 0\.")
            for make in (
                functools.partial(bilevel.proximal_gradient_map, jnp.sum, lambda y, s: y),
                functools.partial(bilevel.projected_gradient_map, jnp.sum, lambda y: y),
                functools.partial(bilevel.mirror_descent_map, jnp.sum),
                functools.partial(bilevel.frank_wolfe_map, jnp.sum, np.eye(2)),
                functools.partial(bilevel.newton_map, jnp.sum),
            )
        ),
    ],
)
def test_errors_name_the_argument_the_value_and_what_is_accepted(call, message):
    with pytest.raises(ValueError, match=message):
        call()
