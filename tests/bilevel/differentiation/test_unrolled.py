"""Unrolled derivatives against closed forms, each other and the implicit one, and their memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
import optim

from ..derivatives import assert_derivatives
from .problems import digits_in_two

OPTIONS = [{}, {"checkpoint_every": 7}, {"mode": "forward"}]


def curved(options, num_steps=7):
    """Damped steps of coupled trees, whose number enters; init is differentiated as well."""

    @jax.jit
    def end(x, y):
        def step(y, t):
            pull = jnp.tanh(x["w"] @ y["a"]) + x["c"] * y["b"] / (1.0 + t)
            return {"a": 0.7 * y["a"] + 0.3 * pull, "b": jnp.sin(y["b"] + x["c"] * y["a"][0])}

        return bilevel.unroll(step, y, num_steps, **options)

    return end


X = {"w": np.array([[0.5, -0.2], [0.3, 0.4]]), "c": np.array(0.7)}
Y = {"a": np.array([1.0, -0.5]), "b": np.array(0.3)}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_derivatives_in_every_mode_and_twice(options):
    assert_derivatives(curved(options), X, Y, twice="checkpoint_every" not in options)


def quadratic_step(x):
    """Gradient descent on sum(curvatures y^2) / 2 - x sum(y), from zeros."""
    curvatures = jnp.array([1.0, 3.0])
    return lambda y, t: y - 0.25 * (curvatures * y - x)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("last", [9, 3, 0])
def test_truncated_is_the_geometric_series_of_the_last_steps(mode, last):
    """dy/dx = 1/4 (1 + b + ... + b^(K-1)) with b = 1 - curvature / 4."""
    b = 1 - np.array([1.0, 3.0]) / 4
    with jax.enable_x64(True):

        @jax.jit
        def end(x):
            return bilevel.unroll(quadratic_step(x), jnp.zeros(2), 6, mode=mode, last=last)

        y, slope = jax.jvp(end, (2.0,), (1.0,))
        terms = min(last, 6)
        np.testing.assert_allclose(slope, sum((b**k for k in range(terms)), np.zeros(2)) / 4)
        np.testing.assert_allclose(y, sum(b**k for k in range(6)) / 2)
        pulled = jax.grad(lambda x: end(x) @ jnp.array([1.0, 10.0]))(2.0)
        np.testing.assert_allclose(pulled, slope @ np.array([1.0, 10.0]), atol=1e-15)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_what_is_closed_over_may_be_traced_integers_and_the_state_of_an_optimizer(mode):
    """Under grad of jit the index is a tracer that must not outlive its trace."""
    optimizer = optax.adam(0.1)

    @jax.jit
    def end(x, index):
        def step(carry, t):
            y, state = carry
            updates, state = optimizer.update(y - x[index] * jnp.cos(y), state)
            return y + updates, state

        y, state = bilevel.unroll(step, (1.0, optimizer.init(1.0)), 5, mode=mode)
        return y, state[0].count

    x, index = jnp.array([0.3, 0.9]), jnp.int32(1)
    with jax.enable_x64(True):
        x = x.astype(jnp.float64)
        (_, count), pull = jax.vjp(lambda x: end(x, index), x)
        assert count == 5
        slope = pull((1.0, np.zeros((), jax.dtypes.float0)))[0]
        ends = [end(x + jnp.array([0.0, h]), index)[0] for h in (1e-6, -1e-6)]
        np.testing.assert_allclose(slope, [0, (ends[0] - ends[1]) / 2e-6], atol=1e-8)
        each = jax.vmap(jax.grad(lambda x, i: end(x, i)[0]), (None, 0))(x, jnp.arange(2))
        np.testing.assert_allclose(each[1], slope, atol=1e-12)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_bfloat16_and_no_step(mode):
    x = jnp.bfloat16(2.0)
    zero = jnp.zeros((), jnp.bfloat16)
    slope = jax.grad(lambda x: bilevel.unroll(lambda y, t: (x + y) / 2, zero, 4, mode=mode))(x)
    assert slope.dtype == jnp.bfloat16 and slope == 1 - 1 / 16
    assert bilevel.unroll(lambda y, t: y / 0, 3.0, 0, mode=mode) == 3


def test_forward_mode_runs_no_direction_for_what_is_not_differentiated():
    """The data are closed over and traced, and only the two numbers of x have a tangent."""

    def loss(x, data):
        step = lambda y, t: y - 0.1 * (y - x[0] * data - x[1])  # noqa: E731
        return jnp.sum(bilevel.unroll(step, jnp.zeros(500), 4, mode="forward") ** 2)

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones(2), jnp.ones(500)))
    assert "f32[2,500]" in jaxpr and "f32[502" not in jaxpr and "f32[500,500" not in jaxpr


def memory(how, num_steps):
    """Bytes of temporaries for the gradient by a penalty through steps of gradient descent."""
    x = jnp.ones((256, 32))

    def inner(penalty, w, batch):
        return jnp.mean((jnp.tanh(x @ w) - 1) ** 2) + jnp.exp(penalty) * jnp.sum(w**2)

    problem = bilevel.BilevelProblem(lambda penalty, w, batch: jnp.sum(w), inner)
    call = functools.partial(
        bilevel.unrolled_hypergradient, problem, optimizer=optax.sgd(0.1), num_steps=num_steps
    )
    compiled = jax.jit(functools.partial(call, **how)).lower(0.0, jnp.ones(32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_of_unrolled_checkpointed_forward_and_implicit():
    """All T states and what they keep; about the root of T of them; none."""
    unrolled = [memory({"checkpoint_every": 1000}, steps) for steps in (10, 100, 1000)]
    checkpointed = [memory({}, steps) for steps in (10, 100, 1000)]
    forward = [memory({"mode": "forward"}, steps) for steps in (10, 1000)]
    implicit = [memory({"mode": "implicit"}, steps) for steps in (10, 1000)]
    print("bytes at 10, 100, 1000 steps:", unrolled, checkpointed, forward, implicit)
    # In proportion to the steps, above what one step needs.
    assert unrolled[2] - unrolled[1] > 9 * (unrolled[1] - unrolled[0]) > 100_000
    # Ten times the steps, the root of ten times the memory, up to the rounding of the root.
    assert checkpointed[2] - checkpointed[1] < 4 * (checkpointed[1] - checkpointed[0])
    assert unrolled[2] > 10 * checkpointed[2] > 15 * max(forward[1], implicit[1])
    # Flat, but for the numbers of the steps.
    for flat in (forward, implicit):
        assert flat[1] - flat[0] < 5 * 1000


def digits_problem():
    """Logistic regression on 8 pixels, with the logarithm of a penalty for each."""
    x, y, x_validation, y_validation = map(jnp.asarray, digits_in_two(8))

    def loss(w, x, y):
        return jnp.mean(jax.nn.softplus(-y * (x @ w)))

    problem = bilevel.BilevelProblem(
        outer=lambda penalties, w, batch: loss(w, *batch),
        inner=lambda penalties, w, batch: loss(w, *batch) + jnp.sum(jnp.exp(penalties) * w**2) / 2,
    )
    return problem, bilevel.BilevelBatch((x_validation, y_validation), (x, y))


@pytest.mark.slow
def test_one_word_chooses_between_the_steps_and_the_minimiser():
    """With enough steps all three agree; with few, the first two do."""
    with jax.enable_x64(True):
        problem, batch = digits_problem()
        penalties, w = jnp.linspace(-3.0, -1.0, 8), jnp.zeros(8)

        @functools.partial(jax.jit, static_argnames=("num_steps", "mode", "last"))
        def call(num_steps, mode, last=None):
            return bilevel.unrolled_hypergradient(
                problem,
                penalties,
                w,
                None,
                batch,
                optimizer=optax.sgd(1.0),
                num_steps=num_steps,
                mode=mode,
                last=last,
                **({"solve": optim.dense_solve} if mode == "implicit" else {}),
            )

        few = [call(10, mode) for mode in ("reverse", "forward", "implicit")]
        many = [call(1000, mode) for mode in ("forward", "implicit")]
        np.testing.assert_allclose(few[0][0], few[1][0], rtol=1e-12)
        assert np.linalg.norm(few[0][0] - few[2][0]) > 1e-2 * np.linalg.norm(few[2][0])
        gradient, w_end, _, info = many[0]
        np.testing.assert_allclose(gradient, many[1][0], rtol=1e-10)
        np.testing.assert_allclose(w_end, many[1][1])
        np.testing.assert_allclose(info.value, many[1][3].value)
        assert info.inner_residual < 1e-12 and jnp.isnan(info.bound)
        assert (few[0][3].products, few[1][3].products) == (10, 80)
        assert (few[0][2].v == 0).all() and (few[2][2].v != 0).all()
        gradient, *_, info = call(1000, "reverse", last=400)
        np.testing.assert_allclose(gradient, many[1][0], rtol=1e-6)
        assert info.solve.iterations == 400


def test_truncated_at_the_minimiser_is_the_neumann_series():
    with jax.enable_x64(True):
        problem = bilevel.BilevelProblem(
            outer=lambda x, y, batch: jnp.sum(jnp.array([1.0, 2.0]) * y),
            inner=lambda x, y, data: jnp.sum(jnp.array([1.0, 4.0]) * y**2) / 2 - x @ y,
        )
        x = jnp.array([1.0, 2.0])
        y = x / jnp.array([1.0, 4.0])
        ours, y_end, state, _ = bilevel.unrolled_hypergradient(
            problem, x, y, optimizer=optax.sgd(0.2), num_steps=5
        )
        series = functools.partial(optim.neumann, step=0.2, max_steps=5, tolerance=0.0)
        theirs, _, _ = jax.jit(functools.partial(bilevel.hypergradient, problem, solve=series))(
            x, y
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        np.testing.assert_allclose(y_end, y)
        assert (state.v == 0).all()


def call_unroll(**options):
    return lambda: bilevel.unroll(lambda y, t: y, 1.0, 3, **options)


def call_hypergradient(**options):
    problem = bilevel.BilevelProblem(lambda x, y, batch: y, lambda x, y, batch: (y - x) ** 2)
    return lambda: bilevel.unrolled_hypergradient(
        problem, 1.0, options.pop("y", 1.0), optimizer=optax.sgd(0.1), num_steps=2, **options
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (call_unroll(mode="both"), r"unroll: mode is 'both'; accepted: reverse, forward\."),
        (call_unroll(last=-1), r"unroll: last is -1; accepted: last >= 0\."),
        (
            call_unroll(checkpoint_every=0),
            r"unroll: checkpoint_every is 0; accepted: checkpoint_every >= 1\.",
        ),
        (
            call_unroll(checkpoint_every=2, mode="forward"),
            r"unroll: checkpoint_every is 2 in forward mode, which keeps no states; accepted: N",
        ),
        (
            lambda: bilevel.unroll(lambda y, t: y, 1.0, -1),
            r"unroll: num_steps is -1; accepted: num_steps >= 0\.",
        ),
        (
            lambda: bilevel.unroll(lambda y, t: (y["a"],), {"a": jnp.ones(2)}, 3),
            r"unroll: step_fn gives \('float32\[2\]',\); accepted: what init is, "
            r"{'a': 'float32\[2\]'}\.",
        ),
        (
            lambda: bilevel.unroll(lambda y, t: y / 2, 1, 3),
            r"unroll: step_fn gives float32\[\]; accepted: what init is, int32\[\]\.",
        ),
        (
            call_hypergradient(mode="backward"),
            r"unrolled_hypergradient: mode is 'backward'; accepted: reverse, forward, implicit\.",
        ),
        (
            call_hypergradient(mode="implicit", last=3),
            r"unrolled_hypergradient: mode is 'implicit' with checkpoint_every None and last 3; "
            r"accepted: None for both\.",
        ),
        (
            call_hypergradient(solve=optim.cg),
            r"unrolled_hypergradient: mode is 'reverse' with solve; accepted: the options of ",
        ),
        (
            call_hypergradient(y=1j),
            r"unrolled_hypergradient: y is of complex64; accepted: real floats\.",
        ),
    ],
)
def test_errors_name_the_argument_the_value_and_what_is_accepted(call, message):
    with pytest.raises(ValueError, match=message):
        call()
