"""Every mode of differentiation, through a root and a fixed point, by three linear solves.

s = sinh(y) solves M(theta) s = c(theta), so that y is known in closed form and its second
derivatives are not zero. One solver has all there is to get right at once: y, the arguments and the
result are trees, one argument is an integer, a keyword is differentiated, and the solver's second
answer is an integer.
"""

import functools

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest

import bilevel
import optim

THETA, DIRECTION = np.array([0.3, -0.7]), np.array([1.0, 0.5])
BATCH = np.array([[0.3, -0.7], [0.6, 0.2]])
TURN = np.array([[0.3, 0.5, -0.2], [-0.4, 0.1, 0.6], [0.2, -0.1, -0.3]])
SOLVES = {
    "cg": functools.partial(optim.cg, tolerance=1e-14),
    "gmres": functools.partial(optim.gmres, tolerance=1e-14),
    "dense": optim.dense_solve,
}
JAXOPT_SOLVES = {
    "cg": functools.partial(jaxopt.linear_solve.solve_cg, tol=1e-14),
    "gmres": functools.partial(
        jaxopt.linear_solve.solve_gmres, tol=1e-14, solve_method="incremental"
    ),
    "normal_cg": functools.partial(jaxopt.linear_solve.solve_normal_cg, tol=1e-14),
}


def system(theta, symmetric):
    turn = jnp.asarray(TURN + TURN.T if symmetric else TURN)
    m = 1.5 * jnp.eye(3) + 0.2 * jnp.sin(theta[0]) * turn
    return m, jnp.array([jnp.cos(theta[1]), 0.3 * theta[0], theta[0] * theta[1]])


def join(y):
    return jnp.append(y["first"], y["last"])


def split(y):
    return {"first": y[:2], "last": y[2]}


def optimality(y, given, index, *, scale, symmetric):
    m, c = system(given["thetas"][index] * scale, symmetric)
    y = join(y)
    residual = m @ jnp.sinh(y) - c
    # With the factor it is the gradient of a function of y, and its Jacobian symmetric.
    return split(jnp.cosh(y) * residual if symmetric else residual)


def map_of(y, *args, **keywords):
    step = optimality(y, *args, **keywords)
    return jax.tree.map(lambda u, v: u - 0.5 * v, y, step)


def loss(y):
    return jnp.sum(y["first"] ** 2) + jnp.sin(y["last"])


def ours(kind, solve, closed_over=False):
    """theta -> loss of the solution, by the decorator."""
    symmetric = solve == "cg"
    options = {"symmetric": symmetric, "solve": SOLVES[solve], "has_aux": True}
    decorator = {"root": bilevel.custom_root, "fixed point": bilevel.custom_fixed_point}[kind]
    fn = {"root": optimality, "fixed point": map_of}[kind]

    def solver(init, *args, **keywords):
        def more(_, y):
            return map_of(y, *args, **keywords)

        return jax.lax.fori_loop(0, 60, more, init), jnp.int32(60)

    def run(theta):
        init = split(jnp.zeros(3))
        args = ({"thetas": jnp.stack([-theta, theta / 2])}, jnp.int32(1))
        keywords = {"scale": 1 + jnp.exp(0 * theta), "symmetric": symmetric}
        if closed_over:
            # The solver is given what it closes over without derivatives.
            values = jax.tree.map(jax.lax.stop_gradient, (args, keywords["scale"]))

            def found(y):
                return solver(y, *values[0], scale=values[1], symmetric=symmetric)

            y, count = decorator(lambda y: fn(y, *args, **keywords), **options)(found)(init)
        else:
            y, count = decorator(fn, **options)(solver)(init, *args, **keywords)
        return loss(y) * count / 60

    return run


