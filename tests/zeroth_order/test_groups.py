"""Groups, probes of one group, and the two estimates with scales for each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order
from zeroth_order import groups as grouping

ALONG = zeroth_order.direction(stack={"blocks/.*": 1})
PARAMS = {
    "blocks": {"b": jnp.ones((2, 3)), "w": jnp.full((2, 3, 3), 2.0)},
    "embed": {"table": jnp.zeros((4, 3))},
    "norm": {"scale": jnp.ones(3)},
    "steps": jnp.int32(0),
}
GROUPS = zeroth_order.layer_groups(ALONG, PARAMS)


def loss(p):
    return (
        3 * p["blocks"]["w"][0, 0, 0]
        + 4 * p["blocks"]["b"][0, 1]
        - 2 * p["blocks"]["w"][1, 2, 2]
        + 7 * p["embed"]["table"][1, 1]
    )


def z(along, seed=3):
    one = zeroth_order.SeededGradient(jnp.uint32(seed), jnp.ones(1))
    return zeroth_order.materialize(along, one, PARAMS)


def test_layers_are_groups_and_so_are_the_parts_around_them():
    assert GROUPS["blocks"]["b"].tolist() == GROUPS["blocks"]["w"].tolist() == [0, 1]
    assert (GROUPS["embed"]["table"], GROUPS["norm"]["scale"], GROUPS["steps"]) == (2, 3, -1)
    assert grouping.number_of(GROUPS) == 4


def test_a_probe_of_one_group_is_zero_outside():
    whole, inside = z(ALONG), jax.jit(lambda g: z(grouping.only(ALONG, GROUPS, g)))(jnp.int32(1))
    np.testing.assert_array_equal(inside["blocks"]["w"][1], whole["blocks"]["w"][1])
    assert not inside["blocks"]["w"][0].any() and not inside["embed"]["table"].any()


def test_norms_of_gradients_are_estimated_group_by_group():
    make = functools.partial(zeroth_order.spsa, epsilon=0.1, samples=512)
    norms = jax.jit(lambda p: zeroth_order.gradient_norms(loss, p, 0, make, ALONG, GROUPS))(PARAMS)
    # The slope in group 0 is +-3 +-4, of mean square 25 and standard error 24/25/2/sqrt(512) = 2 %.
    np.testing.assert_allclose(norms[0], 5, rtol=0.09)
    np.testing.assert_allclose(norms[1:], [2, 7, 1], rtol=1e-3)


def test_norms_of_parameters_are_those_of_their_groups():
    norms = zeroth_order.parameter_norms(ALONG, PARAMS, GROUPS)
    layer = (3 + 9 * 4) ** 0.5
    np.testing.assert_allclose(norms, [layer, layer, 1, 3**0.5], rtol=1e-6)


@pytest.mark.parametrize("modified", ["variance", "expectation"])
def test_estimates_with_scales_have_the_expectation_that_they_should(modified):
    d = jnp.array([2.0, 4.0, 0.5, 1.0])
    scales = zeroth_order.by_group(d, GROUPS)
    probe = zeroth_order.scaled(ALONG, zeroth_order.by_group(1 / d, GROUPS))
    reading = zeroth_order.scaled(ALONG, scales) if modified == "variance" else ALONG
    estimator = zeroth_order.spsa(probe, epsilon=0.1, samples=4096)
    fn = zeroth_order.value_and_grad(loss, estimator, reading)
    _, found = jax.jit(fn)(PARAMS, 0)
    divide = jnp.ones(4) if modified == "variance" else d
    w, table = found["blocks"]["w"], found["embed"]["table"]
    # Each of the other parts of a slope, at most 18, adds noise of d / sqrt(4096).
    limit = 4.5 * 18 * 4 / 64
    assert abs(w[0, 0, 0] - 3 / divide[0]) < limit / 4
    np.testing.assert_allclose(w[1, 2, 2], -2 / divide[1], atol=limit)
    np.testing.assert_allclose(table[1, 1], 7 / divide[2], atol=limit / 4)


@pytest.mark.slow
def test_scales_by_the_gradient_reduce_the_variance():
    """Variance-modified, with d of the gradient's size in two groups of very different slopes."""
    params = {"v": jnp.zeros(200), "w": jnp.zeros(2)}
    along = zeroth_order.direction()

    def steep(p):
        return jnp.sum(p["v"]) * 1e-2 + 10 * jnp.sum(p["w"])

    d = {"v": 0.14, "w": 14.0}
    plain = (along, along)
    modified = (
        zeroth_order.scaled(along, jax.tree.map(lambda x: 1 / x, d)),
        zeroth_order.scaled(along, d),
    )

    def error(probe, reading):
        fn = zeroth_order.value_and_grad(steep, zeroth_order.spsa(probe, epsilon=0.1), reading)
        found = jax.vmap(lambda s: fn(params, s)[1]["v"])(jnp.arange(256, dtype=jnp.uint32))
        return float(jnp.mean(jnp.square(found - 1e-2)))

    assert error(*modified) < 0.05 * error(*plain)
