"""The Neumann series: its terms, its limit, and where it has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim

from .systems import matrix, right_hand_side, solved


@pytest.mark.parametrize("terms", [1, 2, 7])
def test_is_the_sum_of_its_terms(terms):
    a, b = matrix("nonsymmetric", 10), right_hand_side()
    series = sum(np.linalg.matrix_power(np.eye(40) - 0.3 * a, k) for k in range(terms))
    with jax.enable_x64(True):
        x, info = solved("neumann", step=0.3, tolerance=0, max_steps=terms)(
            jnp.asarray(a), jnp.asarray(b)
        )
        np.testing.assert_allclose(x, 0.3 * series @ b, rtol=1e-12, atol=1e-13)
        assert info.iterations == info.products == terms and not info.converged


def test_is_as_many_steps_of_gradient_descent():
    a, b = matrix("definite", 10), right_hand_side()
    with jax.enable_x64(True):
        a, b, start = jnp.asarray(a), jnp.asarray(b), jnp.ones(40)
        x = start
        for _ in range(5):
            x = x - 0.7 * jax.grad(lambda x: x @ a @ x / 2 - b @ x)(x)
        ours, info = solved("neumann", step=0.7, max_steps=5)(a, b, start)
        np.testing.assert_allclose(ours, x, rtol=1e-12, atol=1e-13)
        assert info.products == 6


def test_a_preconditioner_comes_before_the_step():
    d = jnp.array([1.0, 10.0])
    precondition = optim.jacobi_preconditioner(d)
    x, info = optim.neumann(lambda v: d * v, jnp.ones(2), preconditioner=precondition)
    np.testing.assert_allclose(x, 1 / d, rtol=1e-6)
    assert info.iterations == 1 and info.converged


def test_divergence_ends_at_the_overflow_and_is_no_solution():
    x, info = optim.neumann(lambda v: 4 * v, jnp.ones(2))
    assert not info.converged and info.iterations < 100
    assert jnp.isnan(x).all() and not jnp.isfinite(info.residual)


def test_the_step_may_be_traced_and_is_positive():
    x, _ = jax.vmap(lambda step: optim.neumann(lambda v: v, jnp.ones(2), step=step, max_steps=1))(
        jnp.array([0.5, 0.25])
    )
    assert x.tolist() == [[0.5, 0.5], [0.25, 0.25]]
    with pytest.raises(ValueError, match="neumann: step is 0; accepted: step > 0"):
        optim.neumann(lambda v: v, jnp.ones(2), step=0)
