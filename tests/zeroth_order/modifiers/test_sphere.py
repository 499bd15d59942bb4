"""A direction whose length is the same for every seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order

PARAMS = {"blocks": jnp.zeros((2, 5, 3)), "head": jnp.zeros(10), "step": jnp.int32(0)}


def length(z):
    return float(jnp.sqrt(jnp.sum(jnp.square(z["blocks"])) + jnp.sum(jnp.square(z["head"]))))


@pytest.mark.parametrize("draws", [zeroth_order.popcount_normal, zeroth_order.box_muller_normal])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_length_is_the_root_of_the_size(draws, seed):
    plain = zeroth_order.direction(draws, stack={"blocks": 1})
    z = zeroth_order.perturb(plain, PARAMS, seed, 1.0)
    on_sphere = zeroth_order.perturb(zeroth_order.sphere(plain), PARAMS, seed, 1.0)
    assert length(on_sphere) == pytest.approx(40**0.5, rel=1e-5)
    assert abs(length(z) - 40**0.5) > 1e-3
    np.testing.assert_allclose(on_sphere["head"] * length(z), z["head"] * 40**0.5, rtol=1e-5)


def test_of_signs_it_is_the_same_direction():
    plain = zeroth_order.direction()
    z, same = (zeroth_order.perturb(d, PARAMS, 5, 1.0) for d in (plain, zeroth_order.sphere(plain)))
    np.testing.assert_allclose(z["head"], same["head"], rtol=1e-6)


def test_streamed_it_is_the_copy():
    along = zeroth_order.sphere(
        zeroth_order.direction(zeroth_order.popcount_normal, stack={"blocks": 1})
    )
    value = {**PARAMS, "blocks": jnp.ones((2, 5, 3))}
    streamed = zeroth_order.stream(along, value, 5, 0.1)
    _, blocks = jax.lax.scan(lambda _, w: (None, zeroth_order.read(w)), None, streamed["blocks"])
    copy = zeroth_order.perturb(along, value, 5, 0.1)
    np.testing.assert_allclose(blocks, copy["blocks"], rtol=1e-6)
