"""What holds for every linear solve: one table over solvers, condition numbers and kinds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim
from optim.solvers import linear

from .systems import KRYLOV, SOLVERS, matrix, right_hand_side, solved

CONDITIONS = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
TOLERANCE = 1e-6
# The largest condition that each solves within its 1000 steps, in float64, by kind of matrix.
REACH = {
    ("cg", "definite"): 1e6,
    ("minres", "definite"): 1e6,
    ("minres", "indefinite"): 1e4,
    ("gmres", "definite"): 1e6,
    ("gmres", "indefinite"): 1e6,
    ("gmres", "nonsymmetric"): 1e6,
    ("bicgstab", "definite"): 1e6,
    ("bicgstab", "nonsymmetric"): 1e6,
    ("normal_cg", "definite"): 1e2,
    ("normal_cg", "indefinite"): 1e2,
    ("normal_cg", "nonsymmetric"): 1e2,
    ("neumann", "definite"): 1e2,
    ("dense_solve", "definite"): 1e6,
    ("dense_solve", "indefinite"): 1e6,
    ("dense_solve", "nonsymmetric"): 1e6,
}
OPTIONS = {"gmres": {"restart": 40}, "neumann": {"step": 1.9}}
PRODUCTS = {"bicgstab": 2, "normal_cg": 2, "neumann": 0, "dense_solve": 40}


@functools.cache
def over_conditions(solver):
    """Compiled once for all kinds: one system a condition number, side by side."""
    call = solved(solver, tolerance=TOLERANCE, **OPTIONS.get(solver, {}))
    return jax.jit(jax.vmap(call, in_axes=(0, None)))


@pytest.mark.parametrize(("solver", "kind"), REACH)
def test_over_condition_numbers(solver, kind):
    """What is claimed is true, and what can be solved is."""
    a = np.stack([matrix(kind, condition) for condition in CONDITIONS])
    b = right_hand_side()
    with jax.enable_x64(True):
        x, info = jax.tree.map(np.asarray, over_conditions(solver)(jnp.asarray(a), jnp.asarray(b)))
    residual = np.linalg.norm(b - np.einsum("cij,cj->ci", a, x), axis=1)
    # Both are rounded as A x is.
    scale = np.finfo(float).eps * (np.linalg.norm(b) + np.linalg.norm(x, axis=1))
    assert (np.abs(info.residual - residual) < 100 * scale).all()
    small = residual <= TOLERANCE * np.linalg.norm(b)
    assert (info.converged == small).all()
    reached = np.array(CONDITIONS) <= REACH[solver, kind]
    assert info.converged[reached].all()
    truth = np.linalg.solve(a, b)
    error = np.linalg.norm(x - truth, axis=1) / np.linalg.norm(truth, axis=1)
    assert (error <= TOLERANCE * np.array(CONDITIONS) + 1e-9)[reached].all()
    assert (info.iterations[~small] >= 1000).all()
    cycles = info.products - PRODUCTS.get(solver, 1) * info.iterations
    if solver == "neumann":
        assert (info.products == info.iterations).all()
    else:
        assert ((cycles >= 1) & (cycles <= 3)).all()


@pytest.mark.parametrize("solver", KRYLOV)
def test_a_batch_reports_each_member_as_if_alone(solver):
    # Well conditioned: a batch rounds products otherwise, which long runs of steps magnify.
    a, b = matrix("definite", 2), right_hand_side()
    columns = np.stack([b, 0 * b, a @ np.ones(40), np.linalg.eigh(a)[1][:, 0], np.nan * b])
    call = solved(solver, tolerance=TOLERANCE)
    with jax.enable_x64(True):
        a = jnp.asarray(a)
        x, info = jax.jit(jax.vmap(call, (None, 0)))(a, jnp.asarray(columns))
        for i, column in enumerate(columns):
            alone, own = call(a, jnp.asarray(column))
            np.testing.assert_allclose(x[i], alone, rtol=1e-9, atol=1e-12)
            assert own.converged == info.converged[i] == (i < 4)
            assert own.iterations == info.iterations[i] and own.products == info.products[i]
        assert info.iterations[1] == info.products[1] == info.iterations[4] == 0
        assert info.iterations[3] == 1  # an eigenvector is its own solution


def tree_system():
    """An operator on a tree with a scalar, an empty leaf and a nested one."""
    a = jnp.asarray(matrix("definite", 10, 8), jnp.float32)
    b = {
        "w": jnp.arange(6.0).reshape(2, 3),
        "deep": [jnp.float32(1.0), {"b": jnp.array([-1.0])}],
        "empty": jnp.zeros((0, 3)),
        "none": None,
    }

    def matvec(v):
        flat, unravel = linear.ravel(v)
        return unravel(a @ flat)

    return a, b, matvec


@pytest.mark.parametrize("solver", SOLVERS)
def test_trees_and_a_count_of_what_is_really_multiplied(solver):
    a, b, matvec = tree_system()
    calls = []

    def counted(v):
        jax.debug.callback(lambda _: calls.append(1), v["w"])
        return matvec(v)

    options = {"step": 1.8} if solver == "neumann" else {}
    init = jax.tree.map(jnp.ones_like, b)
    x, info = SOLVERS[solver](counted, b, init=init, **options)
    jax.effects_barrier()
    assert jax.tree.structure(x) == jax.tree.structure(b) and info.converged
    flat, rhs = linear.ravel(x)[0], linear.ravel(b)[0]
    np.testing.assert_allclose(flat, np.linalg.solve(a, rhs), rtol=1e-3, atol=1e-4)
    transposed = int(info.iterations) if solver == "normal_cg" else 0
    assert len(calls) == int(info.products) - transposed


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_solved_costs_nothing(solver):
    """Zeros no product, whatever the start; a start at the solution the one that shows it."""
    a, b = matrix("definite", 10), right_hand_side()
    call = solved(solver)
    single = functools.partial(jnp.asarray, dtype=jnp.float32)
    for rhs, init, products in (
        (0 * b, None, 0),
        (0 * b, b, 0),
        (b, np.linalg.solve(a, b), 1),
    ):
        x, info = call(single(a), single(rhs), None if init is None else single(init))
        assert (int(info.iterations), int(info.products)) == (0, products) and info.converged
        np.testing.assert_array_equal(x, single(init) if products else 0 * b)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_nan_is_answered_by_nans_at_once(solver):
    a, b = jnp.eye(40), jnp.ones(40)
    call = solved(solver)
    for matrix_, rhs, init in (
        (a, b.at[3].set(jnp.nan), None),
        (a, b.at[3].set(jnp.inf), b),
        (a, b, b.at[3].set(jnp.nan)),
        (a.at[3].set(jnp.nan), b, None),
    ):
        x, info = call(matrix_, rhs, init)
        assert jnp.isnan(x).all() and not info.converged and info.iterations <= 1


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("exponent", [-90, 120])
def test_size_of_the_right_hand_side_does_not_matter(solver, exponent):
    """To the last bit, where its square is no float32."""
    a = jnp.asarray(matrix("definite", 10), jnp.float32)
    b = jnp.asarray(right_hand_side(), jnp.float32)
    options = {"step": 1.8} if solver == "neumann" else {}
    call = solved(solver, **options)
    x, info = call(a, b)
    scaled, same = call(a, jnp.ldexp(b, exponent))
    np.testing.assert_array_equal(scaled, jnp.ldexp(x, exponent))
    assert info.converged and same.iterations == info.iterations and same.products == info.products


def test_in_float32_a_claim_is_checked_and_made_good():
    """By its own residual the first cycle is done, and by the true one it is not."""
    single = functools.partial(jnp.asarray, dtype=jnp.float32)
    a, b = single(matrix("definite", 1e3, 100)), single(right_hand_side(100))
    x, info = solved("cg", tolerance=3e-5)(a, b)
    residual = np.linalg.norm(b - np.asarray(a, float) @ np.asarray(x, float))
    np.testing.assert_allclose(info.residual, residual, rtol=0.2)
    assert info.products - info.iterations == 2  # two cycles, each followed by its product
    assert info.converged and residual < 3.1e-5 * np.linalg.norm(b)


def test_in_float32_what_cannot_be_reached_is_not_claimed_and_not_sought_for_ever():
    a, b = matrix("definite", 1e4, 100), right_hand_side(100)
    single = functools.partial(jnp.asarray, dtype=jnp.float32)
    _, info = solved("cg")(single(a), single(b))
    assert not info.converged and info.iterations < 1000
    assert info.residual > 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("solver", SOLVERS)
def test_bfloat16_is_summed_in_float32(solver):
    """4096 ones have the norm 64, and 16 in sums of bfloat16."""
    b = {"w": jnp.ones(4096 if solver != "dense_solve" else 16, jnp.bfloat16)}
    x, info = SOLVERS[solver](lambda v: jax.tree.map(lambda w: w / 2, v), b, max_steps=1)
    assert x["w"].dtype == jnp.bfloat16 and info.residual.dtype == jnp.float32
    if solver == "neumann":
        assert info.residual == 32
    else:
        assert info.residual == 0 and info.converged and (x["w"] == 2).all()


def test_bfloat16_reaches_its_own_rounding():
    a = jnp.asarray(matrix("definite", 10), jnp.bfloat16)
    b = jnp.asarray(right_hand_side(), jnp.bfloat16)
    x, info = solved("cg")(a, b)
    exact = np.asarray(a, float)
    residual = np.linalg.norm(np.asarray(b, float) - exact @ np.asarray(x, float))
    # What rounding A x to 8 bits adds.
    rounding = 2.0**-8 * np.linalg.norm(b.astype(float))
    assert abs(float(info.residual) - residual) < rounding
    assert info.residual < 4 * rounding and not info.converged and info.iterations < 100


@pytest.mark.slow
def test_leaves_of_several_dtypes():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        b = {"half": jnp.ones(2, jnp.bfloat16), "double": jnp.ones(3, jnp.float64)}
        for solver in SOLVERS:
            x, info = SOLVERS[solver](lambda v: jax.tree.map(lambda w: w / 2, v), b, max_steps=40)
            assert info.converged and info.residual.dtype == jnp.float64
            assert x["half"].dtype == jnp.bfloat16 and x["double"].dtype == jnp.float64
            np.testing.assert_allclose(x["double"], 2, rtol=1e-4)


def test_tolerances_and_steps_may_be_traced():
    a = jnp.asarray(matrix("definite", 100), jnp.float32)

    @jax.jit
    def call(tolerance, absolute, steps):
        return optim.cg(
            lambda v: a @ v,
            jnp.ones(40),
            tolerance=tolerance,
            absolute_tolerance=absolute,
            max_steps=steps,
        )[1]

    loose, tight = call(1e-1, 0.0, 1000), call(1e-4, 0.0, 1000)
    assert loose.converged and tight.converged and loose.iterations < tight.iterations
    absolute = call(0.0, 1.0, 1000)
    assert absolute.converged and 1e-1 < absolute.residual <= 1.0
    assert call(1e-4, 0.0, 7).iterations == 7


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("kwargs", "phrase"),
    [
        ({"max_steps": 0}, "max_steps is 0; accepted: max_steps >= 1."),
        ({"tolerance": -1e-3}, "tolerance is -0.001; accepted: tolerance >= 0."),
        ({"tolerance": float("nan")}, "tolerance is nan; accepted: tolerance >= 0."),
        ({"absolute_tolerance": -1.0}, "absolute_tolerance is -1.0; accepted"),
        ({"b": {"w": jnp.ones(2) + 1j}}, "b at 'w' is of complex64; accepted: real floats."),
        ({"b": {"w": jnp.ones(2, int)}}, "b at 'w' is of int32; accepted: real floats."),
        ({"init": jnp.ones(2)}, r"init is .*; accepted: the structure of b"),
        ({"init": {"w": jnp.ones(3)}}, r"init is float32\[3\] at 'w'; accepted: a float .* \[2\]."),
        ({"matvec": lambda v: v["w"]}, r"matvec gives .*; accepted: the structure of b"),
        (
            {"matvec": lambda v: {"w": v["w"][:1]}},
            r"matvec gives float32\[1\] at 'w'; accepted: a float of the shape that b has, \[2\].",
        ),
        ({"matvec": lambda v: {"w": v["w"] * 1j}}, r"matvec gives complex64\[2\] at 'w'; accepted"),
    ],
)
def test_wrong_arguments_are_named(solver, kwargs, phrase):
    arguments = {"matvec": lambda v: v, "b": {"w": jnp.ones(2)}, **kwargs}
    with pytest.raises(ValueError, match=rf"^{solver}: {phrase}"):
        SOLVERS[solver](arguments.pop("matvec"), arguments.pop("b"), **arguments)


@pytest.mark.parametrize("solver", SOLVERS)
def test_preconditioners_are_checked_or_refused(solver):
    if solver in ("normal_cg", "dense_solve"):
        phrase = "preconditioner is .*; accepted: None; cg, minres, gmres, bicgstab and neumann"
    else:
        phrase = r"preconditioner gives float32\[1\]; accepted: a float .* \[2\]."
    with pytest.raises(ValueError, match=f"^{solver}: {phrase}"):
        SOLVERS[solver](lambda v: v, jnp.ones(2), preconditioner=lambda r: r[:1])


@pytest.mark.parametrize("solver", ["cg", "minres", "gmres", "bicgstab"])
def test_the_inverse_as_preconditioner_solves_in_one_step(solver):
    a = jnp.asarray(matrix("definite", 1e2), jnp.float32)
    b = jnp.asarray(right_hand_side(), jnp.float32)
    inverse = jnp.linalg.inv(a)
    x, info = SOLVERS[solver](
        lambda v: a @ v, b, preconditioner=lambda r: inverse @ r, tolerance=1e-3
    )
    assert info.converged and info.iterations == 1
    np.testing.assert_allclose(x, inverse @ b, rtol=1e-2, atol=1e-2)
