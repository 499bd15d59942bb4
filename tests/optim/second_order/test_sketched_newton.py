"""AdaSketch-Newton: the authors' published runs, exact steps, and every safeguard."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim


@pytest.fixture(autouse=True)
def double():
    """The projections go far below the rounding of float32."""
    with jax.enable_x64(True):
        yield


def run(algorithm, start, *, multipliers=None, most=30, tolerance=1e-4):
    """Steps until |(∇L, c)| is small, as (state, infos)."""
    update = jax.jit(algorithm.update)
    state: Any = algorithm.init(start, jax.random.key(0), multipliers)
    infos: list[Any] = []
    while len(infos) < most and not (infos and infos[-1].residual <= tolerance):
        state, info = update(state)
        infos.append(info)
    return state, infos


# CUTEst problems: f, c, start, and of the published run of AdaSketch-Newton-GV, in
# CUTEst/Solution/AdaSketchNewtonGV1.mat, the step lengths and |(∇L, c)| after each step.
PUBLISHED: dict[str, tuple[Any, Any, list[float], list[float], str]] = {
    "HS7": (
        lambda x: jnp.log(1 + x[0] ** 2) - x[1],
        lambda x: (1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4,
        [2.0, 2.0],
        [0.5, 0.25, 0.0625, 0.03125, 1, 1, 1, 1, 1, 1],
        "19.98110329 17.74750497 17.32791664 17.25668481 8.139119298 6.935165359 1.509889793"
        " 0.1429560162 0.002102415629 5.649416572e-07",
    ),
    "HS42": (
        lambda x: jnp.sum((x - jnp.arange(1.0, 5.0)) ** 2),
        lambda x: jnp.array([x[0] - 2, x[2] ** 2 + x[3] ** 2 - 2]),
        [1.0] * 4,
        [1, 1, 1, 1],
        "3.570714214 0.270362241 0.02792858966 7.392129893e-05",
    ),
    "BT5": (
        lambda x: 1000 - x[0] ** 2 - 2 * x[1] ** 2 - x[2] ** 2 - x[0] * x[1] - x[0] * x[2],
        lambda x: jnp.array([x @ x - 25, 8 * x[0] + 14 * x[1] + 7 * x[2] - 56]),
        [2.0] * 3,
        [0.5, 1, 1, 1, 1],
        "42.83386133 3.098895159 0.1565376791 0.009882340883 2.673410267e-06",
    ),
    "BT10": (
        lambda x: -x[0],
        lambda x: jnp.array([x[1] - x[0] ** 3, x[0] ** 2 - x[1]]),
        [2.0] * 2,
        [1, 1, 0.25, 1, 1, 1, 1],
        "1.495109214 0.5253731627 0.4072781052 0.1723957176 0.02942185787 0.0003274391549"
        " 1.487415654e-08",
    ),
    "HS40": (
        lambda x: -jnp.prod(x),
        lambda x: jnp.array([x[0] ** 3 + x[1] ** 2 - 1, x[0] ** 2 * x[3] - x[2], x[3] ** 2 - x[1]]),
        [0.8] * 4,
        [1, 1, 1],
        "0.09927083566 0.002951155521 4.258113909e-06",
    ),
}
QUICK = [("HS42", jax.random.normal), ("BT5", optim.kaczmarz_sketch)]
SLOW: list[tuple[str, Any]] = [
    *((name, jax.random.normal) for name in ("HS7", "HS40", "BT5", "BT10")),
    *((name, optim.kaczmarz_sketch) for name in ("HS42", "BT10")),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sketch"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_published_run_of_the_authors(name, sketch):
    """Other random numbers, but directions so accurate that the same iterates follow."""
    f, c, start, step_sizes, published = PUBLISHED[name]
    residuals = [float(word) for word in published.split()]
    _, infos = run(optim.sketched_newton(f, c, sketch=sketch, variant="code"), jnp.array(start))
    assert [float(info.step_size) for info in infos] == step_sizes
    ours = [float(info.residual) for info in infos]
    # Rounded by eps |A| Psi, at most 1e-6 of a direction here, seldom more than 1e-8 of the first.
    np.testing.assert_allclose(ours, residuals, rtol=2e-7, atol=2e-7 * residuals[0])
    assert max(int(info.sketches) for info in infos) < 100_000
    assert all(info.descends and info.accepted and info.regular for info in infos)


def quadratic(tree):
    """|a - 1|^2 / 2 + (b + 2)^2 over a of three elements and b."""
    return jnp.sum((tree["a"] - 1) ** 2) / 2 + (tree["b"] + 2) ** 2


def linear(tree):
    return {"sum": tree["a"].sum() + tree["b"], "first": tree["a"][:1] - 2 * tree["b"]}


def test_one_step_solves_a_quadratic_program():
    """Its first-order conditions are one linear system, solved here by hand.

    With s = the multiplier of the sum and t that of the other one: a_1 = 1 - s - t, a_2 = a_3 =
    1 - s, b = -2 - (s - 2 t) / 2. The sum is 1 - 7/2 s = 0, the other 5 - 3 t = 0.
    """
    state, (info,) = run(
        optim.sketched_newton(quadratic, linear), {"a": jnp.zeros(3), "b": jnp.zeros(())}
    )
    s, t = 2 / 7, 5 / 3
    np.testing.assert_allclose(state.params["a"], [1 - s - t, 1 - s, 1 - s], atol=1e-8)
    np.testing.assert_allclose(state.params["b"], -2 - s / 2 + t, atol=1e-8)
    np.testing.assert_allclose(state.multipliers["sum"], s, atol=1e-8)
    np.testing.assert_allclose(state.multipliers["first"], [t], atol=1e-8)
    assert info.step_size == 1 and info.shift == 0 and info.residual < 1e-8
    assert info.infeasibility < 1e-8
    assert info.value == pytest.approx(float(quadratic(state.params)), abs=1e-12)


# A circle, on which the merit's gradient depends on the Hessian that it is given.
def ellipse(x):
    return x[0] + 2 * x[1] ** 2


def circle(x):
    return x @ x - 2


class Exact:
    """A step's quantities at (x, λ) in NumPy, with the system solved by elimination."""

    def __init__(self, x, multiplier, variant="paper", xi_B=0.1):
        x = np.array(x)
        gradient = np.array([1.0, 4 * x[1]]) + multiplier * 2 * x
        objective = np.diag([0.0, 4.0])
        hessian = objective + 2 * multiplier * np.eye(2)
        jacobian = 2 * x[None]
        c = np.array([x @ x - 2])
        null = np.array([-x[1], x[0]]) / np.linalg.norm(x)
        self.shift = xi_B + np.linalg.norm(hessian) if null @ hessian @ null < 1e-6 else 0.0
        shifted = hessian + self.shift * np.eye(2)
        self.matrix = np.block([[shifted, jacobian.T], [jacobian, np.zeros((1, 1))]])
        self.target = -np.concatenate([gradient, c])
        self.direction = np.linalg.solve(self.matrix, self.target)
        smallest = np.linalg.norm(jacobian) ** 2
        largest = np.maximum(np.linalg.norm(shifted) ** 2, 1)
        self.psi = 20 * largest / (min(smallest, 1) * min(xi_B, 1))
        self.upsilon = max(np.linalg.norm(jacobian), np.linalg.norm(hessian), 1)
        of_merit = hessian if variant == "paper" else objective
        self.slope = lambda eta1, eta2: (
            self.direction
            @ np.concatenate(
                [
                    gradient + eta2 * of_merit @ gradient + eta1 * jacobian[0] * c,
                    c + eta2 * jacobian @ gradient,
                ]
            )
        )

    def delta(self, delta, eta1, eta2, beta=0.1):
        most = (0.5 - beta) * eta2 / ((1 + eta1 + eta2) * (self.upsilon * self.psi) ** 2)
        return max(min(delta, most), 1e-6)

    def penalties(self, eta1=1.0, eta2=0.1, delta=0.1, nu=1.5):
        """eta1, eta2, delta and how often they changed."""
        delta, updates = self.delta(delta, eta1, eta2), 0
        while self.slope(eta1, eta2) > -eta2 / 2 * self.target @ self.target:
            eta1, eta2, updates = eta1 * nu**2, eta2 / nu, updates + 1
            delta = self.delta(delta / nu**4, eta1, eta2)
        return eta1, eta2, delta, updates


