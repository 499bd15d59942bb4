"""Regularized Newton: a step by hand, the authors' numbers, where the search ends, odd leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def run(tx, loss, params, steps, hessian_fn=None):
    """Losses and radii before each step and after the last, and the last state."""
    hessian_fn = hessian_fn or jax.hessian(loss)

    @jax.jit
    def step(params, state):
        value, gradient = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = tx.update(
            gradient, state, params, value=value, value_fn=loss, hessian_fn=hessian_fn
        )
        return optim.apply_updates(params, updates), state

    state, losses, radii = tx.init(params), [loss(params)], [tx.init(params).gamma]
    for _ in range(steps):
        params, state = step(params, state)
        losses.append(loss(params))
        radii.append(state.gamma)
    return params, state, losses, radii


def one_step(tx, loss, params, hessian_fn, state=None, value=None):
    """One step that is not compiled."""
    value_, gradient = jax.value_and_grad(loss)(params)
    state = tx.init(params) if state is None else state
    value = value_ if value is None else value
    return tx.update(gradient, state, params, value=value, value_fn=loss, hessian_fn=hessian_fn)


def half_square(params):
    return 0.5 * jnp.sum(params**2)


def test_first_step_by_hand():
    """g = (3, 4), lambda = 5 / 5, (H + 1) d = -g with H = 3, where the true Hessian is 1."""
    tx = optim.regularized_newton(gamma=5.0)
    params = jnp.array([3.0, 4.0])
    updates, state = one_step(tx, half_square, params, lambda p: lambda v: 3.0 * v)
    np.testing.assert_array_equal(updates, [-0.75, -1.0])
    # f falls from 12.5 to 9/16 of it, by more than |g_new|^2 / 8 = 9/16 25 / 8.
    assert float(state.gamma) == 10.0 and bool(state.accepted)
    assert float(state.value) == 12.5 * 9 / 16 and state.grad.tolist() == [2.25, 3.0]
    assert [int(x) for x in (state.tries, state.evaluations, state.curvatures)] == [1, 1, 1]


def test_a_rejected_try_halves_the_radius():
    """H = 0: d = -gamma g / |g|. From 1, a step of 4 ends at -3, of 2 at -1 and of 1 at 0."""
    tx = optim.regularized_newton(gamma=4.0)
    updates, state = one_step(tx, half_square, jnp.array([1.0]), lambda p: jnp.zeros((1, 1)))
    np.testing.assert_allclose(updates, [-1.0], rtol=1e-6)
    assert int(state.tries) == 3 and float(state.gamma) == 2.0


@pytest.mark.parametrize("held", [True, False])
def test_the_decrease_may_just_reach_its_bound(held):
    """From 1 by -1 to 0 at lambda 1, with a slope at 0 that is at its bound, and a little more."""

    @jax.custom_jvp
    def staged(params):
        return jnp.where(params[0] > 0.5, 1.0, 0.5)

    @staged.defjvp
    def _(primals, tangents):
        # At 0 the loss has fallen by 1/2 = 2^2 / 8.
        slope = jnp.where(primals[0][0] > 0.5, 1.0, 2.0 if held else 2.0001)
        return staged(primals[0]), slope * tangents[0][0]

    tx = optim.regularized_newton(eps=1e-30)
    _, state = one_step(tx, staged, jnp.array([1.0]), lambda p: jnp.zeros((1, 1)))
    assert (int(state.tries) == 1) == held


def test_a_quadratic_is_solved():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 6))
    with jax.enable_x64(True):
        h, b = jnp.asarray(a @ a.T + np.eye(6)), jnp.asarray(rng.normal(size=6))
        tx = optim.regularized_newton()
        params, state, _, radii = run(
            tx, lambda p: 0.5 * p @ h @ p - b @ p, jnp.zeros(6), 8, lambda p: lambda v: h @ v
        )
        np.testing.assert_allclose(params, np.linalg.solve(h, b), rtol=1e-9)
        # The linearization is exact, so each radius is accepted at once.
        assert radii[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
        assert int(state.curvatures) == 8


@pytest.mark.slow
def test_it_equals_damped_newton_at_its_radii():
    def loss(p):
        return jnp.sum(jnp.log(jnp.cosh(p))) + 0.1 * (p[0] - p[1] + 1) ** 2

    with jax.enable_x64(True):
        params = jnp.array([1.5, -0.5])
        tx = optim.regularized_newton(gamma=0.5)
        _, _, losses, radii = run(tx, loss, params, 4)
        x = params
        for step, radius in enumerate(radii[1:], start=1):
            g, h = np.asarray(jax.grad(loss)(x)), np.asarray(jax.hessian(loss)(x))
            damping = np.linalg.norm(g) / (radius / 2 + 1e-8)
            x = x - np.linalg.solve(h + damping * np.eye(2), g)
            np.testing.assert_allclose(loss(x), losses[step], rtol=1e-13)


# Losses and radii of grad_norm_smooth (epfml/grad-norm-smooth@9f4ca00, src/methods.py), after as
# many steps, and the gradients that it took.


def rosenbrock_residuals(x):
    return jnp.stack([1.0 - x[0], 10.0 * (x[1] - x[0] ** 2)])


def rosenbrock():
    def loss(x):
        return jnp.sum(rosenbrock_residuals(x) ** 2)

    return optim.regularized_newton(), loss, jnp.array([-2.0, 2.0]), jax.hessian(loss)


def inexact_rosenbrock():
    """|u|^5 / 5, without the second derivatives of u."""

    def loss(x):
        return jnp.sum(rosenbrock_residuals(x) ** 2) ** 2.5 / 5

    def hessian_fn(x):
        u, jacobian = rosenbrock_residuals(x), jax.jacobian(rosenbrock_residuals)(x)
        square, slope = u @ u, u @ jacobian
        return square**1.5 * jacobian.T @ jacobian + 3 * square**0.5 * jnp.outer(slope, slope)

    return optim.regularized_newton(), loss, jnp.array([-2.0, 2.0]), hessian_fn


def norm_of(a):
    b = a.T @ a + 0.1 * np.eye(a.shape[1])
    return optim.Metric(lambda x: b @ x, functools.partial(jnp.linalg.solve, b))


def log_sum_exp():
    """Rows shifted so that the optimum is 0; Gauss-Newton with softmax weights; B = A'A + 0.1."""
    rng = np.random.RandomState(0)
    a, b = rng.uniform(-1, 1, (9, 6)), rng.uniform(-1, 1, 9)
    shifted = a - jax.nn.softmax(-b) @ a

    def loss(x):
        return jax.nn.logsumexp(shifted @ x - b)

    def hessian_fn(x):
        weights = jax.nn.softmax(shifted @ x - b)
        return lambda v: shifted.T @ (weights * (shifted @ v))

    return optim.regularized_newton(metric=norm_of(a)), loss, jnp.ones(6), hessian_fn


