"""record_gradient_norms: numpy's norms, the end of the record, dtypes, what passes through."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

GRADIENTS = {
    "w": jnp.asarray([[3.0, -4.0], [0.0, 12.0]]),
    "b": jnp.asarray([2.0, -1.0], jnp.bfloat16),
    "integers": jnp.array([100, 200]),
    "none": None,
    "empty": jnp.zeros((0, 3)),
}
FLOATS = np.array([3.0, -4.0, 0.0, 12.0, 2.0, -1.0])


@pytest.mark.parametrize(
    ("norm", "expected"), [("l2", np.linalg.norm(FLOATS)), ("l1", np.abs(FLOATS).sum())]
)
def test_records_numpys_norms_and_passes_updates_through(norm, expected):
    tx = optim.record_gradient_norms(3, norm=norm)
    state = tx.init(GRADIENTS)
    assert state.norms.dtype == jnp.float32 and jnp.isnan(state.norms).all()
    updates, state = tx.update(GRADIENTS, state)
    assert updates is GRADIENTS
    np.testing.assert_allclose(state.norms, [expected, np.nan, np.nan], rtol=1e-6)
    assert state.steps == 1


def test_steps_beyond_the_record_are_dropped():
    tx = optim.record_gradient_norms(2)

    def step(state, g):
        _, state = tx.update(g, state)
        return state, state.norms

    state, norms = jax.lax.scan(step, tx.init(jnp.ones(())), jnp.array([1.0, -2.0, 3.0, 4.0]))
    assert norms[2:].tolist() == [[1, 2], [1, 2]] and state.steps == 4
    full = state._replace(steps=jnp.int32(2**31 - 1))
    assert tx.update(jnp.ones(()), full)[1].norms.tolist() == [1, 2]


def test_accumulates_bfloat16_in_float32():
    """In bfloat16 a sum of ones stays at 256."""
    ones = jnp.ones(3000, jnp.bfloat16)
    for norm, expected in (("l1", 3000), ("l2", np.sqrt(3000))):
        tx = optim.record_gradient_norms(1, norm=norm)
        norms = tx.update(ones, tx.init(ones))[1].norms
        assert norms[0] == pytest.approx(expected, rel=1e-6)


def test_float64_parameters_have_a_float64_record():
    with jax.enable_x64(True):
        tx = optim.record_gradient_norms(1)
        x = jnp.array([1e-200, 1e-200]) * 1e60
        norms = tx.update(x, tx.init(x))[1].norms
        assert norms.dtype == jnp.float64
        assert norms[0] == pytest.approx(np.sqrt(2) * 1e-140)


def test_before_clipping_it_sees_the_gradient_and_after_it_the_clipped_one():
    g = jnp.array([30.0, 40.0])
    first = optax.chain(optim.record_gradient_norms(1), optax.clip_by_global_norm(1.0))
    last = optax.chain(optax.clip_by_global_norm(1.0), optim.record_gradient_norms(1))
    assert first.update(g, first.init(g))[1][0].norms[0] == pytest.approx(50)
    assert last.update(g, last.init(g))[1][1].norms[0] == pytest.approx(1)


def test_from_a_run_to_the_next_schedule():
    """The norms of one descent, through the closed form, become the rates of the next."""
    tx = optax.chain(optim.record_gradient_norms(8), optax.sgd(0.1))
    x, state = jnp.array([1.0, 2.0]), tx.init(jnp.zeros(2))
    seen = []
    for _ in range(8):
        seen.append(np.linalg.norm(x))  # the gradient of |x|^2 / 2
        updates, state = tx.update(x, state)
        x = optax.apply_updates(x, updates)
    refined = optim.refine_schedule(state[0].norms)
    np.testing.assert_allclose(refined, optim.refine_schedule(np.array(seen)), rtol=1e-5)
    assert optim.array_schedule(refined, peak_value=0.3)(jnp.argmax(refined)) == np.float32(0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "total_steps is 0; accepted: an int from 1"),
        ((2.5,), "total_steps is 2.5; accepted: an int from 1"),
        ((2, "l3"), "norm is 'l3'; accepted: 'l2', 'l1'"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=f"record_gradient_norms: {message}"):
        total, *norm = arguments
        optim.record_gradient_norms(total, **({"norm": norm[0]} if norm else {}))