@functools.partial(jax.jit, static_argnames=("variant", "sketch"))
def step(x, multiplier, variant, sketch, **options):
    algorithm = optim.sketched_newton(ellipse, circle, variant=variant, sketch=sketch, **options)
    return algorithm.update(algorithm.init(x, jax.random.key(1), multiplier))


def one_step(x, multiplier, variant="paper", sketch=jax.random.normal, **options):
    """Numbers among the options are traced, so that a compilation serves many of them."""
    defaults = {"theta": 1.0, "xi_B": 0.1, "curvature_floor": 1e-6, "max_sketches": 100_000}
    return step(jnp.array(x), jnp.array(multiplier), variant, sketch, **{**defaults, **options})


@pytest.mark.parametrize(
    ("x", "multiplier", "variant", "updates"),
    [
        ([0.3, 1.2], 1.0, "paper", 3),
        ([0.3, 1.2], 1.0, "code", 0),
        ([0.3, 1.2], -1.0, "paper", 2),  # shifted
    ],
)
def test_penalties_direction_and_step_in_closed_form(x, multiplier, variant, updates):
    exact = Exact(x, multiplier, variant)
    state, info = one_step(x, multiplier, variant=variant)
    assert updates == exact.penalties()[3] == info.penalty_updates
    ours = [float(v) for v in (state.eta1, state.eta2, state.delta)]
    np.testing.assert_allclose(ours, exact.penalties()[:3], rtol=1e-12)
    np.testing.assert_allclose(info.shift, exact.shift, rtol=1e-12)
    moved = np.array([*state.params, state.multipliers]) - [*x, multiplier]
    np.testing.assert_allclose(moved, float(info.step_size) * exact.direction, rtol=1e-6)
    np.testing.assert_allclose(info.smallest_eigenvalue, 4 * np.sum(np.square(x)), rtol=1e-12)


