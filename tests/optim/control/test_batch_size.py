"""Batch size tests: against NumPy in float64, known Gaussians, groups and merges, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

SHAPES = {"w": (3, 4), "b": (4,)}
TESTS = ("norm", "inner", "augmented", "coordinate", "median")


def draw(samples, seed=0):
    """Per-sample gradients with a mean and a deviation of their own in every coordinate."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape)
        + rng.uniform(0.1, 2, shape) * rng.normal(size=(samples, *shape))
        for name, shape in SHAPES.items()
    }


def products(gradients, mean):
    return jax.vmap(optax.tree.vdot, (0, None))(gradients, mean)


@functools.partial(jax.jit, static_argnums=1)
def wanted(gradients, group_size=1):
    """What all tests ask for, by name."""
    moments = optim.gradient_moments(gradients)
    inner = products(gradients, moments.mean)
    return {
        "norm": optim.norm_test(moments, eta=0.3, group_size=group_size),
        "inner": optim.inner_product_test(moments, inner, theta=0.2, group_size=group_size),
        "augmented": optim.augmented_inner_product_test(
            moments, inner, theta=0.2, nu=0.5, group_size=group_size
        ),
        "coordinate": optim.coordinate_wise_test(moments, eta=0.3, group_size=group_size),
        "median": optim.coordinate_wise_test(moments, eta=0.3, share=0.5, group_size=group_size),
    }


def in_numpy(gradients, group_size=1):
    """The same from the definitions, on the matrix of flat gradients."""
    rows = np.concatenate([g.reshape(len(g), -1) for _, g in sorted(gradients.items())], axis=1)
    mean = rows.mean(axis=0)
    square = mean @ mean
    variance = group_size * rows.var(axis=0, ddof=1)
    inner = group_size * (rows @ mean).var(ddof=1)
    across = rows - np.outer(rows @ mean, mean) / square
    across = group_size * across.var(axis=0, ddof=1).sum()
    by_coordinate = variance / (0.3**2 * mean**2)
    return {
        "norm": variance.sum() / (0.3**2 * square),
        "inner": inner / (0.2**2 * square**2),
        "augmented": max(inner / (0.2**2 * square**2), across / (0.5**2 * square)),
        "coordinate": by_coordinate.max(),
        "median": np.median(by_coordinate),
    }


def assert_close(ours, expected, rtol):
    assert ours.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(ours[name], expected[name], rtol=rtol, err_msg=name)


@pytest.mark.parametrize("group_size", [1, 4])
def test_agree_with_numpy_in_float64(group_size):
    for seed in range(3):
        gradients = draw(6, seed)
        with jax.enable_x64(True):
            ours = wanted(jax.tree.map(jnp.asarray, gradients), group_size)
            assert {x.dtype for x in ours.values()} == {jnp.dtype("float64")}
        assert_close(ours, in_numpy(gradients, group_size), rtol=1e-12)


def test_both_halves_of_the_augmented_test_can_decide():
    """Deviations along the mean, then across it; the other half asks for nothing."""
    along, across = jnp.array([[2.0, 0.0], [4.0, 0.0]]), jnp.array([[3.0, 1.0], [3.0, -1.0]])
    for gradients, expected in ((along, 2 * 9 / (0.5**2 * 81)), (across, 2 / (0.25**2 * 9))):
        moments = optim.gradient_moments(gradients)
        inner = products(gradients, moments.mean)
        ours = optim.augmented_inner_product_test(moments, inner, theta=0.5, nu=0.25)
        assert float(ours) == pytest.approx(expected, rel=1e-6)