def jaxopts(kind, solve, closed_over=None):
    """theta -> loss of the solution, by jaxopt's decorator; all arguments by position.

    What is closed over reaches the solver as it is ("live"), or without derivatives ("stopped").
    """
    symmetric = solve == "cg"
    options = {"solve": JAXOPT_SOLVES[solve], "has_aux": True}
    decorator, fn = {
        "root": (jaxopt.implicit_diff.custom_root, optimality),
        "fixed point": (jaxopt.implicit_diff.custom_fixed_point, map_of),
    }[kind]

    def conditions(y, given, index, scale):
        return fn(y, given, index, scale=scale, symmetric=symmetric)

    def solver(init, given, index, scale):
        def more(_, y):
            return map_of(y, given, index, scale=scale, symmetric=symmetric)

        return jax.lax.fori_loop(0, 60, more, init), jnp.int32(60)

    def run(theta):
        init = split(jnp.zeros(3))
        args = ({"thetas": jnp.stack([-theta, theta / 2])}, jnp.int32(1), 1 + jnp.exp(0 * theta))
        if closed_over:
            live = closed_over == "live"
            values = args if live else jax.tree.map(jax.lax.stop_gradient, args)
            decorated = decorator(lambda y: conditions(y, *args), **options)
            y, count = decorated(lambda y: solver(y, *values))(init)
        else:
            y, count = decorator(conditions, **options)(solver)(init, *args)
        return loss(y) * count / 60

    return run


def closed_form(symmetric):
    def run(theta):
        m, c = system(theta, symmetric)
        return loss(split(jnp.arcsinh(jnp.linalg.solve(m, c))))

    return run


MODES = {
    "value": lambda f: f,
    "grad": jax.grad,
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.asarray(DIRECTION),))[1],
    "linearize": lambda f: lambda x: jax.linearize(f, x)[1](jnp.asarray(DIRECTION)),
    "jacfwd": jax.jacfwd,
    "forward over reverse": jax.hessian,
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f)),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f)),
    "grad of jit": lambda f: jax.grad(jax.jit(f)),
    "grad of checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
}
BATCHED_MODES = {
    "vmap of grad": lambda f: jax.vmap(jax.grad(f)),
    "grad of vmap": lambda f: jax.grad(lambda xs: jnp.sum(jax.vmap(f)(xs))),
    "vmap of hessian": lambda f: jax.vmap(jax.hessian(f)),
    "scan of grad": lambda f: lambda xs: jax.lax.scan(lambda c, x: (c, jax.grad(f)(x)), 0, xs)[1],
    "grad of scan": lambda f: jax.grad(
        lambda xs: jax.lax.scan(lambda c, x: (c + f(x), None), 0.0, xs)[0]
    ),
}
ALL_MODES = {**MODES, **BATCHED_MODES}


@functools.cache
def expected(mode, symmetric):
    point = BATCH if mode in BATCHED_MODES else THETA
    return np.asarray(jax.jit(ALL_MODES[mode](closed_form(symmetric)))(jnp.asarray(point)))


def check(mode, function, symmetric, compile=True):
    point = BATCH if mode in BATCHED_MODES else THETA
    with jax.enable_x64(True):
        call = ALL_MODES[mode](function)
        out = (jax.jit(call) if compile else call)(jnp.asarray(point))
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, expected(mode, symmetric), rtol=1e-11, atol=1e-12)


def cases(modes, quick, solves=SOLVES):
    """All of (root, fixed point) x (solves) x (modes), slow but for those that `quick` names."""
    for kind in ("root", "fixed point"):
        for solve in solves:
            for mode in modes:
                marks = () if mode in quick.get((kind, solve), ()) else pytest.mark.slow
                yield pytest.param(kind, solve, mode, marks=marks)


LONG = ("reverse over reverse", "forward over forward", "vmap of hessian")
SOME = ("grad", "jvp", "vmap of grad")
QUICK = {
    ("root", "cg"): [mode for mode in ALL_MODES if mode not in LONG],
    ("root", "gmres"): SOME,
    ("fixed point", "dense"): SOME,
}
SOME_CLOSED_OVER = ("jvp", "grad of jit", "forward over reverse", "grad of vmap")


@pytest.mark.parametrize(("kind", "solve", "mode"), [*cases(ALL_MODES, QUICK)])
def test_every_mode_is_that_of_the_closed_form(kind, solve, mode):
    check(mode, ours(kind, solve), solve == "cg")


