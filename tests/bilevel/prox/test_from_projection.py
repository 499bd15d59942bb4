"""A projection as an operator."""

import jax
import jax.numpy as jnp
import jaxopt
import optax
import pytest

from bilevel.prox.from_projection import prox_from_projection

BOX = prox_from_projection(optax.projections.projection_box)


def test_it_is_the_projection_whatever_the_step():
    x = jnp.array([3.0, 0.5, -1.0])
    for scaling in (0.1, 1.0, 10.0):
        assert (BOX(x, (0.0, 1.0), scaling) == jnp.array([1.0, 0.5, 0.0])).all()
    simplex = prox_from_projection(optax.projections.projection_simplex)
    assert (simplex(x) == optax.projections.projection_simplex(x)).all()


def test_jaxopts_proximal_gradient_takes_it():
    center = jnp.array([3.0, 0.5, -1.0])
    solver = jaxopt.ProximalGradient(lambda x: jnp.sum((x - center) ** 2), prox=BOX)
    found = solver.run(jnp.zeros(3), hyperparams_prox=(0.0, 1.0)).params
    assert jnp.allclose(found, jnp.array([1.0, 0.5, 0.0]), atol=1e-4)


def test_derivatives_are_the_projections():
    x = jnp.array([3.0, 0.5])
    assert (jax.jacobian(BOX)(x, (0.0, 1.0)) == jnp.diag(jnp.array([0.0, 1.0]))).all()
    assert (jax.jacobian(BOX, argnums=1)(x, (0.0, 1.0))[1] == jnp.array([1.0, 0.0])).all()


def test_what_is_not_accepted():
    with pytest.raises(ValueError, match=r"hyperparams is 1.0; accepted: a tuple"):
        BOX(jnp.ones(2), 1.0)