def test_a_gaussian_of_known_variance():
    """Within three deviations of the least known ratio, 5 % for the coordinate of most noise.

    200,000 samples know a mean of a third of the deviation to 0.7 %, so its square to 1.4 %, and a
    variance to 0.3 %, or by groups of 8 to 0.9 %.
    """
    rng = np.random.default_rng(3)
    mean, deviation = rng.uniform(0.5, 1, 10), rng.uniform(0.5, 1.5, 10)
    samples = mean + deviation * rng.normal(size=(200_000, 10))
    square = mean @ mean
    along = (deviation**2 * mean**2).sum() / square  # of the variance, in the mean's direction
    expected = {
        "norm": (deviation**2).sum() / (0.3**2 * square),
        "inner": along / (0.2**2 * square),
        "augmented": ((deviation**2).sum() - along) / (0.5**2 * square),
        "coordinate": (deviation**2 / mean**2).max() / 0.3**2,
        "median": np.median(deviation**2 / mean**2) / 0.3**2,
    }
    assert expected["augmented"] > expected["inner"]
    assert_close(wanted({"x": jnp.asarray(samples, jnp.float32)}), expected, rtol=0.05)
    grouped = samples.reshape(-1, 8, 10).mean(axis=1)
    assert_close(wanted({"x": jnp.asarray(grouped, jnp.float32)}, 8), expected, rtol=0.05)


@pytest.mark.slow
def test_moments_merge_to_those_of_all_at_once():
    """By parts of unequal size and, in a scan from zeros, by one group at a time."""
    with jax.enable_x64(True):
        gradients = jax.tree.map(jnp.asarray, draw(9))
        direct = optim.gradient_moments(gradients)
        parts = [
            jax.tree.map(lambda g, s=s: g[s], gradients) for s in np.split(np.arange(9), [2, 6])
        ]
        merged = optim.gradient_moments(parts[0])
        for part in parts[1:]:
            merged = optim.merge_moments(merged, optim.gradient_moments(part))

        def add(moments, gradient):
            one = optim.gradient_moments(jax.tree.map(lambda g: g[None], gradient))
            return optim.merge_moments(moments, one), None

        streamed, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, direct), gradients)
        for other in (merged, streamed):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), other, direct)


def test_a_large_mean_leaves_the_variance_its_digits():
    """In float32 a mean of squares less the square of the mean would be noise of 1e4."""
    deviations = np.random.default_rng(0).normal(size=100)
    gradients = jnp.asarray(1e4 + deviations, jnp.float32)

    def add(moments, gradient):
        return optim.merge_moments(moments, optim.gradient_moments(gradient[None])), None

    start = jax.tree.map(jnp.zeros_like, optim.gradient_moments(gradients))
    moments, _ = jax.lax.scan(add, start, gradients)
    exact = np.asarray(gradients, np.float64).var() * 100
    np.testing.assert_allclose(moments.squares, exact, rtol=1e-3)


def test_more_noise_or_less_tolerance_asks_for_more():
    gradients = draw(6)
    noisier = {name: g.mean(0) + 1.5 * (g - g.mean(0)) for name, g in gradients.items()}
    quiet, loud = wanted(gradients), wanted(noisier)
    for name in TESTS:
        assert float(loud[name]) == pytest.approx(2.25 * float(quiet[name]), rel=1e-4)
    moments = optim.gradient_moments(gradients)
    assert optim.norm_test(moments, eta=0.1) > optim.norm_test(moments, eta=0.2)
    assert quiet["median"] < quiet["coordinate"]


def test_a_share_guards_against_coordinates_of_noise():
    """A thousand coordinates with a signal as large as their deviation, and one with none."""
    rng = np.random.default_rng(1)
    gradients = rng.normal(size=(64, 1000)) + 1.0
    gradients[:, 0] -= 1.0
    moments = optim.gradient_moments(jnp.asarray(gradients, jnp.float32))
    assert optim.coordinate_wise_test(moments, eta=0.5) > 50
    assert optim.coordinate_wise_test(moments, eta=0.5, share=0.99) < 12


def test_what_does_not_vary_asks_for_nothing_and_noise_around_zero_for_all():
    for gradients in (jnp.ones((3, 2)), jnp.zeros((3, 2))):
        assert {float(x) for x in wanted({"x": gradients}).values()} == {0.0}
    noise = wanted({"x": jnp.array([[1.0, -2.0], [-1.0, 2.0]])})
    assert float(noise["inner"]) == 0  # the mean has no direction
    assert {float(noise[name]) for name in TESTS if name != "inner"} == {np.inf}
    broken = wanted({"x": jnp.array([[1.0, jnp.nan], [-1.0, 2.0]])})
    assert all(
        np.isnan(float(broken[name])) for name in ("norm", "inner", "augmented", "coordinate")
    )


