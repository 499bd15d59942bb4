"""with_previous_gradient: which parameters and which batch, the first step, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def showing():
    """A transformation whose update is the previous gradient that it is given."""

    def update(updates, state, params=None, *, previous_gradient, **extra_args):
        del updates, params
        assert extra_args.keys() <= {"value"}
        return previous_gradient, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def gradient_of(batch):
    return jax.grad(lambda params: 0.5 * jnp.sum(batch * params["w"] ** 2))


def test_it_is_this_batch_at_the_parameters_of_the_step_before():
    tx = optim.with_previous_gradient(showing())
    params = [{"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 5.0])}, {"w": jnp.zeros(2)}]
    state, seen = tx.init(params[0]), []
    for step, batch in enumerate([10.0, 100.0, 1000.0]):
        grad_fn = gradient_of(batch)
        updates, state = tx.update(
            grad_fn(params[step]), state, params[step], grad_fn=grad_fn, value=0.0
        )
        seen.append(updates["w"].tolist())
    assert seen == [[0.0, 0.0], [100.0, 200.0], [3000.0, 5000.0]]
    assert int(state.steps) == 3


def test_exact_mars_equals_mars_given_the_gradients():
    """The batch of step t multiplies the parameters by t + 1; gradients by hand."""
    wrapped = optim.with_previous_gradient(optim.mars(0.1, approximate=False))
    plain = optim.mars(0.1, approximate=False)
    params = {"w": jnp.array([[1.0, -2.0, 0.5]])}
    state, other, last = wrapped.init(params), plain.init(params), None
    for step in range(3):
        batch = step + 1.0
        grad_fn = gradient_of(batch)
        gradient = grad_fn(params)
        updates, state = wrapped.update(gradient, state, params, grad_fn=grad_fn)
        previous = {"w": jnp.zeros((1, 3)) if last is None else batch * last}
        expected, other = plain.update(gradient, other, params, previous_gradient=previous)
        np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)
        last = params["w"]
        params = optim.apply_updates(params, updates)


def test_the_kept_parameters_are_copies_in_their_dtype():
    params = {"w": jnp.ones(3, jnp.bfloat16), "none": None}
    tx = optim.with_previous_gradient(showing())
    grad_fn = gradient_of(2.0)
    gradient = {"w": jnp.ones(3, jnp.bfloat16), "none": None}
    state = tx.init(params)
    updates, after = tx.update(
        gradient, state, params, grad_fn=lambda p: {"none": None, **grad_fn({"w": p["w"]})}
    )
    assert updates["w"].dtype == jnp.float32 and updates["none"] is None
    for kept in (state.params["w"], after.params["w"]):
        assert kept.dtype == jnp.bfloat16
        assert kept.unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()


def test_a_leaf_without_gradient_has_none_before_either():
    tx = optim.with_previous_gradient(showing())
    params = {"w": jnp.ones(2), "frozen": jnp.ones(2)}
    updates, _ = tx.update(
        {"w": jnp.ones(2), "frozen": None}, tx.init(params), params, grad_fn=lambda p: p
    )
    assert updates["frozen"] is None and updates["w"].tolist() == [0.0, 0.0]


def test_what_is_missing_is_named():
    tx = optim.with_previous_gradient(showing())
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="with_previous_gradient: grad_fn is missing; pass tx"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="with_previous_gradient: params is missing; pass tx"):
        tx.update(params, tx.init(params), grad_fn=lambda p: p)
