"""The wrapper that makes curvature estimates: when, of what, and at no cost otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

KEY = jax.random.key(0)


def recorder():
    """A transformation whose updates are the curvature it is given, -1 without one."""

    def update(updates, state, params=None, *, curvature, **extra_args):
        if curvature is None:
            return jax.tree.map(lambda g: jnp.full_like(g, -1), updates), state
        return curvature, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def run(tx, steps, curvature_fn):
    """Updates of all steps, from parameters that count them."""

    @jax.jit
    def all_steps():
        def step(state, t):
            params = jnp.full((2,), t, jnp.float32)
            key = jax.random.fold_in(KEY, t)
            updates, state = tx.update(params, state, params, curvature_fn=curvature_fn, key=key)
            return state, updates[0]

        return jax.lax.scan(step, tx.init(jnp.zeros(2)), jnp.arange(steps))[1]

    return np.asarray(all_steps())


@pytest.mark.parametrize(
    ("options", "due"),
    [
        ({}, range(8)),
        ({"every": 3}, (0, 3, 6)),
        ({"every": 3, "start": 3}, (3, 6)),
        ({"every": 4, "start": 1}, (1, 5)),
        ({"every": 2, "start": 100}, ()),
    ],
)
def test_estimates_are_of_these_steps_parameters(options, due):
    found = run(optim.with_curvature(recorder(), **options), 8, lambda params, key: params * 10)
    np.testing.assert_array_equal(found, [10 * t if t in due else -1 for t in range(8)])


def test_estimates_get_the_key_of_the_step():
    found = run(
        optim.with_curvature(recorder()),
        3,
        lambda params, key: jnp.full_like(params, jax.random.uniform(key)),
    )
    np.testing.assert_allclose(
        found, [jax.random.uniform(jax.random.fold_in(KEY, t)) for t in range(3)]
    )


def test_other_steps_do_not_run_the_estimator():
    """Counted by a callback, in one compiled program of ten steps."""
    calls = []

    def curvature_fn(params, key):
        jax.debug.callback(lambda: calls.append(1))
        return params

    run(optim.with_curvature(optim.scale_by_sophia(), every=5), 10, curvature_fn)
    jax.effects_barrier()
    assert len(calls) == 2


def test_one_conditional_holds_the_estimator():
    """Outside of the branch taken at due steps the program has no products of matrices."""
    matrix = jnp.ones((7, 7))
    curvature_fn = optim.hutchinson(lambda p: jnp.sum(jnp.tanh(matrix @ p)))
    tx = optim.with_curvature(optim.sophia(0.1), every=10)
    params = jnp.ones(7)

    def step(state, params):
        return tx.update(params, state, params, curvature_fn=curvature_fn, key=KEY)

    program = jax.make_jaxpr(step)(tx.init(params), params)
    conditionals = [e for e in program.eqns if e.primitive.name == "cond"]
    assert len(conditionals) == 1
    without, within = (str(branch) for branch in conditionals[0].params["branches"])
    assert "dot_general" in within and "dot_general" not in without
    rest = [e for e in program.eqns if e.primitive.name != "cond"]
    assert not any("dot_general" in str(e) for e in rest)


def test_estimates_at_every_step_need_no_conditional():
    tx = optim.with_curvature(recorder())
    params = jnp.ones(2)

    def step(state, params):
        return tx.update(params, state, params, curvature_fn=lambda p, key: p, key=KEY)

    program = jax.make_jaxpr(step)(tx.init(params), params)
    assert "cond" not in {equation.primitive.name for equation in program.eqns}


def test_masks_inside_take_their_part():
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    inner = optax.masked(
        optim.scale_by_sophia(b1=0.0, b2=0.0, gamma=1.0),
        {"w": True, "b": False},
        mask_compatible_extra_args=True,
    )
    tx = optim.with_curvature(inner)
    extras = {"curvature_fn": lambda p, key: {"w": jnp.array([2.0, 4.0]), "b": p["b"]}, "key": KEY}
    updates, _ = tx.update(params, tx.init(params), params, **extras)
    np.testing.assert_allclose(updates["w"], [0.5, 0.25])
    np.testing.assert_allclose(updates["b"], [1])


@pytest.mark.parametrize("missing", ["curvature_fn", "key", "params"])
def test_what_is_missing_is_named(missing):
    tx = optim.with_curvature(recorder())
    arguments = {"params": jnp.ones(2), "curvature_fn": lambda p, key: p, "key": KEY}
    arguments[missing] = None
    with pytest.raises(ValueError, match=f"with_curvature: {missing} is missing"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), **arguments)


@pytest.mark.parametrize(
    ("estimate", "message"),
    [
        ({"w": jnp.ones(2)}, r"curvature_fn returns PyTreeDef\(.*accepted: a tree like the param"),
        (
            {"w": jnp.ones(()), "b": jnp.ones(1)},
            r"curvature_fn returns \(\) for 'w'; accepted: the parameter's shape, \(2,\)",
        ),
    ],
)
def test_estimates_unlike_the_parameters(estimate, message):
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    tx = optim.with_curvature(recorder())
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params), params, curvature_fn=lambda p, k: estimate, key=KEY)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "with_curvature: every is 0"), ({"start": -1}, "with_curvature: start is -1")],
)
def test_times_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        optim.with_curvature(recorder(), **options)
