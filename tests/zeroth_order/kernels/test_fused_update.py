"""The update has the bits of `apply`, in XLA and in the kernel, and rounds by words of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order
from optim.quantized.stochastic_rounding import round_up_by
from zeroth_order import noise
from zeroth_order.kernels import fused_update as module
from zeroth_order.kernels.fused_update import fused_update

EXACT = {
    "rademacher": zeroth_order.rademacher,
    "popcount_normal": zeroth_order.popcount_normal,
}
SHAPES = [(64, 128), (300, 700), (2, 96, 256)]  # whole tiles, cut ones, a stack
DIRECTIONS = 5


def interpreted(monkeypatch):
    """The kernel on a CPU, behind the same function."""
    kernel = module.pallas_update
    monkeypatch.setattr(module, "pallas_update", lambda *a, **k: kernel(*a, **k, interpret=True))


def setting(shape, dtype, seed=11):
    """w, and the keys and coefficients of an estimate of this seed, stacked as w is."""
    stack = shape[:-2]
    w = jax.random.normal(jax.random.key(0), shape, dtype)
    leaf = noise.leaf_number("w")
    keys = jnp.stack([noise.block_keys(seed + j, leaf, stack) for j in range(DIRECTIONS)])
    return w, keys, jnp.linspace(-0.3, 0.2, DIRECTIONS)


def applied(draws, w, coefficients, stack, seed=11):
    """What `zeroth_order.apply` makes of it, with a rate of -1 so that it adds."""
    along = zeroth_order.direction(draws, stack={"w": stack})
    estimate = zeroth_order.SeededGradient(jnp.uint32(seed), coefficients)
    return zeroth_order.apply(along, estimate, {"w": w}, rate=-1.0)["w"]


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EXACT)
def test_bits_are_those_of_apply(name, shape, dtype, implementation, monkeypatch):
    interpreted(monkeypatch)
    w, keys, coefficients = setting(shape, dtype)
    found = fused_update(w, keys, coefficients, EXACT[name], implementation=implementation)
    assert found.dtype == dtype and (found != w).mean() > 0.9
    np.testing.assert_array_equal(found, applied(EXACT[name], w, coefficients, len(shape) - 2))


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_rounded_by_words_of_the_same_addresses(shape, implementation, monkeypatch):
    interpreted(monkeypatch)
    w, keys, coefficients = setting(shape, jnp.bfloat16)
    draws, stack = zeroth_order.rademacher, shape[:-2]
    rounding = noise.block_keys(99, noise.leaf_number("w"), stack)
    found = fused_update(w, keys, coefficients, draws, rounding, implementation=implementation)
    total = applied(draws, w.astype(jnp.float32), coefficients, len(stack))
    spread = rounding[..., None, None]
    bits = noise.word(spread, spread + noise.counters(shape[-2:]))
    np.testing.assert_array_equal(found, round_up_by(bits >> 16, total))
    assert (found != total.astype(jnp.bfloat16)).mean() > 0.1


def test_steps_far_below_the_spacing_move_the_mean(monkeypatch):
    """By 2^-12 where the spacing is 2^-7: to the nearest, nothing would move."""
    interpreted(monkeypatch)
    w, key = jnp.ones((512, 512), jnp.bfloat16), jnp.array([3], jnp.uint32)
    step = jnp.array([2.0**-12])
    options = {"noise": zeroth_order.rademacher, "implementation": "pallas"}
    assert (fused_update(w, key, step, **options) == 1).all()
    found = fused_update(w, key, step, rounding=jnp.uint32(5), **options).astype(jnp.float32)
    z = zeroth_order.rademacher.draw(noise.word(key[0], noise.counters(w.shape, key[0])))
    realized = float(jnp.mean((found - 1) * z)) / 2.0**-12
    # A weight moves by 2^-7 with chance 1/32, or by 2^-8 with 1/16 below 1, so that the standard
    # error is sqrt(2^-18 (1 / 8 + 1 / 16) / 2) / 2^-12 = 0.01 of a step.
    assert abs(realized - 1) < 0.05


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_every_block_may_have_coefficients_of_its_own(implementation, monkeypatch):
    interpreted(monkeypatch)
    w, keys, coefficients = setting((2, 96, 256), jnp.float32)
    each = jnp.stack([coefficients, 3 * coefficients], axis=1)
    options = {"noise": zeroth_order.rademacher, "implementation": implementation}
    found = fused_update(w, keys, each, **options)
    for i in range(2):
        alone = fused_update(w[i], keys[:, i], each[:, i], **options)
        np.testing.assert_array_equal(found[i], alone)


def text(directions, shape, platform="tpu", draws=zeroth_order.rademacher, **options):
    """Of the program for a platform, lowered where there is none."""
    stack = shape[:-2]
    arguments = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16),
        jax.ShapeDtypeStruct((directions, *stack), jnp.uint32),
        jax.ShapeDtypeStruct((directions,), jnp.float32),
        jax.ShapeDtypeStruct(stack, jnp.uint32),
    )

    def update(w, keys, coefficients, rounding):
        return fused_update(w, keys, coefficients, draws, rounding, **options)

    traced = jax.jit(update, donate_argnums=0).trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_many_directions_are_the_kernel_on_a_tpu_alone():
    assert "tpu_custom_call" in text(33, (3, 1024, 1024))
    assert "tpu_custom_call" in text(1, (1024, 1024), implementation="pallas")
    for elsewhere in (
        text(33, (3, 1024, 1024), platform="cpu"),
        text(33, (3, 1024, 1024), platform="cuda"),
        text(32, (3, 1024, 1024)),
        text(33, (3, 128, 128)),
        text(33, (1024, 1100)),
        text(33, (1025, 1024)),
        text(33, (2**21,)),
        text(33, (3, 1024, 1024), implementation="xla"),
        text(33, (1024, 1024), draws=zeroth_order.box_muller_normal),
    ):
        assert "tpu_custom_call" not in elsewhere


def test_the_derivative_by_a_coefficient_is_its_noise():
    """In forward and reverse mode, by the reference, whichever implementation is asked for."""
    w, keys = jnp.zeros((64, 128)), jnp.arange(2, dtype=jnp.uint32)

    def first(c):
        options = {"noise": zeroth_order.rademacher, "implementation": "pallas"}
        return fused_update(w, keys, jnp.stack([c, 2.0]), **options)

    z = zeroth_order.rademacher.draw(noise.word(keys[0], noise.counters(w.shape, keys[0])))
    np.testing.assert_array_equal(jax.jvp(first, (0.5,), (1.0,))[1], z)
    np.testing.assert_allclose(jax.grad(lambda c: (first(c) * z).sum())(0.5), z.size, rtol=1e-6)


def test_errors_name_what_is_accepted():
    w, keys, coefficients = setting((2, 96, 256), jnp.float32)
    draws = zeroth_order.rademacher
    with pytest.raises(ValueError, match=r"keys has the shape \(5, 2\) and w \(96, 256\)"):
        fused_update(w[0], keys, coefficients, draws)
    with pytest.raises(ValueError, match=r"coefficients has the shape \(4,\); accepted: \(5,\)"):
        fused_update(w, keys, coefficients[:4], draws)
    with pytest.raises(ValueError, match=r"rounding has the shape \(\); accepted.*\(2,\)"):
        fused_update(w, keys, coefficients, draws, jnp.uint32(1))
    with pytest.raises(ValueError, match="dtype float16; accepted: float32 and bfloat16"):
        fused_update(w.astype(jnp.float16), keys, coefficients, draws)
    with pytest.raises(ValueError, match="'triton'; accepted: None, 'xla', 'pallas'"):
        fused_update(w, keys, coefficients, draws, implementation="triton")


@pytest.mark.parametrize(
    ("directions", "along", "kernels"),
    [
        (40, zeroth_order.direction(), 1),
        (8, zeroth_order.direction(), 0),
        (40, zeroth_order.random_mask(zeroth_order.direction(), 0.5), 0),
        (40, zeroth_order.low_rank(zeroth_order.direction()), 0),
    ],
)
def test_apply_takes_the_kernel_on_tpus_where_it_wins(directions, along, kernels):
    """In programs that are lowered for a TPU, none of which is needed."""
    w = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)
    estimate = zeroth_order.SeededGradient(jnp.uint32(3), jnp.ones(directions))
    step = jax.jit(lambda p: zeroth_order.apply(along, estimate, p, stochastic=True))
    lowered = step.trace({"w": w}).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") == kernels


@pytest.mark.parametrize("stochastic", [False, True])
def test_apply_has_the_same_bits_by_the_kernel(stochastic, monkeypatch):
    from zeroth_order import gradients

    interpreted(monkeypatch)
    w = jax.random.normal(jax.random.key(0), (2, 64, 128), jnp.bfloat16)
    along = zeroth_order.scaled(
        zeroth_order.direction(stack={"w": 1}), {"w": jnp.array([1.0, 0.25])}
    )
    estimate = zeroth_order.SeededGradient(jnp.uint32(3), jnp.linspace(-0.3, 0.2, 5))

    def step():
        return zeroth_order.apply(along, estimate, {"w": w}, rate=0.5, stochastic=stochastic)["w"]

    expected = step()
    monkeypatch.setattr(gradients, "_kernel_wins", lambda *_: True)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda value, *, tpu, default: tpu(value))
    np.testing.assert_array_equal(step(), expected)


def test_twenty_steps_of_mezo_have_the_same_bits_by_the_kernel(monkeypatch):
    from zeroth_order import gradients

    interpreted(monkeypatch)
    along = zeroth_order.direction(stack={"w": 1})
    params = {"w": jax.random.normal(jax.random.key(0), (2, 64, 128)) / 8}
    x = jax.random.normal(jax.random.key(1), (4, 64))

    def loss(p, _):
        layer = lambda h, w: (jnp.tanh(h @ zeroth_order.read(w))[:, :64], None)  # noqa: E731
        return jnp.sum(jax.lax.scan(layer, x, p["w"])[0], axis=1)

    estimator = zeroth_order.spsa(along, epsilon=1e-2, samples=2, streamed=True)
    algorithm = zeroth_order.mezo(loss, 1e-2, estimator, along)

    def run():
        state = algorithm.init(params, jax.random.key(3))
        steps = jax.jit(lambda s: jax.lax.scan(lambda s, _: algorithm.update(s, 0), s, length=20))
        return steps(state)[0].params["w"]

    expected = run()
    monkeypatch.setattr(gradients, "_kernel_wins", lambda *_: True)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda value, *, tpu, default: tpu(value))
    np.testing.assert_array_equal(run(), expected)
    assert (expected != params["w"]).all()
