"""MeZO by hand, the same streamed as tree-wise, and again from nothing but what it told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroth_order
from tests.zeroth_order.test_streaming import ALONG, TOKENS, model, params


def loss(p, tokens):
    logits = model(p, tokens)
    return jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, tokens[:, None], 1)[:, 0]


def run(steps=20, dtype=jnp.float32, streamed=True, **arguments):
    estimator = zeroth_order.spsa(ALONG, epsilon=1e-2, samples=2, streamed=streamed)
    algorithm = zeroth_order.mezo(loss, 1e-2, estimator, ALONG, **arguments)
    state = algorithm.init(params(dtype=dtype), jax.random.key(3))

    @jax.jit
    def all_steps(state):
        return jax.lax.scan(lambda s, _: algorithm.update(s, TOKENS), state, length=steps)

    return all_steps(state)


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_a_step_by_hand():
    def quadratic(p, target):
        return jnp.square(p["w"] - target)

    along = zeroth_order.direction()
    estimator = zeroth_order.spsa(along, epsilon=0.1)
    algorithm = zeroth_order.mezo(quadratic, lambda step: 0.5 / (1 + step), estimator, along)
    state = algorithm.init({"w": jnp.array(3.0)}, jax.random.key(0))
    # In one dimension the estimate is the gradient, 2 (w - mean of the targets), for either sign.
    for rate, before, after in ((0.5, 3.0, 1.0), (0.25, 1.0, 1.0)):
        state, info = algorithm.update(state, jnp.array([0.0, 2.0]))
        np.testing.assert_allclose(state.params["w"], after, atol=1e-5)
        np.testing.assert_allclose(info.learning_rate, rate)
        np.testing.assert_allclose(info.loss, (before - 1) ** 2 + 1 + 0.01, rtol=1e-5)
    assert state.step == 2 and info.evaluations == 2


def test_it_descends():
    _, info = run(steps=400)
    assert info.loss[-50:].mean() < 0.8 * info.loss[:50].mean()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_streamed_and_treewise_steps_have_the_same_bits(decay):
    streamed, told = run(weight_decay=decay)
    treewise, expected = run(weight_decay=decay, streamed=False)
    assert same(told.loss, expected.loss)
    assert same(streamed.params, treewise.params)


def test_parameters_are_a_function_of_the_first_ones_and_of_what_was_told():
    state, info = run()
    replayed = params()
    for t in range(20):
        gradient = zeroth_order.SeededGradient(*(x[t] for x in info.gradient))
        replayed = zeroth_order.apply(ALONG, gradient, replayed, rate=info.learning_rate[t])
    assert same(replayed, state.params)


def test_the_state_is_donated_in_place_and_keeps_its_dtypes():
    estimator = zeroth_order.spsa(ALONG, streamed=True)
    algorithm = zeroth_order.mezo(loss, 1e-2, estimator, ALONG)
    given = params(dtype=jnp.bfloat16)
    state = algorithm.init(given, jax.random.key(0))
    # A compiled program refuses other structures and dtypes: the second step is as the first.
    step = jax.jit(algorithm.update, donate_argnums=0).lower(state, TOKENS).compile()
    size = sum(x.nbytes for x in jax.tree.leaves(given))
    assert step.memory_analysis().alias_size_in_bytes >= size
    after, _ = step(state, TOKENS)
    assert jax.tree.map(lambda x: x.dtype, after.params) == jax.tree.map(lambda x: x.dtype, given)
    assert not any(x.is_deleted() for x in jax.tree.leaves(given))
    assert step(after, TOKENS)[0].step == 2


def test_the_mask_chooses_what_decays():
    still = zeroth_order.mezo(
        lambda p, _: jnp.zeros(2),
        0.5,
        zeroth_order.spsa(zeroth_order.direction()),
        zeroth_order.direction(),
        weight_decay=0.1,
        mask={"w": True, "bias": False},
    )
    state = still.init({"w": jnp.ones(2), "bias": jnp.ones(2)}, jax.random.key(0))
    after = still.update(state, None)[0].params
    np.testing.assert_allclose(after["w"], 0.95)
    np.testing.assert_array_equal(after["bias"], 1.0)


def test_bad_arguments_are_named():
    estimator = zeroth_order.spsa(ALONG)
    with pytest.raises(ValueError, match="mezo: weight_decay is -1; accepted: weight_decay >= 0"):
        zeroth_order.mezo(loss, 1e-2, estimator, ALONG, weight_decay=-1)
    with pytest.raises(ValueError, match="nothing is perturbed"):
        zeroth_order.mezo(loss, 1e-2, estimator, zeroth_order.direction()).init(
            {"count": jnp.int32(0)}, jax.random.key(0)
        )
