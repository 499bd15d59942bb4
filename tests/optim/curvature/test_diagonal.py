"""Estimates of a curvature's diagonal: dense matrices in float64, averages, odd leaves, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import optim

from .test_products import EXAMPLES, network

LABELS = jnp.array([0, 2, 2, 1, 0])
KEYS = 4000


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def problem():
    params, inputs, predict = network(3)
    return params, inputs, predict, lambda p: jnp.mean(cross_entropy(predict(p), LABELS))


def drawn(curvature_fn, params):
    """Estimates of many keys, one a row."""
    keys = jax.random.split(jax.random.key(7), KEYS)
    one = jax.jit(jax.vmap(lambda key: ravel_pytree(curvature_fn(params, key))[0]))
    return np.asarray(one(keys))


def assert_unbiased(estimates, expected):
    """Each mean within five standard errors; some estimates have hardly any error."""
    error = estimates.std(axis=0) / np.sqrt(len(estimates))
    assert (np.abs(estimates.mean(axis=0) - expected) <= 5 * error + 1e-12).all()
    # Were the errors as large as the diagonal, its half would pass too.
    assert np.median(error / np.abs(expected)) < 0.1


def hessian_diagonal(loss_fn, params):
    vector, unravel = ravel_pytree(params)
    return np.diag(jax.jit(jax.hessian(lambda v: loss_fn(unravel(v))))(vector))


@pytest.mark.parametrize("options", [{}, {"distribution": "gaussian"}, {"samples": 3}], ids=str)
def test_hutchinson_is_unbiased_for_the_hessian(options):
    with jax.enable_x64(True):
        params, _, _, loss_fn = problem()
        estimates = drawn(optim.hutchinson(loss_fn, **options), params)
        assert estimates.dtype == np.float64
        assert_unbiased(estimates, hessian_diagonal(loss_fn, params))


def test_bartlett_is_unbiased_for_gauss_newton():
    with jax.enable_x64(True):
        params, _, predict, _ = problem()
        vector, unravel = ravel_pytree(params)
        jacobian = jax.jacobian(lambda v: predict(unravel(v)))(vector)
        p = jax.nn.softmax(predict(params))
        middle = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]
        expected = jnp.einsum("bip,bij,bjp->p", jacobian, middle, jacobian) / EXAMPLES
        estimates = drawn(optim.gauss_newton_bartlett(predict), params)
        assert_unbiased(estimates, np.asarray(expected))


def test_bartlett_counts_every_prediction_of_a_sequence():
    """Logits (examples, positions, classes): the factor is examples times positions."""
    weights = jnp.array([1.0, -2.0, 0.5])
    logits_fn = lambda w: jnp.broadcast_to(w, (2, 4, 3))  # noqa: E731
    zeros = lambda key, logits: jnp.zeros((2, 4), jnp.int32)  # noqa: E731
    found = optim.gauss_newton_bartlett(logits_fn, sample=zeros)(weights, jax.random.key(0))
    gradient = jax.nn.softmax(weights) - jnp.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(found, 8 * gradient**2, rtol=1e-6)


@pytest.mark.slow
def test_empirical_fisher_is_the_mean_square_of_the_gradients():
    with jax.enable_x64(True):
        params, inputs, predict, _ = problem()

        def example_loss(params, example):
            x, y = example
            return cross_entropy(predict(params, x), y)

        curvature_fn = optim.empirical_fisher(example_loss, (jnp.asarray(inputs), LABELS))
        found = curvature_fn(params, jax.random.key(0))
        squares = [
            jax.tree.map(jnp.square, jax.grad(example_loss)(params, (x, y)))
            for x, y in zip(inputs, LABELS, strict=True)
        ]
        expected = jax.tree.map(lambda *leaves: sum(leaves) / EXAMPLES, *squares)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


def test_signs_are_exact_where_the_hessian_is_diagonal():
    scales = jnp.array([3.0, -1.0, 0.5])
    curvature_fn = optim.hutchinson(lambda p: jnp.sum(scales * p**2))
    np.testing.assert_allclose(curvature_fn(jnp.ones(3), jax.random.key(3)), 2 * scales, rtol=1e-6)


def test_a_probe_of_ones_gives_the_row_sums():
    matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    curvature_fn = optim.hutchinson(
        lambda p: 0.5 * p["w"] @ matrix @ p["w"],
        probe=lambda key, p: jax.tree.map(jnp.ones_like, p),
    )
    np.testing.assert_allclose(curvature_fn({"w": jnp.ones(2)}, jax.random.key(0))["w"], [3, 4])


def test_samples_average_the_estimates_of_their_probes():
    matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    seen = []

    def probe(key, params):
        z = jax.random.normal(key, (2,))
        jax.debug.callback(lambda z: seen.append(np.asarray(z)), z)
        return z

    curvature_fn = optim.hutchinson(lambda p: 0.5 * p @ matrix @ p, probe=probe, samples=4)
    found = jax.block_until_ready(curvature_fn(jnp.ones(2), jax.random.key(0)))
    jax.effects_barrier()
    assert len({tuple(z) for z in seen}) == 4
    np.testing.assert_allclose(found, np.mean([z * (matrix @ z) for z in seen], axis=0), rtol=1e-5)


def test_leaves_draw_apart_and_keys_decide():
    curvature_fn = optim.hutchinson(
        lambda p: jnp.prod(jnp.stack([p["a"].sum(), p["b"].sum()])), distribution="gaussian"
    )
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    first, again, other = (curvature_fn(params, jax.random.key(k)) for k in (0, 0, 1))
    assert not np.allclose(first["a"], first["b"])
    assert np.array_equal(first["a"], again["a"]) and not np.allclose(first["a"], other["a"])


def test_leaves_that_are_no_floats_are_constants_and_bfloat16_is_promoted():
    params = {
        "w": jnp.array([1.0, 2.0], jnp.bfloat16),
        "n": jnp.array([4], jnp.int32),
        "absent": None,
    }

    def loss_fn(params):
        assert params["w"].dtype == jnp.float32
        return jnp.sum(params["w"] ** 2) * params["n"][0].astype(jnp.float32)

    def example_loss(params, example):
        return loss_fn(params) * example

    for curvature_fn, expected in (
        (optim.hutchinson(loss_fn), [8, 8]),
        (optim.empirical_fisher(example_loss, jnp.array([1.0, 0.5])), [40, 160]),
        (
            optim.gauss_newton_bartlett(
                lambda p: jnp.stack([p["w"][0], 0.0]), sample=lambda key, logits: 0
            ),
            [jax.nn.sigmoid(-1.0) ** 2, 0],
        ),
    ):
        found = curvature_fn(params, jax.random.key(0))
        assert found["w"].dtype == jnp.float32 and found["absent"] is None
        np.testing.assert_allclose(found["w"], expected, rtol=1e-6)
        np.testing.assert_array_equal(found["n"], [0])


# Averages, as torch's code states them on (outputs, inputs, window).


def as_flax(torch_leaf):
    return torch_leaf.transpose(*range(2, torch_leaf.ndim), 1, 0)


def as_torch(leaf):
    return leaf.transpose(leaf.ndim - 1, leaf.ndim - 2, *range(leaf.ndim - 2))


@pytest.mark.parametrize(
    ("rule", "shape", "axes"),
    [
        ("rows", (4, 6), (1,)),
        ("rows", (4, 6, 5), (2,)),
        ("rows", (4, 6, 3, 3), (2, 3)),
        ("windows", (4, 6), ()),
        ("windows", (4, 6, 3, 3), (2, 3)),
    ],
)
def test_averages_over_rows_and_windows(rule, shape, axes):
    hv = np.random.default_rng(0).normal(size=shape).astype("float32")
    found = optim.spatial_average(as_flax(hv), rule)
    expected = np.abs(hv).mean(axes, keepdims=True) if axes else np.abs(hv)
    np.testing.assert_allclose(as_torch(found), np.broadcast_to(expected, shape), rtol=1e-6)


@pytest.mark.parametrize("rule", ["rows", "blocks"])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 3, 3)])
def test_averages_over_blocks_in_torch_order(rule, shape):
    hv = np.random.default_rng(0).normal(size=shape).astype("float32")
    found = optim.spatial_average(as_flax(hv), rule, {2: 3, 3: 3, 4: 3})
    expected = np.abs(hv).reshape(-1, 3).mean(1).repeat(3).reshape(shape)
    np.testing.assert_allclose(as_torch(found), expected, rtol=1e-6)


def test_blocks_are_of_matrices_alone_and_vectors_stay():
    vector, convolution = jnp.array([1.0, -2.0, 3.0]), -jnp.arange(16.0).reshape(2, 2, 2, 2)
    for leaf in (vector, convolution):
        np.testing.assert_array_equal(optim.spatial_average(leaf, "blocks", 2), jnp.abs(leaf))
    np.testing.assert_array_equal(optim.spatial_average(vector, "rows"), jnp.abs(vector))
    np.testing.assert_array_equal(optim.spatial_average(jnp.array(-1.0), "rows"), 1.0)
    np.testing.assert_allclose(optim.spatial_average(vector, "rows", {1: 3}), [2, 2, 2])


@pytest.mark.parametrize("rule", [("rows",), ("windows",), ("blocks", 3), ("rows", {3: 6})])
@pytest.mark.parametrize(("layout", "shape"), [("m n", (4, 6)), ("m m n", (3, 4, 6))])
def test_layouts_average_each_of_a_stack(rule, layout, shape):
    stack = jnp.asarray(np.random.default_rng(0).normal(size=(5, *shape)), jnp.float32)
    found = optim.spatial_average(stack, *rule, layout="b " + layout)
    np.testing.assert_allclose(found, [optim.spatial_average(x, *rule) for x in stack], rtol=1e-6)


def test_layouts_may_put_the_outputs_first():
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    for rule in (("rows",), ("blocks", 3)):
        turned = optim.spatial_average(leaf.T, *rule, layout="n m")
        np.testing.assert_array_equal(turned.T, optim.spatial_average(leaf, *rule))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("columns",), "averaging is 'columns'; accepted: rows, windows, blocks"),
        (("blocks",), "block_size is None; averaging = 'blocks' needs one"),
        (("blocks", 0), "block_size is 0; accepted: sizes of at least 1"),
        (("rows", {2: -1}), "accepted: sizes of at least 1"),
        (("blocks", 4), "block_size is 4, which does not divide the 6 elements"),
    ],
)
def test_averages_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        optim.spatial_average(jnp.ones((2, 3)), *options)


def integers(key, logits):
    return jnp.zeros((2,), jnp.int32)


@pytest.mark.parametrize(
    ("curvature_fn", "message"),
    [
        (optim.hutchinson(lambda p: p), r"hutchinson: loss_fn returns \(3,\); accepted: a scalar"),
        (
            optim.hutchinson(lambda p: jnp.sum(p), probe=lambda key, p: jnp.ones(2)),
            r"hutchinson: the vector's leaf '' is \(2,\); accepted: .* \(3,\)",
        ),
        (
            optim.gauss_newton_bartlett(lambda p: jnp.sum(p)),
            r"_bartlett: logits_fn returns float32\(\); accepted: floats \(..., classes",
        ),
        (
            optim.gauss_newton_bartlett(lambda p: {"logits": p}),
            "gauss_newton_bartlett: logits_fn returns PyTreeDef",
        ),
        (
            optim.gauss_newton_bartlett(lambda p: p, sample=integers),
            r"sample returns int32\[2\]; accepted: integers of the shape of the logits .*\(\)",
        ),
        (
            optim.gauss_newton_bartlett(lambda p: p, sample=lambda key, logits: 0.5),
            r"sample returns float32\[\]; accepted: integers",
        ),
        (
            optim.empirical_fisher(lambda p, x: p * x, jnp.ones(2)),
            r"empirical_fisher: example_loss returns \(3,\); accepted: a scalar",
        ),
    ],
)
def test_functions_that_do_not_suit(curvature_fn, message):
    with pytest.raises(ValueError, match=message):
        curvature_fn(jnp.ones(3), jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"distribution": "uniform"},
            "hutchinson: distribution is 'uniform'; accepted: rademacher, gaussian",
        ),
        ({"samples": 0}, "hutchinson: samples is 0"),
    ],
)
def test_hutchinson_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        optim.hutchinson(lambda p: p, **options)
