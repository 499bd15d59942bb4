"""Perturbed weights of the kernel have the bits of `perturb`; vmap over two signs is the pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order
from zeroth_order import noise
from zeroth_order.kernels import regimes
from zeroth_order.kernels.paired_product import (
    paired_product,
    pallas_pair,
    perturbed_product,
    reference_pair,
)

EXACT = {
    "rademacher": zeroth_order.rademacher,
    "popcount_normal": zeroth_order.popcount_normal,
}
SHAPES = [(256, 384), (200, 300), (77, 100)]  # of w: whole blocks, cut ones, less than one
SCALES = jnp.array([1e-3, -1e-3])


def weights(shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(0), shape, dtype)


def inputs(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def bound(x, w):
    """Of the difference of two float32 sums of x w, in whatever order: m roundings of each term."""
    return 2 * w.shape[0] * 2.0**-24 * (np.abs(x) @ np.abs(w) + 1)


def calls_kernel(function, *arguments, platform="tpu"):
    """Whether the program for a platform, lowered where there is none, has the kernel."""
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,))
    return "tpu_custom_call" in lowered.as_text()


@pytest.mark.parametrize("implementation", ["xla", "pallas, interpreted"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EXACT)
def test_rows_of_the_identity_give_the_bits_of_perturb(name, shape, dtype, implementation):
    w, seed = weights(shape, dtype), 7
    key = noise.block_keys(seed, noise.leaf_number("w"), ())
    x = jnp.stack([jnp.eye(shape[0], dtype=dtype)] * 2)
    if implementation == "xla":
        found = paired_product(x, w, key, SCALES, EXACT[name], implementation="xla")
    else:
        found = pallas_pair(x, w, key, SCALES, EXACT[name], interpret=True)
    along = zeroth_order.direction(EXACT[name])
    assert found.dtype == dtype
    for i in range(2):
        expected = zeroth_order.perturb(along, {"w": w}, seed, SCALES[i])["w"]
        assert (expected != w).any()
        np.testing.assert_array_equal(found[i], expected)


def test_blocks_of_rows_are_summed_and_counters_wrap(monkeypatch):
    """Four blocks of rows, among which the counters pass 2^32."""
    monkeypatch.setattr(regimes, "VMEM_LIMIT", 2**19)
    w, key = weights((512, 256)), jnp.uint32(2**32 - 1000)
    assert regimes.pair_blocks(512, *w.shape, 4) == (512, 256)  # nothing fits: all rows
    assert regimes.pair_blocks(8, *w.shape, 4) == (128, 256)
    x = jnp.zeros((2, 8, 512)).at[:, jnp.arange(8), jnp.arange(8) * 64].set(1)
    found = pallas_pair(x, w, key, SCALES, zeroth_order.rademacher, interpret=True)
    expected = reference_pair(x, w, key, SCALES, zeroth_order.rademacher)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_products_agree_to_the_error_of_their_sums(shape):
    w, x, key = weights(shape), inputs(2, 5, shape[0]), jnp.uint32(3)
    found = pallas_pair(x, w, key, SCALES, zeroth_order.rademacher, interpret=True)
    expected = reference_pair(x, w, key, SCALES, zeroth_order.rademacher)
    assert (np.abs(found - expected) <= bound(x, w)).all()
    assert (np.abs(found - x @ w) > bound(x, w)).any()


def test_a_scale_of_zero_is_the_plain_product():
    """One-sided differences are a pair too."""
    w, key = weights((128, 128)), jnp.uint32(3)
    x, scales = jnp.stack([jnp.eye(128)] * 2), jnp.array([0.5, 0.0])
    found = pallas_pair(x, w, key, scales, zeroth_order.rademacher, interpret=True)
    np.testing.assert_array_equal(found[1], w)
    np.testing.assert_allclose(abs(found[0] - w), 0.5, atol=2.0**-21)  # w + s is rounded: |w| < 8


CASES = {  # which of x, w, key, scale are batched, and by how many
    "two signs": ((0, None, None, 0), 2),
    "two signs of one x": ((None, None, None, 0), 2),
    "three scales": ((0, None, None, 0), 3),
    "x": ((0, None, None, None), 3),
    "x and w": ((0, 0, None, None), 2),
    "keys": ((None, None, 0, 0), 2),
}


@pytest.mark.parametrize("name", CASES)
def test_vmap_is_a_loop(name):
    axes, size = CASES[name]
    arguments = (
        inputs(size, 5, 6),
        jax.random.normal(jax.random.key(2), (size, 6, 8)),
        jnp.arange(size, dtype=jnp.uint32),
        jnp.linspace(0.5, -0.5, size),
    )
    given = [a if axis == 0 else a[0] for a, axis in zip(arguments, axes, strict=True)]

    def one(x, w, key, scale):
        return perturbed_product(x, w, key, scale, zeroth_order.popcount_normal)

    found = jax.vmap(one, axes)(*given)
    for i in range(size):
        each = [a[i] if axis == 0 else a for a, axis in zip(given, axes, strict=True)]
        np.testing.assert_allclose(found[i], one(*each), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ["signs outside", "examples outside"])
def test_examples_may_be_vmapped_inside_and_outside(order):
    x, w = inputs(3, 5, 6), weights((6, 8))

    def one(x, scale):
        return perturbed_product(x, w, 3, scale, zeroth_order.rademacher)

    if order == "signs outside":
        found = jax.vmap(lambda s: jax.vmap(lambda x: one(x, s))(x))(SCALES)
    else:
        found = jax.vmap(jax.vmap(one, (None, 0)), (0, None), out_axes=1)(x, SCALES)
    expected = jnp.stack([one(x, s) for s in SCALES])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def large(tokens=256, dtype=jnp.bfloat16):
    """Abstract x, w, key and scales, where the kernel wins."""
    return [
        jax.ShapeDtypeStruct((2, tokens, 1024), dtype),
        jax.ShapeDtypeStruct((1024, 1024), dtype),
        jax.ShapeDtypeStruct((), jnp.uint32),
        jax.ShapeDtypeStruct((2,), jnp.float32),
    ]


def pair_of_signs(draws=zeroth_order.rademacher, **options):
    def one(x, w, key, scale):
        return perturbed_product(x, w, key, scale, draws, **options)

    return jax.vmap(one, (0, None, None, 0))


def test_two_signs_are_the_kernel_on_a_tpu_where_it_wins():
    assert calls_kernel(pair_of_signs(), *large())
    assert calls_kernel(pair_of_signs(), *large(dtype=jnp.float32))
    examples = jax.ShapeDtypeStruct((2, 4, 64, 1024), jnp.bfloat16)
    assert calls_kernel(pair_of_signs(), examples, *large()[1:])


def test_elsewhere_they_are_not():
    assert not calls_kernel(pair_of_signs(), *large(), platform="cpu")
    assert not calls_kernel(pair_of_signs(), *large(), platform="cuda")
    assert not calls_kernel(pair_of_signs(), *large(tokens=257))
    assert not calls_kernel(pair_of_signs(zeroth_order.box_muller_normal), *large())
    assert not calls_kernel(pair_of_signs(implementation="xla"), *large())
    assert not calls_kernel(pair_of_signs(), large(dtype=jnp.float32)[0], *large()[1:])
    small = [jax.ShapeDtypeStruct((2, 8, 128), jnp.float32), *large()[1:]]
    small[1] = jax.ShapeDtypeStruct((128, 128), jnp.float32)
    assert not calls_kernel(pair_of_signs(), *small)
    assert calls_kernel(pair_of_signs(implementation="pallas"), *small)


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_the_derivative_by_the_scale_is_the_product_with_z(implementation):
    x, w, key = inputs(2, 5, 6), weights((6, 8)), jnp.uint32(3)

    def pair(scales):
        draws = zeroth_order.rademacher
        return paired_product(x, w, key, scales, draws, implementation=implementation)

    _, slope = jax.jvp(pair, (jnp.zeros(2),), (jnp.array([1.0, 2.0]),))
    z = zeroth_order.rademacher.draw(noise.word(key, noise.counters(w.shape, key)))
    np.testing.assert_allclose(slope, jnp.stack([x[0] @ z, 2 * x[1] @ z]), rtol=1e-5, atol=1e-5)


def test_errors_name_what_is_accepted():
    x, w = jnp.ones((2, 5, 6)), jnp.ones((6, 8))
    draws = zeroth_order.rademacher
    with pytest.raises(ValueError, match=r"x has the shape \(3, 5, 6\).*\(2, tokens, m\)"):
        paired_product(jnp.ones((3, 5, 6)), w, 3, SCALES, draws)
    with pytest.raises(ValueError, match=r"w \(8, 6\); accepted: \(\.\.\., m\) and \(m, n\)"):
        perturbed_product(x, w.T, 3, 0.1, draws)
    with pytest.raises(ValueError, match="dtype float16; accepted: float32 and bfloat16"):
        perturbed_product(x, w.astype(jnp.float16), 3, 0.1, draws)
    with pytest.raises(ValueError, match="'triton'; accepted: None, 'xla', 'pallas'"):
        paired_product(x, w, 3, SCALES, draws, implementation="triton")
