"""Every mode of differentiation through a linear solve, against the dense inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim

SIZE = 5
SOLVERS = [
    pytest.param(optim.cg, True, id="cg"),
    pytest.param(optim.minres, True, id="minres", marks=pytest.mark.slow),
    pytest.param(optim.gmres, False, id="gmres", marks=pytest.mark.slow),
    pytest.param(optim.bicgstab, False, id="bicgstab", marks=pytest.mark.slow),
]


def system(symmetric):
    """theta -> A, b; A has eigenvalues with a positive real part."""
    random = np.random.default_rng(0)
    base, turn = random.normal(size=(2, SIZE, SIZE))
    base = base @ base.T / SIZE + np.eye(SIZE)
    turn = turn + turn.T if symmetric else turn

    def of(theta):
        a = jnp.asarray(base) + 0.1 * jnp.sin(theta[0]) * jnp.asarray(turn)
        return a, jnp.cos(theta[1] + jnp.arange(SIZE, dtype=float))

    return of


@pytest.mark.parametrize(("solver", "symmetric"), SOLVERS)
def test_grad_jvp_and_hessian_are_those_of_the_dense_solve(solver, symmetric):
    of = system(symmetric)

    def ours(theta):
        a, b = of(theta)
        x, _ = optim.linear_solve(lambda v: a @ v, b, solver=solver, tolerance=1e-13)
        return jnp.sum(x**3)

    def dense(theta):
        a, b = of(theta)
        return jnp.sum(jnp.linalg.solve(a, b) ** 3)

    with jax.enable_x64(True):
        theta = jnp.array([0.3, 0.7])
        for mode in (jax.grad, jax.jacfwd, jax.hessian):
            np.testing.assert_allclose(
                jax.jit(mode(ours))(theta), mode(dense)(theta), rtol=1e-8, atol=1e-10
            )


def test_a_batch_has_the_gradients_of_its_members():
    def loss(scale):
        x, info = optim.linear_solve(lambda v: scale * v, jnp.array([2.0, 4.0]))
        return x.sum(), info

    scales = jnp.array([1.0, 2.0, 4.0])
    gradients, info = jax.vmap(jax.grad(loss, has_aux=True))(scales)
    np.testing.assert_allclose(gradients, -6 / scales**2, rtol=1e-5)
    assert info.converged.all() and info.products.shape == (3,)


@pytest.mark.slow
def test_the_preconditioner_is_transposed_where_the_matrix_is_not_symmetric():
    a = jnp.array([[4.0, 1.0], [0.0, 2.0]])
    inverse = jnp.linalg.inv(a)

    def first(b):
        x, _ = optim.linear_solve(
            lambda v: a @ v, b, solver=optim.gmres, preconditioner=lambda r: inverse @ r
        )
        return x[0]

    np.testing.assert_allclose(jax.grad(first)(jnp.ones(2)), inverse[0], rtol=1e-5)


def test_no_derivative_flows_through_the_start():
    def first(init):
        return optim.linear_solve(lambda v: 2 * v, jnp.ones(2), init=init)[0][0]

    assert (jax.grad(first)(jnp.array([0.3, 0.1])) == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["b", "matrix"])
def test_leaves_that_do_not_depend_on_what_is_differentiated(where):
    """x = b, y + 2 x = 1 has y = 1 - 2 b; and x = 1, y + a x = 1 has y = 1 - a."""

    def y_of(t, index=1):
        a, b = (2.0, t) if where == "b" else (t, 1.0)
        right = (jnp.asarray(b), jnp.ones(1))
        x, _ = optim.linear_solve(lambda v: (v[0], v[1] + a * v[0]), right, solver=optim.gmres)
        return x[index].sum()

    expected = -2.0 if where == "b" else -1.0
    for mode in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(jax.jit(mode(y_of))(3.0), expected, rtol=1e-5)
    for first, second in ((jax.grad, jax.grad), (jax.grad, jax.jacfwd), (jax.jacfwd, jax.grad)):
        squared = first(lambda t: y_of(t) ** 2)
        np.testing.assert_allclose(jax.jit(second(squared))(3.0), 2 * expected**2, rtol=1e-4)