def test_line_search_takes_the_first_half_that_decreases_the_merit_enough():
    x, multiplier = [1.5, -0.5], -1.0
    exact, info = Exact(x, multiplier), one_step(x, multiplier)[1]
    eta1, eta2, *_ = exact.penalties()

    def merit(point):
        c = circle(point[:2])
        gradient = jax.grad(lambda x: ellipse(x) + circle(x) * point[2])(point[:2])
        total = ellipse(point[:2]) + c * point[2] + eta1 / 2 * c**2
        return float(total + eta2 / 2 * gradient @ gradient)

    start = jnp.array([*x, multiplier])
    alphas = [1.0, 0.5, 0.25]
    enough = [
        merit(start + a * exact.direction) <= merit(start) + 0.1 * a * exact.slope(eta1, eta2)
        for a in alphas
    ]
    assert enough[:2] == [False, True] and info.step_size == 0.5
    assert info.merit_evaluations == 3  # at the start, at 1 and at 1/2


@pytest.mark.parametrize("theta", [1.0, 0.01])
def test_accuracy_is_what_the_condition_asks_for(theta):
    """|A| Psi |r| <= theta delta |b|, and by no more than the last projections overshoot."""
    x, multiplier = [0.3, 1.2], -1.0
    exact, (state, info) = Exact(x, multiplier), one_step(x, multiplier, theta=theta)
    most = theta * float(state.delta) / (np.linalg.norm(exact.matrix) * exact.psi)
    assert 1e-3 * most < info.linear_residual <= most


