"""Cautious updates: masks and scales by hand, what is refused, and what cannot be known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def masked(update, gradient, rescale):
    """What `cautious` makes of an update that the inner transformation draws from nowhere."""
    inner = optax.stateless(lambda updates, params: update)
    tx = optim.cautious(inner, rescale=rescale)
    return tx.update(gradient, inner.init(gradient), gradient)[0]


@pytest.mark.parametrize(
    ("rescale", "expected"),
    [
        # Two of five pass: scaled by 1 / (2 / 5) and by 5 / (2 + 1).
        ("mean", [2.5, 0.0, 5.0, 0.0, 0.0]),
        ("count", [5 / 3, 0.0, 10 / 3, 0.0, 0.0]),
    ],
)
def test_mask_and_scale_by_hand(rescale, expected):
    update = jnp.array([1.0, -1.0, 2.0, 4.0, 0.0])
    gradient = jnp.array([3.0, 1.0, 0.1, 0.0, 5.0])
    np.testing.assert_allclose(masked(update, gradient, rescale), expected, rtol=1e-6)


def test_mean_is_at_least_a_thousandth():
    """One of 4000 passes; it is scaled by 1000 and not by 4000."""
    update, gradient = jnp.ones(4000), -jnp.ones(4000).at[7].set(-1.0)
    ours = masked(update, gradient, "mean")
    np.testing.assert_allclose(ours[7], 1000.0, rtol=1e-6)
    assert jnp.count_nonzero(ours) == 1
    assert masked(update, gradient, "count")[7] == 2000.0


@pytest.mark.parametrize("rescale", ["mean", "count"])
def test_nothing_left_is_a_step_of_zero(rescale):
    assert masked(jnp.ones(3), -jnp.ones(3), rescale).tolist() == [0.0, 0.0, 0.0]
    assert masked(jnp.zeros((0, 3)), jnp.zeros((0, 3)), rescale).shape == (0, 3)


def test_an_update_that_agrees_everywhere_is_the_inner_one():
    """Descent without momentum always agrees; "count" still has its one too many."""
    gradient = jnp.array([1.0, -2.0, 3.0])
    tx = optim.cautious(optax.identity())
    assert tx.update(gradient, tx.init(gradient))[0].tolist() == gradient.tolist()
    tx = optim.cautious(optax.identity(), rescale="count")
    np.testing.assert_allclose(tx.update(gradient, tx.init(gradient))[0], gradient * 3 / 4)


def test_products_that_underflow_keep_their_sign():
    tiny = jnp.array([1e-25, -1e-25])
    assert tiny[0] * tiny[0] == 0
    np.testing.assert_allclose(masked(tiny, tiny, "mean"), tiny)


def test_masks_are_leaf_by_leaf():
    update = {"a": jnp.ones(2), "b": jnp.ones(2)}
    gradient = {"a": jnp.array([1.0, -1.0]), "b": jnp.ones(2)}
    ours = masked(update, gradient, "mean")
    assert ours["a"].tolist() == [2.0, 0.0] and ours["b"].tolist() == [1.0, 1.0]


def test_the_state_is_the_inner_one_and_extra_arguments_reach_it():
    params = jnp.zeros(2)
    tx = optim.cautious(optim.gradient_noise())
    assert isinstance(tx.init(params), optim.GradientNoiseState)
    with pytest.raises(ValueError, match="gradient_noise: key is None"):
        tx.update(params, tx.init(params))
    tx.update(params, tx.init(params), key=jax.random.key(0))


@pytest.mark.parametrize(
    "inner",
    [
        optim.lion(0.1),
        optax.adam(1e-3),
        optim.lion(lambda step: 0.1 * step),
        optim.inject_hyperparams(optim.lion)(learning_rate=0.1),
        optax.scale(-1.0),
    ],
)
def test_an_inner_that_descends_is_refused_at_init(inner):
    tx = optim.cautious(inner)
    with pytest.raises(ValueError, match="cautious: inner gives updates against the gradient"):
        tx.init({"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match="cautious: inner gives"):
        jax.jit(tx.init)({"w": jnp.zeros(3)})


@pytest.mark.parametrize(
    "inner",
    [
        optim.scale_by_lion(),
        optax.scale_by_adam(),
        optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1)),
        optax.stateless(lambda updates, params: jax.tree.map(jnp.zeros_like, updates)),
    ],
)
def test_an_inner_that_goes_along_the_gradient_is_accepted(inner):
    optim.cautious(inner).init({"w": jnp.zeros(3)})


def test_what_the_trial_step_cannot_tell_is_accepted():
    """A rate that is traced, names that the step lacks, and draws that would be made twice."""
    params = {"w": jnp.zeros(3)}
    jax.jit(lambda rate: optim.cautious(optim.lion(rate)).init(params))(0.1)
    labels = {"w": "lion"}
    optim.cautious(optax.partition({"lion": optim.lion(0.1)}, labels)).init(params)
    with jax.debug_key_reuse(True):
        key = jax.random.key(0)
        noisy = optax.chain(optax.add_noise(1.0, 0.0, key), optax.scale(-1.0))
        optim.cautious(noisy).init(params)
        jax.random.normal(key)


def test_rescale_is_named():
    with pytest.raises(ValueError, match="cautious: rescale is 'sum'; accepted: 'mean' or 'count'"):
        optim.cautious(optim.scale_by_lion(), rescale="sum")


def test_bfloat16_gradients_are_counted_in_float32():
    """Of 1001 coordinates 501 pass; bfloat16 has neither number."""
    gradient = jnp.where(jnp.arange(1001) % 2 == 0, 1.0, -1.0).astype(jnp.bfloat16)
    ours = masked(jnp.ones(1001, jnp.bfloat16), gradient, "mean")
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours[0], 1001 / 501, rtol=1e-6)
