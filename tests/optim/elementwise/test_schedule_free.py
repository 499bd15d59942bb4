"""Schedule-free learning: steps by hand, its averages, warm-up, RAdam's lengths, errors."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from optim.elementwise.schedule_free import _variance_lengths

from ..running import random_gradients, run

PARAMS = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4)}


def assert_close(ours, theirs, rtol=1e-6, atol=1e-6):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


def test_first_two_steps_by_hand():
    tx = optim.schedule_free_sgd(1.0, b1=0.75, warmup_steps=2, weight_decay=0.5)
    # Rate 1/2, c = 1: u = -(4 + 2) / 2, z = x = y = 1.
    params, state = run(tx, jnp.array([4.0]), [jnp.array([4.0])])
    assert params.tolist() == state.z.tolist() == [1.0]
    assert optim.evaluation_params(state, params).tolist() == [1.0]
    # Rate 1, weights 1/4 and 1, c = 0.8: u = -(0.5 + 0.5), z = 0, x = 0.2, y = 0.75 x.
    updates, state = tx.update(jnp.array([0.5]), state, params)
    params = params + updates
    assert state.z.tolist() == [0.0] and state.weight_sum == 1.25 and state.largest_rate == 1.0
    np.testing.assert_allclose(params, [0.15], rtol=1e-6)
    np.testing.assert_allclose(optim.evaluation_params(state, params), [0.2], rtol=1e-6)


def test_first_step_of_adamw_by_hand():
    """Bias-corrected, the first direction is g / (|g| + eps), with inner momentum or without."""
    for inner_momentum in (0.0, 0.5):
        tx = optim.schedule_free_adamw(
            0.5, b2=0.75, eps=1.0, weight_decay=0.25, inner_momentum=inner_momentum
        )
        params, state = run(tx, jnp.array([2.0]), [jnp.array([3.0])])
        assert params.tolist() == state.z.tolist() == [2.0 - 0.5 * (0.75 + 0.5)]


@pytest.mark.parametrize("r", [0.0, 2.0])
def test_it_serves_the_weighted_mean_of_the_iterates_of_the_inner_optimizer(r):
    """With any inner optimizer, whose path at these gradients is that without the wrapper."""
    gradients = random_gradients()
    inner = optax.adam(0.1, b1=0.0)
    tx = optim.schedule_free(inner, 0.1, b1=0.6, r=r)
    trained, state = run(tx, PARAMS, gradients)
    path = [run(inner, PARAMS, gradients[:t])[0] for t in range(1, len(gradients) + 1)]
    weights = np.arange(1.0, len(path) + 1) ** r
    mean = jax.tree.map(lambda *zs: np.average(zs, axis=0, weights=weights), *path)
    assert_close(state.z, path[-1])
    assert_close(optim.evaluation_params(state, trained), mean)
    assert_close(trained, jax.tree.map(lambda x, z: 0.6 * x + 0.4 * z, mean, path[-1]))


def test_without_warm_up_it_is_the_one_of_optax():
    options = {"weight_decay": 0.1, "b1": 0.8}
    for ours, theirs in (
        (optim.schedule_free_adamw, optax.contrib.schedule_free_adamw),
        (optim.schedule_free_sgd, optax.contrib.schedule_free_sgd),
    ):
        a, state = run(ours(0.1, **options), PARAMS, random_gradients())
        b, expected = run(theirs(0.1, **options), PARAMS, random_gradients())
        assert_close(a, b, rtol=1e-5)
        assert_close(
            optim.evaluation_params(state, a),
            optax.contrib.schedule_free_eval_params(expected, b),
            rtol=1e-5,
        )


def test_warm_up_is_that_of_a_schedule_in_both_places():
    """The first of W steps has the rate lr / W, for the step and for the weight."""
    gradients = random_gradients(5)

    def rate(count):
        return 0.2 * jnp.minimum(1.0, (count + 1) / 3)

    warmed, state = run(optim.schedule_free_sgd(0.2, warmup_steps=3), PARAMS, gradients)
    scheduled, expected = run(optim.schedule_free_sgd(rate), PARAMS, gradients)
    assert_close((warmed, state.z), (scheduled, expected.z))
    squares = [rate(t) ** 2 for t in range(5)]
    np.testing.assert_allclose(state.weight_sum, sum(squares), rtol=1e-6)
    first, _ = run(optim.schedule_free_sgd(0.2, warmup_steps=3), PARAMS, gradients[:1])
    plain, _ = run(optax.sgd(0.2 / 3), PARAMS, gradients[:1])
    assert_close(first, plain)


def test_weights_keep_the_largest_rate():
    """A rate that falls again does not take weight from the steps that follow."""
    tx = optim.schedule_free_sgd(lambda t: jnp.where(t == 1, 0.4, 0.1))
    _, state = run(tx, PARAMS, random_gradients(3))
    np.testing.assert_allclose(state.weight_sum, 0.1**2 + 2 * 0.4**2, rtol=1e-6)


def test_a_rate_of_zero_at_first_weighs_nothing():
    tx = optim.schedule_free_sgd(lambda t: jnp.where(t < 2, 0.0, 0.1), weight_decay=0.1)
    gradients = random_gradients(5)
    late, state = run(tx, PARAMS, [*gradients[:2], *gradients])
    once, expected = run(optim.schedule_free_sgd(0.1, weight_decay=0.1), PARAMS, gradients)
    assert_close((late, state.z, state.weight_sum), (once, expected.z, expected.weight_sum))


def test_the_inner_optimizer_sees_its_own_iterates_and_extra_arguments():
    """z, not the parameters that are trained, in float32 for bfloat16 ones."""
    seen = []

    def update(updates, state, params, *, value, **extra_args):
        del extra_args
        seen.append((params, updates.dtype, value))
        return jax.tree.map(lambda g: -g, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: params.dtype, update)
    tx = optim.schedule_free(inner, 1.0)
    params = jnp.ones(2, jnp.bfloat16)
    state = tx.init(params)
    assert state.inner == jnp.float32
    for value in range(3):
        updates, state = tx.update(jnp.ones(2, jnp.bfloat16), state, params, value=value)
        params = optim.apply_updates(params, updates)
    assert [z.tolist() for z, _, _ in seen] == [[1.0, 1.0], [0.0, 0.0], [-1.0, -1.0]]
    assert [(z.dtype, *rest) for z, *rest in seen] == [
        (jnp.float32, jnp.float32, t) for t in range(3)
    ]
    assert params.dtype == jnp.bfloat16 and (params != state.z).any()


def test_leaves_without_gradient_stand_and_integers_are_served_as_they_are():
    start = {**PARAMS, "extra": jnp.ones(5), "nothing": None, "count": jnp.array([7, 2**24 + 1])}
    none = {"extra": None, "nothing": None, "count": np.zeros(2, jax.dtypes.float0)}
    for alias in (optim.schedule_free_sgd, optim.schedule_free_adamw, optim.schedule_free_radam):
        tx = alias(0.1, weight_decay=0.1)
        moved, state = run(tx, start, [{**g, **none} for g in random_gradients()])
        alone, expected = run(tx, PARAMS, random_gradients())
        served = optim.evaluation_params(state, moved)
        for tree in (moved, served):
            assert (tree["extra"] == 1.0).all() and tree["nothing"] is None
            assert tree["count"].tolist() == [7, 2**24 + 1]
        assert_close({k: moved[k] for k in alone}, alone)
        assert_close({k: served[k] for k in alone}, optim.evaluation_params(expected, alone))


def test_masked_leaves_are_served_as_they_are():
    tx = optax.masked(optim.schedule_free_sgd(0.1), {"w": True, "b": False})
    params, state = run(tx, PARAMS, random_gradients(3))
    served = optim.evaluation_params(state, params)
    assert (served["b"] == params["b"]).all() and (served["w"] != params["w"]).all()


def test_served_parameters_have_the_dtype_of_the_trained_ones():
    params = jnp.ones(3, jnp.bfloat16)
    params, state = run(optim.schedule_free_sgd(0.5), params, [params] * 3)
    served = optim.evaluation_params(state, params)
    assert served.dtype == jnp.bfloat16 and state.z.dtype == jnp.float32
    np.testing.assert_allclose(served.astype(jnp.float32), 0.0, atol=2**-7)


def test_mask_chooses_what_decays():
    start = {"w": PARAMS["w"], "b": jnp.ones(4)}
    zero = jax.tree.map(jnp.zeros_like, start)
    tx = optim.schedule_free_sgd(0.5, weight_decay=0.5, mask={"w": True, "b": False})
    params, _ = run(tx, start, [zero])
    assert (params["w"] == 0.75).all() and (params["b"] == 1.0).all()


def test_variance_lengths_in_float32():
    """The gap of rho from 4, which decides, is 2.5e-3 after 4 steps with b2 = 0.999."""
    for b2 in (0.9, 0.99, 0.999, 0.9999):
        steps = np.array([1, 2, 3, 4, 5, 6, 10, 100, 1000, 10_000, 100_000])
        rho, longest = _variance_lengths(b2, jnp.asarray(steps), jnp.float32)
        power = np.power(np.longdouble(b2), steps)
        limit = 2 / (1 - np.longdouble(b2)) - 1
        exact = limit - 2 * steps * power / (1 - power)
        np.testing.assert_allclose(rho, exact.astype(float), rtol=3e-6)
        np.testing.assert_allclose(longest, float(limit), rtol=1e-6)
        assert ((rho > 4) == (exact > 4)).all()


def test_radam_stands_still_or_is_sgd_at_first():
    gradients = random_gradients(5)
    still, state = run(optim.schedule_free_radam(0.1), PARAMS, gradients[:4])
    assert_close(still, PARAMS, rtol=0, atol=0)
    assert state.weight_sum == 0.0
    loud = optim.schedule_free_radam(0.1, silent_sgd_phase=False)
    assert_close(
        run(loud, PARAMS, gradients[:4])[0],
        run(optim.schedule_free_sgd(0.1), PARAMS, gradients[:4])[0],
    )
    moved, state = run(optim.schedule_free_radam(0.1), PARAMS, gradients)
    # The first step that moves has all the weight.
    assert_close(moved, state.z)
    rectified = np.sqrt(0.996 * 2.996 * 1999 / (1995 * 1997 * 4.996))
    np.testing.assert_allclose(state.largest_rate, 0.1 * rectified, rtol=1e-3)


@pytest.mark.slow
def test_radam_becomes_adamw():
    """With b2 = 0 from the start it never does: rho stays at 1."""
    gradients = random_gradients()
    tx = optim.schedule_free_radam(0.1, b2=0.0, silent_sgd_phase=False)
    assert_close(
        run(tx, PARAMS, gradients)[0], run(optim.schedule_free_sgd(0.1), PARAMS, gradients)[0]
    )
    tx = optim.schedule_free_radam(0.1, b2=0.8)
    _, state = run(tx, PARAMS, gradients * 7)
    np.testing.assert_allclose(state.largest_rate, 0.1, rtol=2e-3)


def test_hyperparams_can_be_injected():
    """The rate in the weights, too: a schedule of it, and a value that is set between steps."""
    rate = optax.linear_schedule(0.05, 0.1, 4)
    for alias in (optim.schedule_free_sgd, optim.schedule_free_adamw, optim.schedule_free_radam):
        direct, expected = run(alias(rate), PARAMS, random_gradients())
        injected, state = run(optim.inject_hyperparams(alias)(rate), PARAMS, random_gradients())
        # b2 is float32 there before 1 - b2 is taken.
        assert_close(injected, direct, rtol=1e-4)
        assert_close(
            optim.evaluation_params(state, injected),
            optim.evaluation_params(expected, direct),
            rtol=1e-4,
        )
        np.testing.assert_allclose(state.inner_state.weight_sum, expected.weight_sum, rtol=1e-3)
    tx = optim.inject_hyperparams(optim.schedule_free_sgd)(0.1, warmup_steps=2)
    state = tx.init(PARAMS)
    state.hyperparams["learning_rate"] = jnp.float32(0.2)
    _, state = tx.update(random_gradients(1)[0], state, PARAMS)
    np.testing.assert_allclose(state.inner_state.weight_sum, 0.1**2, rtol=1e-6)


def test_inner_momentum_is_held_only_where_it_is_asked_for():
    def held(tx):
        return sum(leaf.size for leaf in jax.tree.leaves(tx.init(jnp.ones(1000)))) // 1000

    assert held(optim.schedule_free_sgd(0.1)) == 1
    assert held(optim.schedule_free_adamw(0.1)) == held(optim.schedule_free_radam(0.1)) == 2
    assert held(optim.schedule_free_adamw(0.1, inner_momentum=0.9)) == 3
    assert held(optim.inject_hyperparams(optim.schedule_free_adamw)(0.1)) == 3
    fixed = optim.inject_hyperparams(optim.schedule_free_adamw, "inner_momentum")
    assert held(fixed(0.1)) == 2


def test_defaults_are_the_authors():
    common = {"weight_decay": 0.0, "mask": None, "r": 0.0, "weight_lr_power": 2.0}
    adam = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, **common}
    for function, expected in (
        (optim.schedule_free, {"b1": 0.9, "warmup_steps": 0, **common}),
        (optim.schedule_free_sgd, {"b1": 0.9, "warmup_steps": 0, **common}),
        (optim.schedule_free_adamw, {"warmup_steps": 0, "inner_momentum": 0.0, **adam}),
        (optim.schedule_free_radam, {"silent_sgd_phase": True, **adam}),
    ):
        parameters = inspect.signature(function).parameters.values()
        keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        assert keywords == expected, function.__name__


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: optim.schedule_free_sgd(0.1, b1=0.0),
            "schedule_free: b1 is 0.0; accepted: 0 < b1 < 1.",
        ),
        (
            lambda: optim.schedule_free(optax.sgd(0.1), 0.1, b1=1.0),
            "schedule_free: b1 is 1.0; accepted: 0 < b1 < 1.",
        ),
        (
            lambda: optim.schedule_free_adamw(0.1, warmup_steps=-1),
            "schedule_free: warmup_steps is -1; accepted: an integer, at least 0.",
        ),
        (
            lambda: optim.schedule_free_sgd(0.1, warmup_steps=0.5),
            "schedule_free: warmup_steps is 0.5; accepted: an integer, at least 0.",
        ),
        (
            lambda: optim.schedule_free_adamw(0.1, b2=1.0),
            "schedule_free_adamw: b2 is 1.0; accepted: 0 <= b2 < 1.",
        ),
        (
            lambda: optim.schedule_free_adamw(0.1, inner_momentum=-0.1),
            "schedule_free_adamw: inner_momentum is -0.1; accepted: 0 <= inner_momentum < 1.",
        ),
        (
            lambda: optim.schedule_free_adamw(0.1, eps=0.0),
            "schedule_free_adamw: eps is 0.0; accepted: eps > 0.",
        ),
        (
            lambda: optim.schedule_free_radam(0.1, b2=-1.0),
            "schedule_free_radam: b2 is -1.0; accepted: 0 <= b2 < 1.",
        ),
        (
            lambda: optim.schedule_free_radam(0.1, eps=-1.0),
            "schedule_free_radam: eps is -1.0; accepted: eps > 0.",
        ),
    ],
)
def test_values_out_of_range_are_named(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message


def test_update_without_params_is_an_error():
    tx = optim.schedule_free_sgd(0.1)
    with pytest.raises(ValueError, match="schedule_free: params is None; call update"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