@pytest.mark.slow
def test_theta_may_be_a_schedule():
    """It is 1 at the first step here and 1e-5 at the second, which then takes more projections."""
    accurate, plain = (
        optim.sketched_newton(ellipse, circle, theta=theta)
        for theta in (lambda step: 10.0 ** (-5 * step), 1.0)
    )
    (_, ours), (_, theirs) = (run(a, jnp.array([0.3, 1.2]), most=2) for a in (accurate, plain))
    assert ours[0].sketches == theirs[0].sketches
    assert ours[1].sketches > theirs[1].sketches + 10
    assert ours[1].linear_residual < 1e-4 * theirs[1].linear_residual


def test_delta_has_a_floor():
    state, _ = one_step([0.3, 1.2], 1.0)
    assert Exact([0.3, 1.2], 1.0).penalties()[2] == state.delta == 1e-6


def test_a_hessian_that_is_positive_on_the_null_space_is_not_shifted():
    """At (1.5, -0.5) its tangent sees 4 * 0.9 - 2, at (0.3, 1.2) 4 * 0.06 - 2."""
    assert one_step([1.5, -0.5], -1.0)[1].shift == 0
    shift = one_step([0.3, 1.2], -1.0, xi_B=0.5)[1].shift
    assert shift == pytest.approx(0.5 + np.sqrt(8))
    assert one_step([1.5, -0.5], -1.0, curvature_floor=2.0)[1].shift > 0


def test_projections_are_bounded_and_the_direction_is_then_less_accurate():
    _, info = one_step([0.3, 1.2], -3.0, max_sketches=5)
    assert info.sketches == 5 * (1 + info.penalty_updates)
    assert info.linear_residual > 1e-6


def test_penalties_stop_growing_where_the_direction_never_descends():
    """Without projections d stays 0; 2.25^23 is the first power above 1e8."""
    state, info = one_step([0.3, 1.2], 1.0, sketch=lambda key, shape, dtype: jnp.zeros(shape))
    assert info.penalty_updates == 23 and not info.descends
    assert state.eta1 == pytest.approx(2.25**23) and info.linear_residual == 1
    assert state.params.tolist() == [0.3, 1.2] and state.multipliers == 1.0


@pytest.mark.parametrize(("multiplier", "step_size"), [(1.0, 1.0), (3.0, 0.0)])
def test_a_step_along_an_ascending_direction_lowers_the_merit_or_is_not_made(multiplier, step_size):
    """One row alone, whose projection turns x_0 towards 0, away from the circle, without end.

    The last penalties weigh |c| most. At λ = 1 a whole step leads to x_0 = -0.434, which is nearer
    to the circle than 0.3 was, while one at λ = 3 ends at -0.162, and all that are shorter, inside.
    """
    first = jnp.array([1.0, 0.0, 0.0])
    state, info = one_step(
        [0.3, 1.2], multiplier, sketch=lambda key, shape, dtype: first, max_sketches=1
    )
    shift, slope = float(info.shift), 1 + 0.6 * multiplier
    whole = -slope * (2 * multiplier + shift) / ((2 * multiplier + shift) ** 2 + 0.36)
    assert info.penalty_updates == 23 and not info.descends
    assert info.step_size == step_size and info.accepted == (step_size > 0)
    np.testing.assert_allclose(state.params[0], 0.3 + step_size * whole, rtol=1e-12)
    assert state.params[1] == 1.2 and info.infeasibility <= abs(circle(jnp.array([0.3, 1.2])))


def test_lost_rank_leaves_everything_where_it_is():
    """At the centre of the circle the constraint has no gradient."""
    algorithm = optim.sketched_newton(ellipse, circle)
    first = algorithm.init(jnp.zeros(2), jax.random.key(0), jnp.array(2.0))
    state, info = jax.jit(algorithm.update)(first)
    assert not info.regular and not info.accepted and info.sketches == 0
    assert state.params.tolist() == [0.0, 0.0] and state.multipliers == 2.0
    assert (state.eta1, state.eta2, state.delta) == (first.eta1, first.eta2, first.delta)
    assert info.step_size == 0 and info.residual == pytest.approx(np.hypot(1, 2))