def fisher_equations():
    """|A x - b|^4 / 4 with its rank-one term alone."""
    rng = np.random.RandomState(1)
    a, b = rng.uniform(-1, 1, (8, 5)), rng.uniform(-1, 1, 8)

    def loss(x):
        return jnp.sum((a @ x - b) ** 2) ** 2 / 4

    def hessian_fn(x):
        return optim.RankOne(2.0, a.T @ (a @ x - b))

    tx = optim.regularized_newton(solve=optim.shifted_rank_one, metric=norm_of(a))
    return tx, loss, jnp.ones(5), hessian_fn


AUTHORS = {
    rosenbrock: (
        {
            1: (87.40302770515021, 2.0),
            4: (5.925895809520945, 2.0),
            10: (4.294923490296683, 0.5),
            20: (1.4123168588305917, 0.5),
            30: (0.1265514374448362, 0.25),
            40: (0.007360535602173882, 0.125),
        },
        84,
    ),
    inexact_rosenbrock: (
        {
            1: (200765.98151195515, 2.0),
            4: (3924.269179441922, 4.0),
            10: (17.56597569190491, 4.0),
            20: (4.547158493736335, 0.5),
            30: (0.1941816935928481, 0.5),
            40: (0.00123463444784904, 0.5),
        },
        82,
    ),
    log_sum_exp: (
        {1: (3.4280461569739678, 2.0), 2: (3.1015784867599336, 4.0), 4: (2.645256330667686, 16.0)},
        None,
    ),
    fisher_equations: (
        {
            1: (101.1897652171611, 2.0),
            2: (36.223180993789974, 4.0),
            4: (1.133685274780193, 16.0),
            8: (0.495419631212295, 0.0625),
            12: (0.4953849626863146, 0.00048828125),
        },
        36,
    ),
}


@pytest.mark.parametrize("problem", AUTHORS, ids=lambda problem: problem.__name__)
def test_it_walks_as_the_authors_code(problem):
    expected, evaluations = AUTHORS[problem]
    with jax.enable_x64(True):
        tx, loss, params, hessian_fn = problem()
        _, state, losses, radii = run(tx, loss, params, max(expected), hessian_fn)
        for step, (value, radius) in expected.items():
            # Roundings grow along the curved valley.
            np.testing.assert_allclose(losses[step], value, rtol=1e-9)
            assert float(radii[step]) == radius
    if evaluations is not None:  # the authors also count the gradient at the start
        assert int(state.evaluations) + 1 == evaluations


