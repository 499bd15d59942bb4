"""HARPG and the change of the gradient that it reads: steps by hand, exactness, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

KEY = jax.random.key(0)


def test_weights_and_directions_by_hand():
    tx = optim.scale_by_harpg(normalize=False)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    gradients = [jnp.array([3.0, 1.0]), jnp.array([6.0, 0.0]), jnp.array([1.0, 1.0])]
    changes = [jnp.array([9.0, 9.0]), jnp.array([1.0, -1.0]), jnp.array([0.5, 0.0])]
    state, d = tx.init(params), np.zeros(2)
    for t, (g, c) in enumerate(zip(gradients, changes, strict=True)):
        w = 2 / (t + 2)
        d = (1 - w) * (d + np.asarray(c)) + w * np.asarray(g)
        updates, state = tx.update({"a": g, "b": g[0]}, state, gradient_change={"a": c, "b": c[0]})
        np.testing.assert_allclose(updates["a"], d, rtol=1e-6)
        np.testing.assert_allclose(updates["b"], d[0], rtol=1e-6)


def test_steps_have_the_length_of_the_rate_over_all_leaves():
    tx = optim.harpg(0.5)
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(-4.0)}
    zero = jax.tree.map(jnp.zeros_like, gradient)
    updates, _ = tx.update(gradient, tx.init(zero), gradient_change=zero)
    np.testing.assert_allclose(updates["a"], [-0.3, 0.0], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], 0.4, rtol=1e-6)
    updates, _ = tx.update(zero, tx.init(zero), gradient_change=zero)
    jax.tree.map(lambda u: np.testing.assert_array_equal(u, 0), updates)


def test_without_noise_and_with_a_linear_gradient_the_average_is_the_gradient():
    """Then the change is exact wherever the point between is, whatever the steps and weights."""
    matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    grad_fn = lambda p: {"w": matrix @ p["w"], "n": None}  # noqa: E731
    tx = optim.with_gradient_change(optim.scale_by_harpg(0.1, normalize=False))
    params = {"w": jnp.array([1.0, -2.0]), "n": None}
    state = tx.init(params)
    for step in range(5):
        extras = {"grad_fn": grad_fn, "key": jax.random.fold_in(KEY, step)}
        updates, state = tx.update(grad_fn(params), state, params, **extras)
        np.testing.assert_allclose(updates["w"], matrix @ params["w"], rtol=1e-5)
        params = {"w": params["w"] + jnp.sin(step + params["w"]), "n": None}


def showing():
    """A transformation whose update is the change that it is given."""

    def update(updates, state, params=None, *, gradient_change, **extra_args):
        return gradient_change, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def test_the_change_is_unbiased_between_the_two_steps():
    """Of a cubic gradient; the batch is the second step's."""
    tx = optim.with_gradient_change(showing())
    before, now = jnp.array([0.5, -1.0]), jnp.array([2.0, 1.0])
    slope = lambda batch: lambda p: batch * p**3  # noqa: E731

    def change(key):
        _, state = tx.update(before, tx.init(before), before, grad_fn=slope(1.0), key=KEY)
        return tx.update(now, state, now, grad_fn=slope(10.0), key=key)[0]

    found = jax.jit(jax.vmap(change))(jax.random.split(KEY, 4000))
    expected = 10 * (now**3 - before**3)
    assert (jnp.abs(found.mean(0) - expected) < 5 * found.std(0) / 4000**0.5).all()
    assert (found.std(0) > 0.1 * jnp.abs(expected)).all()


def test_the_first_change_is_zero_and_integers_stand_still():
    params = {"w": jnp.ones(2, jnp.bfloat16), "n": jnp.array(3)}
    grad_fn = jax.grad(lambda p: jnp.sum(p["w"] ** 2 * p["n"].astype(p["w"].dtype)), allow_int=True)
    tx = optim.with_gradient_change(showing())
    gradient, state = grad_fn(params), tx.init(params)
    updates, state = tx.update(gradient, state, params, grad_fn=grad_fn, key=KEY)
    np.testing.assert_array_equal(updates["w"], 0)
    moved = {"w": params["w"] * 2, "n": params["n"]}
    updates, _ = tx.update(gradient, state, moved, grad_fn=grad_fn, key=KEY)
    np.testing.assert_allclose(updates["w"], 6.0)
    assert updates["w"].dtype == jnp.float32
    np.testing.assert_array_equal(updates["n"], 0)


@pytest.mark.slow
def test_it_averages_noise_away_that_plain_normalized_descent_keeps():
    """Noise of deviation 1 in every gradient; after 400 steps the average has much less."""
    scales = jnp.array([1.0, 4.0])

    def run(tx, grad_extras):
        @jax.jit
        def steps(key):
            def step(carry, t):
                params, state = carry
                noise = jax.random.normal(jax.random.fold_in(key, t), (2,))
                grad_fn = lambda p: scales * p + noise  # noqa: E731
                extras = {"grad_fn": grad_fn, "key": jax.random.fold_in(key, -t - 1)}
                updates, state = tx.update(
                    grad_fn(params), state, params, **(extras if grad_extras else {})
                )
                params = optim.apply_updates(params, updates)
                return (params, state), optax.tree.norm(scales * params)

            start = jnp.array([5.0, 5.0])
            return jax.lax.scan(step, (start, tx.init(start)), jnp.arange(400))[1][-50:].mean()

        return jnp.median(jax.vmap(steps)(jax.random.split(jax.random.key(1), 8)))

    rate = lambda count: 20.0 / (count + 20.0)  # noqa: E731
    ours = run(optim.with_gradient_change(optim.harpg(rate)), True)
    plain = run(
        optax.chain(optax.normalize_by_update_norm(), optax.scale_by_learning_rate(rate)), False
    )
    assert ours < 0.7 * plain


@pytest.mark.parametrize("weight", [0.0, 1.5, -1])
def test_weights_that_cannot_be(weight):
    with pytest.raises(ValueError, match=f"harpg: weight is {weight}; accepted: 0 < weight <= 1"):
        optim.harpg(0.1, weight=weight)


def test_what_is_missing_is_named():
    params = jnp.ones(2)
    tx = optim.harpg(0.1)
    with pytest.raises(ValueError, match="harpg: gradient_change is missing; wrap the whole"):
        tx.update(params, tx.init(params), params)
    wrapped = optim.with_gradient_change(tx)
    arguments = {"params": params, "grad_fn": lambda p: p, "key": KEY}
    for name in arguments:
        with pytest.raises(ValueError, match=f"with_gradient_change: {name} is missing; pass tx"):
            wrapped.update(params, wrapped.init(params), **{**arguments, name: None})