@pytest.mark.parametrize("elsewhere", [jnp.nan, jnp.inf, -jnp.inf])
def test_no_step_is_made_where_the_loss_is_not_finite(elsewhere):
    def objective(x):
        return jnp.where(x[0] == 2.0, x @ x, elsewhere)

    algorithm = optim.sketched_newton(objective, lambda x: x[1] - 1.0)
    state = algorithm.init(jnp.array([2.0, 0.0]), jax.random.key(0))
    after, info = jax.jit(algorithm.update)(state)
    assert not info.accepted and info.step_size == 0 and info.regular
    assert after.params.tolist() == [2.0, 0.0] and after.multipliers == 0
    assert np.isfinite(info.residual) and info.merit_evaluations == 52


@pytest.mark.parametrize(
    ("f", "c"),
    [
        (lambda x: x @ x + jnp.where(x[0] > 1, 0.0, -jnp.inf), lambda x: x[1] - 1),  # f
        (lambda x: x @ x + jnp.sqrt(x[0]), lambda x: x[1] - 1),  # the gradient
        (lambda x: x @ x + x[0] ** 1.5, lambda x: x[1] - 1),  # the Hessian alone
        (lambda x: x @ x, lambda x: x[1] - 1 + jnp.log(x[0])),  # c
    ],
    ids=["objective", "gradient", "Hessian", "constraint"],
)
def test_a_start_that_is_not_finite_stays_as_it_is(f, c):
    algorithm = optim.sketched_newton(f, c)
    first = algorithm.init(jnp.zeros(2), jax.random.key(0))
    state, info = jax.jit(algorithm.update)(first)
    assert not info.accepted and info.step_size == 0
    assert state.params.tolist() == [0, 0] and state.multipliers == 0
    # Where f alone is bad, its derivatives ask for one change of penalties; the rest asks for none.
    assert info.penalty_updates == info.regular
    assert state.eta1 == (2.25 if info.regular else 1) and 0 < state.delta <= first.delta


def test_a_solution_is_a_fixed_point():
    algorithm = optim.sketched_newton(quadratic, linear)
    zeros = {"a": jnp.zeros(3), "b": jnp.zeros(())}
    state, _ = run(algorithm, zeros, tolerance=1e-12)
    update = jax.jit(algorithm.update)
    for _ in range(3):
        after, info = update(state)
        assert info.regular and info.residual < 1e-11
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-11), after.params, state.params
        )
        state = after