@pytest.mark.slow
def test_diagonal_products_and_matrix_agree():
    """One problem with a diagonal Hessian, by each way of solving."""

    def loss(params):
        return jnp.sum(params["w"] ** 4) + jnp.sum(params["b"] ** 2)

    def diagonal(params):
        return {"w": 12 * params["w"] ** 2, "b": jnp.full_like(params["b"], 2.0)}

    def product(params):
        return lambda v: jax.tree.map(jnp.multiply, diagonal(params), v)

    with jax.enable_x64(True):
        params = {"w": jnp.array([[1.0, -2.0]]), "b": jnp.array([3.0])}
        ways = (
            (optim.shifted_dense, product),
            (optim.shifted_diagonal, diagonal),
            (optim.shifted_by(functools.partial(optim.cg, tolerance=1e-13)), product),
        )
        ends = [
            run(optim.regularized_newton(solve=solve), loss, params, 3, hessian_fn)[0]
            for solve, hessian_fn in ways
        ]
        for end in ends[1:]:
            for ours, theirs in zip(jax.tree.leaves(end), jax.tree.leaves(ends[0])):
                np.testing.assert_allclose(ours, theirs, rtol=1e-10)


@pytest.mark.slow
def test_a_saddle_is_left_although_its_hessian_is_indefinite():
    """A try where H + lambda is not positive definite is rejected, and lambda grows."""

    def loss(params):
        return params[0] ** 2 - params[1] ** 2 + params[1] ** 4

    params = jnp.array([1.0, 0.1])
    tx = optim.regularized_newton(gamma=4.0)
    updates, state = one_step(tx, loss, params, jax.hessian(loss))
    assert int(state.tries) > 1 and bool(state.accepted) and np.isfinite(updates).all()
    end, *_ = run(tx, loss, params, 25)
    np.testing.assert_allclose(jnp.abs(end), [0.0, 0.5**0.5], atol=1e-3)


@pytest.mark.parametrize("most", [1, 7, 40])
def test_a_loss_that_never_falls_is_tried_so_often_and_left_where_it_was(most):
    """The gradient points the wrong way."""
    tx = optim.regularized_newton(max_tries=most, gamma=2.0**40)
    params = jnp.array([1.0])
    updates, state = tx.update(
        jnp.array([-1.0]),
        tx.init(params),
        params,
        value=half_square(params),
        value_fn=half_square,
        hessian_fn=lambda p: jnp.zeros((1, 1)),
    )
    assert updates.tolist() == [0.0] and not bool(state.accepted)
    assert int(state.tries) == int(state.evaluations) == most
    assert float(state.gamma) == 2.0 ** (40 - most)
    assert float(state.value) == 0.5 and state.grad.tolist() == [-1.0]


def test_the_default_is_40_tries_and_the_authors_constants():
    defaults = optim.regularized_newton.__kwdefaults__ or {}
    assert {k: defaults[k] for k in ("gamma", "eps", "gamma_min", "max_tries")} == {
        "gamma": 1.0,
        "eps": 1e-8,
        "gamma_min": 1e-9,
        "max_tries": 40,
    }
    assert defaults["solve"] is optim.shifted_dense


def test_the_radius_keeps_its_least():
    tx = optim.regularized_newton(gamma=1e-3, gamma_min=0.5)
    _, state = one_step(tx, half_square, jnp.array([1.0]), lambda p: lambda v: v)
    assert bool(state.accepted) and float(state.gamma) == 0.5


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_curvature_that_is_not_finite_moves_nothing(bad):
    tx = optim.regularized_newton()
    params = jnp.array([1.0, 2.0])
    updates, state = one_step(tx, half_square, params, lambda p: jnp.full((2, 2), bad))
    assert updates.tolist() == [0.0, 0.0] and not bool(state.accepted)
    assert float(state.gamma) == 1.0 and int(state.tries) == 40
    # The next, with a curvature, goes on as if nothing had been.
    updates, state = one_step(tx, half_square, params, lambda p: jnp.eye(2), state)
    assert bool(state.accepted) and int(state.tries) == 1 and int(state.evaluations) == 41