def test_tiny_gradients_do_not_underflow():
    """|g|^4 is 1e-48 here, 0 in float32."""
    gradients = draw(6)
    small = {name: jnp.asarray(1e-12 * g, jnp.float32) for name, g in gradients.items()}
    assert_close(wanted(small), in_numpy(gradients), rtol=1e-3)


def test_vmap_and_gradients_at_the_corners():
    gradients = {name: jnp.asarray(g, jnp.float32) for name, g in draw(6).items()}
    pair = jax.tree.map(lambda g: jnp.stack([g, 2 * g]), gradients)  # none sees the scale
    both = jax.vmap(wanted)(pair)
    for name, value in wanted(gradients).items():
        np.testing.assert_allclose(both[name], [value, value], rtol=1e-5)
    slope = jax.jit(jax.grad(lambda g: wanted(g)["augmented"] + wanted(g)["norm"]))
    for point in (gradients, jax.tree.map(jnp.ones_like, gradients)):
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(slope(point)))


def test_low_precision_is_summed_in_float32():
    gradients = jax.tree.map(lambda g: jnp.asarray(g, jnp.bfloat16), draw(64))
    moments = optim.gradient_moments(gradients)
    assert {x.dtype for x in jax.tree.leaves(moments)} == {jnp.dtype("float32")}
    exact = in_numpy(jax.tree.map(lambda g: np.asarray(g, np.float64), gradients))
    assert float(optim.norm_test(moments, eta=0.3)) == pytest.approx(exact["norm"], rel=1e-5)


def test_doubling_never_shrinks_and_stops_at_the_maximum():
    sizes = [8]
    for asked in (3.0, 9.0, float("nan"), 33.0, 1.0, float("inf"), float("inf")):
        sizes.append(optim.next_batch_size(sizes[-1], asked, max_batch_size=300))
    assert sizes == [8, 8, 16, 16, 64, 64, 256, 256]
    assert optim.next_batch_size(8, jnp.float32(16.0), max_batch_size=300) == 16


def test_one_group_is_refused_where_it_is_seen_and_unknown_where_it_is_not():
    moments = optim.gradient_moments(jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="norm_test: moments is of 1 group; accepted: at least 2"):
        optim.norm_test(moments)
    assert np.isnan(jax.jit(optim.norm_test)(moments))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: optim.norm_test(m, eta=0.0), "norm_test: eta is 0.0; accepted: eta > 0"),
        (
            lambda m, p: optim.norm_test(m, group_size=0),
            "norm_test: group_size is 0; accepted: group_size > 0",
        ),
        (
            lambda m, p: optim.inner_product_test(m, p, theta=-1.0),
            "inner_product_test: theta is -1.0; accepted: theta > 0",
        ),
        (
            lambda m, p: optim.augmented_inner_product_test(m, p, nu=0.0),
            "augmented_inner_product_test: nu is 0.0; accepted: nu > 0",
        ),
        (
            lambda m, p: optim.inner_product_test(m, p[:2]),
            r"inner_product_test: inner_products has shape \(2,\); accepted: .* \(3,\)",
        ),
        (
            lambda m, p: optim.coordinate_wise_test(m, share=0.0),
            "coordinate_wise_test: share is 0.0; accepted: 0 < share <= 1",
        ),
        (
            lambda m, p: optim.gradient_moments({"w": jnp.ones((2, 3)), "b": jnp.ones(3)}),
            r"gradient_moments: gradients has shapes \[\(3,\), \(2, 3\)\]; accepted: a leading",
        ),
        (lambda m, p: optim.gradient_moments({}), r"gradient_moments: gradients has shapes \[\]"),
        (
            lambda m, p: optim.next_batch_size(0, 1.0, max_batch_size=8),
            "next_batch_size: batch_size is 0; accepted: batch_size >= 1",
        ),
        (
            lambda m, p: optim.next_batch_size(16, 1.0, max_batch_size=8),
            "next_batch_size: max_batch_size is 8; accepted: max_batch_size >= 16",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    gradients = jnp.arange(6.0).reshape(3, 2)
    moments = optim.gradient_moments(gradients)
    with pytest.raises(ValueError, match=message):
        call(moments, gradients @ moments.mean)
