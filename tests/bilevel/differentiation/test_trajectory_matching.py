"""Trajectory matching against its loss with a detached trajectory, differentiated by JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel

CLASSES = 3


def network_loss(theta, x, batch):
    """Cross-entropy with soft labels, which are learned as well."""
    hidden = jnp.tanh(x["images"][batch["index"]] @ theta["in"])
    logits = hidden @ theta["out"] * batch["weight"]
    return -jnp.mean(
        jnp.sum(jax.nn.softmax(x["labels"])[batch["index"]] * jax.nn.log_softmax(logits), 1)
    )


def problem(steps, size=6, dtype=np.float64):
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), dtype)

    x = {"images": normal(size, 4), "labels": normal(size, CLASSES)}
    start = {"in": normal(4, 5), "out": normal(5, CLASSES)}
    target = jax.tree.map(lambda u: u + 0.1 * normal(*u.shape), start)
    batches = {
        "index": jnp.asarray(random.integers(0, size, (steps, 4))),
        "weight": jnp.asarray(random.uniform(0.5, 1, steps), dtype),
    }
    return x, start, target, batches


def squared_norm(tree):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))


@functools.partial(jax.jit, static_argnames="detached")
def written_out(x, rate, start, target, batches, detached=True):
    """The loss with every step in sight, each parameter stopped before it meets the data."""
    theta = start
    for i in range(len(batches["weight"])):
        at = jax.lax.stop_gradient(theta) if detached else theta
        g = jax.grad(network_loss)(at, x, jax.tree.map(lambda leaf: leaf[i], batches))  # noqa: B023
        theta = jax.tree.map(lambda u, v: u - rate * v, theta, g)
    return squared_norm(jax.tree.map(jnp.subtract, theta, target)) / squared_norm(
        jax.tree.map(jnp.subtract, start, target)
    )


@pytest.mark.slow
def test_gradients_are_those_of_the_detached_trajectory():
    with jax.enable_x64(True):
        given = problem(steps=3)
        x, *others = given
        loss, gradients = jax.jit(
            lambda x, rate, *others: bilevel.trajectory_matching(network_loss, x, rate, *others)
        )(x, 0.3, *others)
        wanted, exact = jax.value_and_grad(written_out, (0, 1))(x, 0.3, *others)
        np.testing.assert_allclose(loss, wanted, rtol=1e-13)
        for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True):
            assert abs(theirs).max() > 1e-3
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-14)
        # What is left out is no trifle here, and neither is the 2.
        through = jax.grad(written_out)(x, 0.3, *others, detached=False)
        apart = squared_norm(jax.tree.map(jnp.subtract, through, exact[0]))
        assert apart > 1e-4 * squared_norm(exact[0])


def test_one_step_worked_by_hand():
    """g = theta - x: 1 - 0.5 (1 - 3) = 2 of the 5; c = 2 0.5 (5 - 2) / 16, and dg/dx = -1."""
    loss, (gradient, slope) = bilevel.trajectory_matching(
        lambda theta, x, batch: (theta - x) ** 2 / 2, 3.0, 0.5, 1.0, 5.0, jnp.zeros(1)
    )
    np.testing.assert_allclose(loss, 9 / 16)
    np.testing.assert_allclose(gradient, -3 / 16)
    np.testing.assert_allclose(slope, -2 * 6 / 16)


def temporaries(steps):
    x, start, target, batches = problem(steps, size=64, dtype=np.float32)
    compiled = (
        jax.jit(functools.partial(bilevel.trajectory_matching, network_loss))
        .lower(x, 0.3, start, target, batches)
        .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_steps():
    few, many = temporaries(10), temporaries(1000)
    print("bytes at 10 and 1000 steps:", few, many)
    assert many == few


def test_dtypes_are_kept():
    loss, (gradient, slope) = bilevel.trajectory_matching(
        lambda theta, x, batch: jnp.sum((theta - x) ** 2) / 2,
        jnp.full(2, 3, jnp.bfloat16),
        0.5,
        jnp.ones(2, jnp.bfloat16),
        jnp.full(2, 5, jnp.bfloat16),
        jnp.zeros(1),
    )
    assert (gradient.dtype, loss.dtype, slope.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(loss, 9 / 16)
    np.testing.assert_allclose(gradient.astype(jnp.float32), -3 / 32)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": 1j}, r"trajectory_matching: x is of complex64; accepted: real floats\."),
        ({"start": 1}, r"trajectory_matching: start is of int32; accepted: real floats\."),
        (
            {"target": jnp.ones(3)},
            r"trajectory_matching: target is float32\[3\]; accepted: a float of the shape that ",
        ),
        (
            {"batches": (jnp.ones(3), jnp.ones(2))},
            r"trajectory_matching: batches has leaves whose first axes are \[\(2,\), \(3,\)\]; ",
        ),
        ({"batches": None}, r"trajectory_matching: batches has leaves whose first axes are \[\]; "),
        (
            {"batches": 3},
            r"trajectory_matching: batches has leaves whose first axes are \[\(\)\]; ",
        ),
    ],
)
def test_errors_name_the_argument_the_value_and_what_is_accepted(changed, message):
    given = {"x": 1.0, "rate": 0.1, "start": 1.0, "target": 2.0, "batches": jnp.ones(3)}
    with pytest.raises(ValueError, match=message):
        bilevel.trajectory_matching(lambda theta, x, batch: theta * x, **given | changed)