@pytest.mark.parametrize("scale", [0.0, jnp.nan, jnp.inf])
def test_a_gradient_that_is_zero_or_not_finite_is_not_tried(scale):
    tx = optim.regularized_newton()
    params = jnp.array([1.0, 2.0])
    updates, state = tx.update(
        jnp.full(2, scale),
        tx.init(params),
        params,
        value=half_square(params),
        value_fn=half_square,
        hessian_fn=lambda p: jnp.zeros((2, 2)),
    )
    assert updates.tolist() == [0.0, 0.0] and int(state.tries) == 0 and float(state.gamma) == 1.0


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("what", ["value", "gradient"])
def test_what_is_not_finite_is_not_kept_and_the_next_step_computes_it_anew(what, bad):
    tx, params = optim.regularized_newton(gamma=4.0), jnp.array([1.0, 2.0])
    state = tx.init(params)
    updates, state = tx.update(
        jnp.full(2, bad) if what == "gradient" else params,
        state,
        params,
        value=bad if what == "value" else half_square(params),
        value_fn=half_square,
        hessian_fn=lambda p: jnp.eye(2),
    )
    assert updates.tolist() == [0.0, 0.0] and int(state.tries) == 0 and float(state.gamma) == 4.0
    assert float(state.value) == jnp.inf and state.grad.tolist() == [0.0, 0.0]
    value, gradient = optax.value_and_grad_from_state(half_square)(params, state=state)
    assert float(value) == 2.5 and gradient.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("what", ["value", "gradient"])
def test_a_try_that_is_not_finite_is_rejected(what, bad):
    """Beyond -1/2, where the first two of the tries 4, 2, 1 from 1 end."""

    @jax.custom_jvp
    def broken(params):
        return jnp.where(params[0] < -0.5, bad if what == "value" else 0.0, half_square(params))

    @broken.defjvp
    def _(primals, tangents):
        slope = jnp.where(primals[0] < -0.5, bad if what == "gradient" else 0.0, primals[0])
        return broken(primals[0]), slope @ tangents[0]

    tx = optim.regularized_newton(gamma=4.0)
    updates, state = one_step(tx, broken, jnp.array([1.0]), lambda p: jnp.zeros((1, 1)))
    np.testing.assert_allclose(updates, [-1.0], rtol=1e-6)
    assert int(state.tries) == 3 and float(state.gamma) == 2.0 and float(state.value) == 0.0


def test_a_radius_far_too_large_shrinks_step_by_step_where_h_is_indefinite():
    """No try of the first step has a factor, yet a larger shift has one: no fault of H."""

    def loss(params):
        return params[0] ** 2 - params[1] ** 2 + params[1] ** 4

    params = jnp.array([1.0, 0.1])
    tx = optim.regularized_newton(gamma=2.0**60)
    updates, state = one_step(tx, loss, params, jax.hessian(loss))
    assert updates.tolist() == [0.0, 0.0] and float(state.gamma) == 2.0**20
    _, state = one_step(tx, loss, params, jax.hessian(loss), state)
    assert bool(state.accepted)


def test_quadratics_without_end_do_not_make_the_radius_infinite():
    """Every step is on another of them, and ends in its minimum without rounding."""
    tx = optim.regularized_newton(gamma=2.0**60)

    def step(carry, centre):
        params, state = carry

        def loss(p):
            return 0.5 * jnp.sum((p - centre) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(
            gradient, state, params, value=value, value_fn=loss, hessian_fn=lambda p: jnp.eye(2)
        )
        return (params + updates, state), state.accepted

    centres = jnp.stack([jnp.arange(80.0), -3 * jnp.arange(80.0) + 1], axis=1)
    params = jnp.ones(2)
    (params, state), accepted = jax.lax.scan(step, (params, tx.init(params)), centres)
    assert accepted.all() and 2.0**63 < float(state.gamma) <= 2.0**64
    assert (params == centres[-1]).all()


def test_a_step_into_nan_is_shortened():
    """The logarithm is not defined where the first try ends."""

    def loss(params):
        return params[0] - 0.1 * jnp.log(params[0])

    tx = optim.regularized_newton(gamma=8.0)
    updates, state = one_step(tx, loss, jnp.array([1.0]), lambda p: jnp.zeros((1, 1)))
    assert int(state.tries) == 5 and -1 < float(updates[0]) < 0


def test_bfloat16_parameters_are_judged_where_they_are_written():
    """In bfloat16 1 - 2^-10 is 1: the step that the radius allows is lost, and so are all less."""
    seen = []

    def loss(params):
        seen.append(params.dtype)
        return half_square(params.astype(jnp.float32))

    tx = optim.regularized_newton(gamma=2.0**-10)
    params = jnp.ones(1, jnp.bfloat16)
    updates, state = one_step(tx, loss, params, lambda p: jnp.zeros((1, 1), p.dtype))
    assert not bool(state.accepted) and int(state.tries) == 40
    assert updates.dtype == state.grad.dtype == jnp.float32
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}