def test_as_many_constraints_as_unknowns_is_newtons_method_on_them():
    def constraint(x):
        return jnp.array([x[0] ** 2 + x[1] - 11, x[0] + x[1] ** 2 - 7])

    state, infos = run(optim.sketched_newton(lambda x: 0 * x[0], constraint), jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(state.params, [3.0, 2.0], atol=1e-4)
    assert infos[-1].shift == 0


@pytest.mark.slow
def test_float32_ends_at_its_rounding_with_few_projections():
    f, c, start, *_ = PUBLISHED["BT5"]
    state, infos = run(
        optim.sketched_newton(f, c), jnp.array(start, jnp.float32), most=8, tolerance=0
    )
    assert state.params.dtype == state.multipliers.dtype == state.eta1.dtype == jnp.float32
    assert infos[-1].residual.dtype == jnp.float32 and infos[-1].residual < 2e-3
    assert infos[-1].value == pytest.approx(961.7152, rel=1e-6)
    assert all(info.sketches < 100_000 for info in infos)


def test_state_keeps_its_types_and_its_program():
    algorithm, traces = optim.sketched_newton(ellipse, circle), 0

    @functools.partial(jax.jit, donate_argnums=0, static_argnums=1)
    def update(state, batch):
        nonlocal traces
        traces += 1
        return algorithm.update(state, batch)

    start = jnp.array([0.3, 1.2])
    state = algorithm.init(start, jax.random.key(0))
    before = jax.tree.map(jax.typeof, state)
    for _ in range(3):
        state, _ = update(state, "batch")
    assert jax.tree.map(jax.typeof, state) == before
    assert traces == 1 and state.steps == 3
    assert start.tolist() == [0.3, 1.2]  # still there after the donation


@pytest.mark.slow
def test_strict_promotion_and_vmap_over_starts():
    algorithm = optim.sketched_newton(ellipse, circle)
    starts = jnp.array([[0.3, 1.2], [1.5, -0.5]])
    with jax.numpy_dtype_promotion("strict"):
        states = jax.vmap(lambda x: algorithm.init(x, jax.random.key(1)))(starts)
        _, infos = jax.jit(jax.vmap(lambda state: algorithm.update(state)))(states)
    alone = [one_step(start, 0.0)[1] for start in starts.tolist()]
    np.testing.assert_allclose(infos.residual, [info.residual for info in alone], rtol=1e-6)
    assert infos.sketches.tolist() == [info.sketches for info in alone]


def test_kaczmarz_rows_are_uniform():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: optim.kaczmarz_sketch(key, (5,), jnp.float32))(keys)
    assert drawn.dtype == jnp.float32 and (jnp.sort(drawn)[:, -2:] == jnp.array([0.0, 1.0])).all()
    # Four standard deviations of a share of 1/5 in 4000 draws.
    np.testing.assert_allclose(drawn.mean(axis=0), 0.2, atol=4 * np.sqrt(0.16 / 4000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta1": 0.0}, "eta1 is 0.0; accepted: eta1 > 0"),
        ({"eta2": -1}, "eta2 is -1; accepted: eta2 > 0"),
        ({"delta": 0}, "delta is 0; accepted: delta > 0"),
        ({"xi_B": 0}, "xi_B is 0; accepted: xi_B > 0"),
        ({"rank_floor": 0.0}, "rank_floor is 0.0; accepted: rank_floor > 0"),
        ({"beta": 0.5}, "beta is 0.5; accepted: 0 < beta < 1/2"),
        ({"nu": 1.0}, "nu is 1.0; accepted: nu > 1"),
        ({"theta": 1.5}, "theta is 1.5; accepted: 0 < theta <= 1"),
        ({"max_sketches": 0}, "max_sketches is 0; accepted: max_sketches >= 1"),
        ({"variant": "repo"}, "variant is 'repo'; accepted: 'paper' or 'code'"),
    ],
)
def test_settings_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=f"^sketched_newton: {re.escape(message)}\\.$"):
        optim.sketched_newton(ellipse, circle, **options)


@pytest.mark.parametrize(
    ("f", "c", "start", "multipliers", "message"),
    [
        (
            ellipse,
            circle,
            {"x": jnp.zeros(2, jnp.int32)},
            None,
            "the parameter 'x' is int32; accepted",
        ),
        (ellipse, circle, jnp.zeros(2, jnp.bfloat16), None, "is bfloat16; accepted: float32 or"),
        (lambda x: x, circle, jnp.zeros(2), None, "objective returns the shape (2,); accepted"),
        (ellipse, lambda x: x[:0], jnp.zeros(2), None, "returns 0 elements for 2 unknowns"),
        (ellipse, lambda x: jnp.ones(3), jnp.zeros(2), None, "returns 3 elements for 2 unknowns"),
        (ellipse, circle, jnp.zeros(2), jnp.zeros(1), "multipliers have the shapes (1,); accepted"),
    ],
)
def test_problems_that_do_not_fit_are_named(f, c, start, multipliers, message):
    with pytest.raises(ValueError, match=f"^sketched_newton: .*{re.escape(message)}.*\\.$"):
        optim.sketched_newton(f, c).init(start, jax.random.key(0), multipliers)
