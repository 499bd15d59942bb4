"""evaluation_params finds the one serving state wherever it stands."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

PARAMS = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def averaged():
    return optax.chain(optax.sgd(1.0), optim.params_ema(0.5))


def after(tx, steps=2):
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADS, state, params)
        params = optim.apply_updates(params, updates)
    return params, state


def test_nothing_serves():
    params, state = after(optax.adamw(0.1))
    assert optim.evaluation_params(state, params) is params


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax.clip(10.0), tx),
        lambda tx: optim.keep_if_finite(tx),
        lambda tx: optim.inject_hyperparams(lambda rate: optax.chain(tx, optax.scale(rate)))(1.0),
        lambda tx: optax.masked(tx, {"w": True, "b": True}),
        lambda tx: optax.GradientTransformation(*optax.MultiSteps(tx, 1).gradient_transformation()),
    ],
    ids=["bare", "chain", "keep_if_finite", "inject_hyperparams", "masked", "MultiSteps"],
)
def test_found_under_wrappers(wrap):
    """Positions 0 and -1 with weights 1/3 and 2/3."""
    params, state = after(wrap(averaged()))
    assert params["b"].tolist() == [-1.0, -1.0]
    served = jax.jit(optim.evaluation_params)(state, params)
    assert jax.tree.structure(served) == jax.tree.structure(params)
    for leaf in jax.tree.leaves(served):
        np.testing.assert_allclose(leaf, -2 / 3, rtol=1e-6)


def test_what_another_group_holds_comes_from_the_parameters():
    tx = optax.partition(
        {"averaged": averaged(), "plain": optax.sgd(2.0)}, {"w": "averaged", "b": "plain"}
    )
    params, state = after(tx)
    served = optim.evaluation_params(state, params)
    np.testing.assert_allclose(served["w"], -2 / 3, rtol=1e-6)
    assert served["b"].tolist() == params["b"].tolist() == [-3.0, -3.0]


@pytest.mark.parametrize("masked", [False, True])
def test_schedule_free(masked):
    tx = optax.contrib.schedule_free(optax.sgd(0.5), learning_rate=0.5, b1=0.75)
    if masked:
        tx = optax.masked(tx, {"w": True, "b": False})
    params, state = after(optax.chain(tx))
    inner = state[0].inner_state if masked else state[0]
    served = optim.evaluation_params(state, params)
    expected = (params["w"] - 0.25 * inner.z["w"]) / 0.75
    np.testing.assert_allclose(served["w"], expected, rtol=1e-6)
    assert (served["w"] != params["w"]).all()
    assert (served["b"] == params["b"]).all() == masked


class _ServingState(NamedTuple):
    held: optax.Params
    inner: optax.OptState = ()

    def evaluation_params(self, params):
        return jax.tree.map(lambda h, p: h + p, self.held, params)


def test_any_state_with_the_method_serves_and_gets_the_parameters():
    state = {"outer": [_ServingState(PARAMS)]}
    served = optim.evaluation_params(state, jax.tree.map(lambda p: 2 * p, PARAMS))
    assert served["b"].tolist() == [3.0, 3.0]


def test_dtypes_are_those_of_the_parameters():
    params = {"w": jnp.ones((2, 2), jnp.bfloat16), "b": jnp.ones(2)}
    served = optim.evaluation_params(_ServingState(PARAMS), params)
    assert served["w"].dtype == jnp.bfloat16 and served["b"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("state", "names"),
    [
        (
            lambda: optax.chain(optim.params_ema(0.5), optim.params_ema(0.9)).init(PARAMS),
            r"ParamsEmaState at '0' and ParamsEmaState at '1'",
        ),
        (
            lambda: (
                optax.contrib.schedule_free(averaged(), learning_rate=0.1, b1=0.9).init(PARAMS),
            ),
            r"ScheduleFreeState at '0' and ParamsEmaState at '0/base_optimizer_state/1'",
        ),
        (
            lambda: _ServingState(PARAMS, optim.params_ema(0.5).init(PARAMS)),
            r"_ServingState at '' and ParamsEmaState at 'inner'",
        ),
    ],
    ids=["side by side", "inside schedule-free", "inside a serving state"],
)
def test_two_that_serve_are_named(state, names):
    with pytest.raises(ValueError, match=f"state has 2 methods that serve parameters, {names}"):
        optim.evaluation_params(state(), PARAMS)
