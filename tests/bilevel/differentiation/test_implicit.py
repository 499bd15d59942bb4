"""Derivatives of solutions against closed forms and finite differences, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import bilevel
import optim

from .problems import diabetes, digits_in_two

tight_cg = functools.partial(optim.cg, tolerance=1e-13)


def ridge_objective(w, log_penalty, x, y):
    return jnp.mean((x @ w - y) ** 2) / 2 + jnp.exp(log_penalty) * jnp.sum(w**2) / 2


def test_ridge_on_diabetes_has_the_known_validation_loss_and_derivative():
    """Digits computed elsewhere, by the closed form and by finite differences of it."""
    with jax.enable_x64(True):
        x, y, x_validation, y_validation = map(jnp.asarray, diabetes())

        @bilevel.custom_argmin(ridge_objective, solve=tight_cg)
        def solver(init, log_penalty, x, y):
            def goes_on(w):
                return jnp.linalg.norm(jax.grad(ridge_objective)(w, log_penalty, x, y)) > 1e-11

            def descend(w):
                return w - jax.grad(ridge_objective)(w, log_penalty, x, y) / 3

            return jax.lax.while_loop(goes_on, descend, init)

        def validation_loss(log_penalty):
            w = solver(jnp.zeros(10), log_penalty, x, y)
            return jnp.mean((x_validation @ w - y_validation) ** 2)

        value, derivative = jax.jit(jax.value_and_grad(validation_loss))(1.0)
        np.testing.assert_allclose(value, 28571.122030, rtol=1e-10)
        np.testing.assert_allclose(derivative, 325.76257253, rtol=1e-10)
        np.testing.assert_allclose(jax.jit(jax.jacfwd(validation_loss))(1.0), derivative, rtol=1e-9)


@pytest.mark.parametrize("name", ["gmres", "bicgstab", "normal_cg", "neumann", "dense_solve"])
def test_a_fixed_point_whose_jacobian_is_not_symmetric(name):
    """y = tanh(W y + x) has dy/dx = (I - D W)^-1 D, D the slopes of tanh."""
    random = np.random.default_rng(0)
    weights = 0.4 * random.normal(size=(6, 6)) / 6**0.5
    with jax.enable_x64(True):

        def fn(y, x):
            return jnp.tanh(weights @ y + x)

        solve = functools.partial(getattr(optim, name), tolerance=1e-13)

        @bilevel.custom_fixed_point(fn, solve=solve)
        def solver(init, x):
            return jax.lax.fori_loop(0, 80, lambda _, y: fn(y, x), init)

        x = jnp.asarray(random.normal(size=6))
        y = solver(jnp.zeros(6), x)
        slopes = np.diag(1 - np.asarray(y) ** 2)
        exact = np.linalg.solve(np.eye(6) - slopes @ weights, slopes)
        assert abs(exact - exact.T).max() > 0.1
        for mode in (jax.jacfwd, jax.jacrev):
            jacobian = jax.jit(mode(lambda x: solver(jnp.zeros(6), x)))(x)
            np.testing.assert_allclose(jacobian, exact, rtol=1e-10, atol=1e-11)


def logistic_objective(w, log_penalties, x, y):
    return jnp.mean(jax.nn.softplus(-y * (x @ w))) + jnp.sum(jnp.exp(log_penalties) * w**2) / 2


value_and_gradient = jax.jit(jax.value_and_grad(logistic_objective))
hessian = jax.jit(jax.hessian(logistic_objective))


def minimise_by_scipy(w, *args):
    """A solver that no transformation can trace: it needs numbers."""

    def call(w):
        return [np.asarray(v) for v in value_and_gradient(w, *args)]

    found = scipy.optimize.minimize(
        call, np.asarray(w), jac=True, method="BFGS", options={"gtol": 1e-9}
    )
    # Newton's steps reach the digits that BFGS leaves.
    w = jnp.asarray(found.x)
    for _ in range(2):
        w = w - jnp.linalg.solve(hessian(w, *args), value_and_gradient(w, *args)[1])
    assert float(jnp.linalg.norm(value_and_gradient(w, *args)[1])) < 1e-13
    return w


@pytest.mark.slow
def test_logistic_regression_by_a_solver_that_cannot_be_traced_against_finite_differences():
    with jax.enable_x64(True):
        x, y, x_validation, y_validation = map(jnp.asarray, digits_in_two(features=4))
        solver = bilevel.custom_argmin(logistic_objective, solve=tight_cg)(minimise_by_scipy)

        def validation_loss(log_penalties):
            w = solver(jnp.zeros(4), log_penalties, x, y)
            return jnp.mean(jax.nn.softplus(-y_validation * (x_validation @ w)))

        def difference(function):
            # Of second order: its error is about 1e-10 from the third derivative, and 1e-11 from
            # the rounding of the loss.
            return (function(at + 1e-5 * along) - function(at - 1e-5 * along)) / 2e-5

        at, along = jnp.array([-3.0, -2.0, -4.0, -3.0]), jnp.array([1.0, -0.5, 0.3, 0.8])
        gradient = jax.grad(validation_loss)
        (_loss, g), (slope, curved) = jax.jvp(
            lambda at: (validation_loss(at), gradient(at)), (at,), (along,)
        )
        assert abs(slope) > 1e-4 and jnp.linalg.norm(curved) > 1e-4
        np.testing.assert_allclose(slope, difference(validation_loss), atol=1e-9)
        np.testing.assert_allclose(slope, g @ along, rtol=1e-9)
        np.testing.assert_allclose(curved, difference(gradient), atol=1e-9)


def quadratic(y, x, scale=1.0):
    return jnp.sum(scale * y**2) / 2 - jnp.sum(x * y)


def test_the_start_has_no_derivative_and_keywords_have_theirs():
    solver = bilevel.custom_argmin(quadratic)(lambda init, x, scale: x / scale + 0 * init)
    x = jnp.array([1.0, 2.0])
    by_init, by_x = jax.grad(lambda *args: solver(*args, scale=4.0).sum(), argnums=(0, 1))(x, x)
    assert (by_init == 0).all()
    np.testing.assert_allclose(by_x, 1 / 4)
    by_scale = jax.grad(lambda s: solver(x, x, scale=s).sum())(4.0)
    np.testing.assert_allclose(by_scale, -3 / 16)


def test_a_keyword_reaches_a_solver_that_needs_numbers():
    def solver(init, x, scale):
        return jnp.asarray(x / float(scale))

    decorated = bilevel.custom_argmin(quadratic)(solver)
    np.testing.assert_allclose(jax.grad(lambda s: decorated(0.0, 3.0, scale=s))(4.0), -3 / 16)


def test_the_second_answer_is_returned_without_derivative():
    def solver(init, x):
        return x, {"steps": 7, "loss": x**2, "name": "exact"}

    decorated = bilevel.custom_argmin(quadratic, has_aux=True)(solver)
    y, aux = decorated(0.0, 3.0)
    assert y == 3 and aux == {"steps": 7, "loss": 9.0, "name": "exact"}
    assert jax.grad(lambda x: decorated(0.0, x)[1]["loss"])(3.0) == 0
    np.testing.assert_allclose(jax.grad(lambda x: decorated(0.0, x)[0])(3.0), 1)


def test_a_key_is_an_argument_like_any_other():
    """The key goes into F twice, with the same numbers, which the checker of keys cannot know."""

    def optimality(y, x, key):
        return y - x * jax.random.uniform(key)

    with jax.debug_key_reuse(False):
        key = jax.random.key(0)
        solver = bilevel.custom_root(optimality)(lambda init, x, key: x * jax.random.uniform(key))
        slope = jax.jit(jax.grad(solver, argnums=1))(0.0, 3.0, key)
        np.testing.assert_allclose(slope, jax.random.uniform(key))


def test_attach_root_leaves_the_value_and_drops_its_derivative():
    y = jnp.array([0.9, 1.1])
    out = bilevel.attach_root(lambda y, x: y - 3 * x, y, jnp.ones(2))
    assert (out == y).all() and out.dtype == y.dtype
    by_y = jax.grad(lambda y: bilevel.attach_root(lambda y: 2 * y, y).sum())(y)
    assert (by_y == 0).all()
    xs = jnp.arange(6.0).reshape(3, 2)

    def attached(x):
        return bilevel.attach_root(lambda y, x: y - x**2, y, x).sum()

    np.testing.assert_allclose(jax.vmap(jax.grad(attached))(xs), 2 * xs)


@pytest.mark.slow
def test_a_minimiser_inside_a_minimiser():
    """z = x y, then y the least of (z - 1)^2 / 2 + (y - x)^2 / 2: y = 2 x / (1 + x^2)."""
    inner = bilevel.custom_argmin(lambda z, x, y: (z - x * y) ** 2)(lambda init, x, y: x * y)

    def middle(y, x):
        return (inner(0.0, x, y) - 1) ** 2 / 2 + (y - x) ** 2 / 2

    outer = bilevel.custom_argmin(middle)(lambda init, x: 2 * x / (1 + x**2))

    def exact(x):
        return 2 * x / (1 + x**2)

    for mode in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(
            jax.jit(mode(lambda x: outer(0.0, x)))(0.5), mode(exact)(0.5), rtol=1e-5
        )


def not_symmetric():
    random = np.random.default_rng(3)
    return np.diag(np.geomspace(1, 1e3, 20)) + 0.1 * random.normal(size=(20, 20))


@pytest.mark.slow
def test_the_preconditioner_is_built_at_the_solution_and_transposed():
    """With the inverse at the solution one step is enough, and without it one is not."""
    a, calls = not_symmetric(), []

    def optimality(y, x):
        return a @ y + y**3 - x

    def inverse(y, x):
        calls.append(np.asarray(x))
        return functools.partial(jnp.matmul, jnp.linalg.inv(jax.jacfwd(optimality)(y, x)))

    def jacobian(**options):
        return lambda mode: mode(
            lambda x: bilevel.attach_root(
                optimality, y, x, solve=functools.partial(optim.gmres, max_steps=1), **options
            )
        )(optimality(y, 0.0))

    with jax.enable_x64(True):
        y = jnp.linspace(-1.0, 1.0, 20)
        exact = np.linalg.inv(a + np.diag(3 * np.linspace(-1, 1, 20) ** 2))
        for mode in (jax.jacfwd, jax.jacrev):
            out = jacobian(preconditioner=inverse)(mode)
            np.testing.assert_allclose(out, exact, rtol=1e-9, atol=1e-11)
            assert abs(jacobian()(mode) - exact).max() > 1e-2
    # Once a mode, with numbers: what carried a derivative could not have been kept.
    assert len(calls) == 2


@pytest.mark.slow
def test_ridge_is_added_to_the_diagonal_for_the_derivative_alone():
    singular = jnp.array([[1.0, 1.0], [1.0, 1.0]])

    def first(x, **options):
        y = bilevel.attach_root(lambda y: singular @ y - x, jnp.ones(2) / 2, **options)
        return y[0]

    x = jnp.array([1.0, 1.0])
    expected = jnp.linalg.inv(singular + 0.5 * jnp.eye(2))[0]
    for symmetric in (True, False):
        call = functools.partial(first, ridge=0.5, symmetric=symmetric)
        assert call(x) == 0.5
        np.testing.assert_allclose(jax.grad(call)(x), expected, rtol=1e-5)
        np.testing.assert_allclose(jax.jacfwd(call)(x), expected, rtol=1e-5)
    assert jnp.isnan(jax.grad(functools.partial(first, on_failure="nan"))(x)).all()


DIAGONAL = np.geomspace(1.0, 100.0, 10).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_solve_that_did_not_converge_shows_where_asked(symmetric):
    method = optim.cg if symmetric else optim.gmres

    @functools.partial(jax.jit, static_argnames=("steps", "on_failure"))
    def derivatives(x, steps, on_failure):
        """In forward and in reverse mode, and the value."""
        options = {"symmetric": symmetric, "on_failure": on_failure}
        options["solve"] = functools.partial(method, max_steps=steps)

        def attached(x):
            return bilevel.attach_root(lambda y: DIAGONAL * y - x, x, **options)

        value, tangent = jax.jvp(attached, (x,), (x,))
        return tangent, jax.grad(lambda x: attached(x).sum())(x), value

    x = jnp.ones(10)
    for ignored in derivatives(x, 3, "ignore")[:2]:
        assert jnp.isfinite(ignored).all() and abs(ignored - 1 / DIAGONAL).max() > 1e-2
    *poisoned, value = derivatives(x, 3, "nan")
    assert jnp.isnan(jnp.stack(poisoned)).all() and (value == x).all()
    for enough in derivatives(x, 30, "nan")[:2]:
        np.testing.assert_allclose(enough, 1 / DIAGONAL, atol=1e-4)


@pytest.mark.parametrize("mode", ["forward", "reverse", "of each"])
def test_a_solve_that_did_not_converge_warns_where_asked(mode):
    """The host is told, under jit and under vmap; a solve that converged says nothing."""

    def attached(x, steps):
        solve = functools.partial(optim.cg, max_steps=steps)
        options = {"symmetric": True, "solve": solve, "on_failure": "warn"}
        return x @ bilevel.attach_root(lambda y: DIAGONAL * y - x, jnp.ones(10), **options)

    gradient = jax.grad(attached)
    if mode == "forward":
        gradient = lambda x, steps: jax.jvp(lambda x: attached(x, steps), (x,), (x,))[1]  # noqa: E731
    if mode == "of each":
        gradient = jax.vmap(jax.grad(attached), (0, None))
    call = jax.jit(gradient)
    x = jnp.ones((2, 10)) if mode == "of each" else jnp.ones(10)
    with pytest.warns(
        bilevel.NotConvergedWarning, match=r"attach_root: the linear solve .* of [1-9]\.\de-?"
    ) as told:
        jax.block_until_ready(call(x, 3))
        jax.effects_barrier()
    assert len(told) == (2 if mode == "of each" else 1)
    jax.block_until_ready(call(x, 30))
    jax.effects_barrier()


def test_a_solve_may_bring_a_start():
    """From the solution no step is needed, in forward and in reverse mode."""

    @jax.jit
    def derivatives(x, init):
        solve = functools.partial(optim.cg, init=init, max_steps=1)
        options = {"symmetric": True, "solve": solve}

        def attached(x):
            return bilevel.attach_root(lambda y: DIAGONAL * y - x, x, **options)

        return jax.jvp(attached, (x,), (x,))[1], jax.grad(lambda x: attached(x).sum())(x)

    for started in derivatives(jnp.ones(10), 1 / jnp.asarray(DIAGONAL)):
        np.testing.assert_allclose(started, 1 / DIAGONAL, rtol=1e-6)
    for cold in derivatives(jnp.ones(10), jnp.zeros(10)):
        assert abs(cold - 1 / DIAGONAL).max() > 1e-2


def test_in_float32_at_a_condition_of_1e4_what_is_not_nan_has_the_residual_it_claims():
    random = np.random.default_rng(1)
    q = np.linalg.qr(random.normal(size=(30, 30)))[0]
    a = ((q * np.geomspace(1e-4, 1, 30)) @ q.T).astype(np.float32)
    weights = random.normal(size=30).astype(np.float32)

    @jax.jit
    def derivative(tolerance):
        solve = functools.partial(optim.cg, tolerance=tolerance)
        options = {"symmetric": True, "on_failure": "nan", "solve": solve}
        zeros = jnp.zeros(30)

        def attached(x):
            return bilevel.attach_root(lambda y: a @ y - x, zeros, **options)

        return jax.grad(lambda x: weights @ attached(x))(zeros)

    v = np.asarray(derivative(3e-3), np.float64)
    residual = np.linalg.norm(weights - a.astype(np.float64) @ v) / np.linalg.norm(weights)
    # It was judged in float32, where A v is rounded by 6e-8 |A| |v|, and |v| is 1e4 |weights|.
    assert residual < 3e-3 + 6e-4
    assert jnp.isnan(derivative(1e-7)).all()


def test_bfloat16_keeps_its_dtype():
    x = jnp.ones(3, jnp.bfloat16)
    gradient = jax.grad(
        lambda x: bilevel.attach_root(lambda y: 4 * y - x.astype(jnp.float32), x / 4).sum()
    )(x)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(jnp.float32), 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bilevel.attach_root(lambda y: y, 1j),
            r"attach_root: y is of complex64; accepted: real floats\.",
        ),
        (
            lambda: bilevel.attach_root(lambda y: y, {"a": jnp.ones(2), "n": 3}),
            r"attach_root: y at 'n' is of int32; accepted: real floats\.",
        ),
        (
            lambda: bilevel.attach_root(lambda y: [y["a"]], {"a": jnp.ones(2)}),
            r"attach_root: optimality_fn gives PyTreeDef\(\[\*\]\); accepted: the structure of y, "
            r"PyTreeDef\({'a': \*}\)\.",
        ),
        (
            lambda: bilevel.attach_root(lambda y: {"a": y["a"].sum()}, {"a": jnp.ones(2)}),
            r"attach_root: optimality_fn gives float32\[\] at 'a'; accepted: a float of the shape "
            r"that y has, \[2\]\.",
        ),
        (
            lambda: bilevel.attach_root(lambda y: y * 1j, 1.0),
            r"attach_root: optimality_fn gives complex64\[\]; accepted: a float of the shape",
        ),
        (
            lambda: bilevel.attach_root(lambda y: y, 1.0, ridge=-1.0),
            r"attach_root: ridge is -1\.0; accepted: ridge >= 0\.",
        ),
        (
            lambda: bilevel.attach_root(lambda y: y, 1.0, on_failure="raise"),
            r"attach_root: on_failure is 'raise'; accepted: ignore, nan, warn\.",
        ),
        (
            lambda: bilevel.custom_fixed_point(lambda y: (y,))(lambda init: init)(1.0),
            r"custom_fixed_point: fn gives PyTreeDef\(\(\*,\)\); accepted: the structure of y, ",
        ),
    ],
)
def test_errors_name_the_argument_the_value_and_what_is_accepted(call, message):
    with pytest.raises(ValueError, match=message):
        call()