def test_odd_leaves():
    """A parameter without gradient and an integer stay; H is the rest of the matrix."""

    def loss(params):
        mixed = params["a"] * params["frozen"] + params["scalar"]
        return 0.5 * jnp.sum(mixed**2) + jnp.sum(params["empty"])

    params = {
        "a": jnp.array([2.0]),
        "frozen": jnp.array([1.0]),
        "scalar": jnp.float32(1.0),
        "empty": jnp.zeros((0, 3)),
        "integer": jnp.array([0, 100]),
        "none": None,
    }
    gradient = jax.grad(loss, allow_int=True)(params)
    gradient["frozen"] = None

    def hessian_fn(params):
        slopes = {"a": params["frozen"][0], "frozen": params["a"][0], "scalar": 1.0}

        def product(v):
            assert v["none"] is None and v["integer"].dtype == jax.dtypes.float0
            total = sum(slope * jnp.sum(v[name]) for name, slope in slopes.items())
            given = {name: jnp.full(v[name].shape, slope * total) for name, slope in slopes.items()}
            return {**v, **given}

        return product

    tx = optim.regularized_newton(gamma=3 * 2**0.5)
    state = tx.init(params)
    updates, after = tx.update(
        gradient, state, params, value=loss(params), value_fn=loss, hessian_fn=hessian_fn
    )
    jax.tree.map(lambda new, old: None, after, state)  # raises where structures differ
    assert updates["frozen"] is None and updates["none"] is None
    assert updates["integer"].tolist() == [0, 0] and updates["empty"].shape == (0, 3)
    # g = (3, 3), lambda = 1, H = ones: (H + 1) d = -g has d = -1.
    np.testing.assert_allclose(updates["a"], [-1.0], rtol=1e-6)
    np.testing.assert_allclose(updates["scalar"], -1.0, rtol=1e-6)
    moved = optim.apply_updates(params, updates)
    assert moved["frozen"].tolist() == [1.0] and moved["integer"].tolist() == [0, 100]


def test_value_and_gradient_are_taken_from_the_state():
    """One gradient a try, and none beside it but at the start."""
    calls = 0

    def loss(params):
        def count(_):
            nonlocal calls
            calls += 1
            return np.float32(0)

        @jax.custom_vjp
        def counted(params):
            return half_square(params)

        def forward(params):
            shape = jax.ShapeDtypeStruct((), jnp.float32)
            return counted(params) + jax.pure_callback(count, shape, params), params

        counted.defvjp(forward, lambda params, slope: (slope * params,))
        return counted(params)

    _, state, *_ = run(
        optim.regularized_newton(gamma=4.0), loss, jnp.array([1.0]), 2, lambda p: jnp.zeros((1, 1))
    )
    jax.block_until_ready(state)
    assert calls == int(state.evaluations) + 1 > 2


def given(**changed):
    params = jnp.ones(2)
    kwargs = {
        "params": params,
        "value": 1.0,
        "value_fn": half_square,
        "hessian_fn": jax.hessian(half_square),
    }
    return {**kwargs, **changed}


@pytest.mark.parametrize("name", ["params", "value", "value_fn", "hessian_fn"])
def test_what_is_missing_is_named(name):
    tx = optim.regularized_newton()
    with pytest.raises(ValueError, match=f"regularized_newton: {name} is missing; pass tx.update"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), **given(**{name: None}))


def test_a_loss_that_is_a_vector_is_refused():
    tx = optim.regularized_newton()
    state = tx.init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"value_fn gives the shape \(2,\); accepted: a scalar"):
        tx.update(jnp.ones(2), state, **given(value_fn=lambda params: params**2))
    with pytest.raises(ValueError, match=r"value gives the shape \(2,\); accepted: a scalar"):
        tx.update(jnp.ones(2), state, **given(value=jnp.ones(2)))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("gamma", lambda x: optim.regularized_newton(gamma=x)),
        ("eps", lambda x: optim.regularized_newton(eps=x)),
        ("gamma_min", lambda x: optim.regularized_newton(gamma_min=x)),
    ],
)
def test_constants_have_to_be_positive(name, make):
    with pytest.raises(ValueError, match=rf"regularized_newton: {name} is 0.0; accepted: .* > 0"):
        make(0.0)


def test_there_has_to_be_a_try():
    with pytest.raises(ValueError, match="regularized_newton: max_tries is 0; accepted: .* >= 1"):
        optim.regularized_newton(max_tries=0)