@pytest.mark.parametrize(
    ("kind", "solve", "mode"), [*cases(ALL_MODES, {("root", "cg"): SOME_CLOSED_OVER})]
)
def test_so_is_that_of_values_closed_over(kind, solve, mode):
    check(mode, ours(kind, solve, closed_over=True), solve == "cg")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["grad", "jvp", "forward over reverse", "vmap of grad"])
def test_and_without_compilation(mode):
    check(mode, ours("root", "gmres"), False, compile=False)


@pytest.mark.slow
def test_a_third_derivative():
    def third(f):
        return jax.jacfwd(jax.jacrev(jax.jacfwd(f)))

    with jax.enable_x64(True):
        theta = jnp.asarray(THETA)
        out = jax.jit(third(ours("root", "gmres")))(theta)
        exact = jax.jit(third(closed_form(False)))(theta)
        np.testing.assert_allclose(out, exact, rtol=1e-10, atol=1e-11)


DERIVATIVES = [mode for mode in ALL_MODES if mode != "value"]
JAXOPT_RIGHT = (
    "grad",
    "reverse over reverse",
    "grad of jit",
    "grad of checkpoint",
    "vmap of grad",
    "grad of vmap",
    "scan of grad",
    "grad of scan",
)
# Under jit, checkpoint and scan the same fault is told in another error.
CLOSED_OVER_ERRORS = "unexpected tracer|with respect to a closed-over value"


def test_the_counts_are_those_of_the_docstring():
    assert (len(DERIVATIVES), len(JAXOPT_RIGHT)) == (15, 8)
    assert set(JAXOPT_RIGHT) < set(DERIVATIVES)


def jaxopt_cases(quick):
    return cases(DERIVATIVES, {("root", "cg"): quick}, JAXOPT_SOLVES)


@pytest.mark.parametrize(("kind", "solve", "mode"), [*jaxopt_cases(DERIVATIVES)])
def test_jaxopt_has_reverse_modes_alone(kind, solve, mode):
    function = jaxopts(kind, solve)
    if mode in JAXOPT_RIGHT:
        check(mode, function, solve == "cg")
    else:
        with pytest.raises(TypeError, match=r"can't apply forward-mode autodiff \(jvp\)"):
            check(mode, function, solve == "cg")


@pytest.mark.parametrize(("kind", "solve", "mode"), [*jaxopt_cases(DERIVATIVES)])
def test_jaxopt_raises_on_values_closed_over(kind, solve, mode):
    # The check of keys, which few programs turn on, makes some of them zeros in place of an error.
    with jax.debug_key_reuse(False), pytest.raises(Exception, match=CLOSED_OVER_ERRORS):
        check(mode, jaxopts(kind, solve, "live"), solve == "cg")


@pytest.mark.parametrize(("kind", "solve", "mode"), [*jaxopt_cases(SOME)])
def test_jaxopt_silently_gives_zero_where_the_solver_had_them_stopped(kind, solve, mode):
    point = BATCH if mode in BATCHED_MODES else THETA
    with jax.enable_x64(True), jax.debug_key_reuse(False):
        out = jax.jit(ALL_MODES[mode](jaxopts(kind, solve, "stopped")))(jnp.asarray(point))
    assert not np.any(out)
    assert np.all(np.abs(expected(mode, solve == "cg")) > 1e-3)


def test_jaxopt_takes_no_keyword_that_has_no_position():
    run = jaxopt.implicit_diff.custom_root(lambda y, *, scale: y - scale)(
        lambda init, *, scale: init + scale
    )
    assert run(0.0, scale=2.0) == 2.0
    with pytest.raises(TypeError, match="could not be resolved"):
        jax.grad(lambda scale: run(0.0, scale=scale))(2.0)
    ours = bilevel.custom_root(lambda y, *, scale: y - scale)(lambda init, *, scale: init + scale)
    assert jax.grad(lambda scale: ours(0.0, scale=scale))(2.0) == 1.0
