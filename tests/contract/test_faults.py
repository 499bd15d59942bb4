"""Every check catches the faults that it is there for."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim import trees

from . import checks
from .harness import Row
from .test_contract import test_contract as verdict


def faulty(init: Callable[..., Any], update: Callable[..., Any]) -> Row:
    """A row around `init(params)` and `update(gradients, state, params)`."""

    def accepting(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del extra
        return update(updates, state, params)

    return Row("faulty", lambda rate: optax.GradientTransformationExtraArgs(init, accepting))


def stateless(update: Callable[..., Any]) -> Row:
    """The same around `update(gradients, params)`."""
    return faulty(lambda params: (), lambda g, state, params: (update(g, params), state))


def zeros(params: Any, dtype: Any = jnp.float32) -> Any:
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype), params)


def descend(updates: Any, rate: Any = 0.1) -> Any:
    """A step of gradient descent in float32, nothing wrong with it."""
    rate = jnp.asarray(-rate, jnp.float32)
    return jax.tree.map(lambda g: rate * g.astype(jnp.float32), updates)


def state_is_the_parameters() -> Row:
    return faulty(lambda params: params, lambda g, state, params: (descend(g), state))


def state_holds_one_parameter() -> Row:
    return faulty(
        lambda params: (jnp.int32(0), params["dense"]["bias"]),
        lambda g, state, params: (descend(g), (state[0] + 1, state[1])),
    )


def counter_starts_weakly_typed() -> Row:
    return faulty(
        lambda params: jnp.asarray(0), lambda g, state, params: (descend(g), state + jnp.int32(1))
    )


def counter_becomes_a_float() -> Row:
    return faulty(lambda params: jnp.int32(0), lambda g, state, params: (descend(g), state * 0.5))


def momentum_widens() -> Row:
    def update(g: Any, state: Any, params: Any) -> Any:
        state = jax.tree.map(lambda m, g: 0.9 * m.astype(jnp.float32) + g, state, g)
        return descend(state), state

    return faulty(lambda params: zeros(params, jnp.bfloat16), update)


def updates_widen_under_x64() -> Row:
    return stateless(lambda g, params: jax.tree.map(lambda g: np.float64(-0.1) * g, g))


def structure_grows() -> Row:
    return faulty(lambda params: (), lambda g, state, params: (descend(g), (*state, jnp.zeros(()))))


def steps_are_counted_in_the_structure() -> Row:
    return faulty(
        lambda params: {"after": {}},
        lambda g, state, params: (descend(g), {"after": state}),
    )


def momentum_in_bfloat16() -> Row:
    def update(g: Any, state: Any, params: Any) -> Any:
        state = jax.tree.map(lambda m, g: (0.9 * m + g).astype(m.dtype), state, g)
        return descend(state), state

    return faulty(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def arithmetic_in_bfloat16() -> Row:
    return stateless(lambda g, params: descend(jax.tree.map(jnp.square, g)))


def momentum_in_float32() -> Row:
    def update(g: Any, state: Any, params: Any) -> Any:
        return jax.tree.map(lambda g: -0.1 * g, g), state

    return faulty(zeros, update)


def float_meets_integer() -> Row:
    def update(g: Any, state: Any, params: Any) -> Any:
        return jax.tree.map(lambda g: g / state, descend(g)), state

    return faulty(lambda params: jnp.int32(1), update)


def divides_by_the_norm() -> Row:
    return stateless(lambda g, params: descend(g, 0.1 / optax.tree.norm(g)))


def divides_by_the_parameters() -> Row:
    return stateless(lambda g, params: jax.tree.map(lambda g, p: -0.1 * (g + 1) / p, g, params))


def counts_in_python() -> Row:
    steps = 0

    def update(g: Any, params: Any) -> Any:
        nonlocal steps
        steps += 1
        return descend(g, 0.1 / steps)

    return stateless(update)


def branches_on_the_rate() -> Row:
    return Row("faulty", lambda rate: optax.sgd(rate if rate > 0 else 0.0))


def converts_the_rate() -> Row:
    return Row("faulty", lambda rate: optax.sgd(float(rate)))


def decays_without_a_gradient() -> Row:
    def leaf(g: Any, p: Any) -> Any:
        return -0.1 * p if g is None else -0.1 * (g + p)

    return stateless(lambda g, p: jax.tree.map(leaf, g, p, is_leaf=lambda x: x is None))


def stops_at_none() -> Row:
    return stateless(lambda g, params: jax.tree.map(lambda g, p: -0.1 * (g + p), g, params))


def stops_at_float0() -> Row:
    return stateless(lambda g, params: jax.tree.map(lambda g: -0.1 * jnp.sign(g), g))


def is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def looks_into_masked_nodes() -> Row:
    return faulty(
        lambda params: [jnp.zeros_like(p) for p in jax.tree.leaves(params, is_leaf=is_masked)],
        lambda g, state, params: (descend(g), state),
    )


def counts_masked_nodes() -> Row:
    return stateless(lambda g, params: descend(g, 1 / len(jax.tree.leaves(g, is_leaf=is_masked))))


def takes_no_extra_args() -> Row:
    return Row(
        "faulty",
        lambda rate: optax.GradientTransformation(
            lambda params: (), lambda g, state, params=None: (descend(g), state)
        ),
    )


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass
class Moments:
    """Two fields under one name."""

    first: Any
    second: Any

    def tree_flatten_with_keys(self) -> Any:
        key = jax.tree_util.GetAttrKey("moment")
        return ((key, self.first), (key, self.second)), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> "Moments":
        return cls(*children)


def fields_share_a_name() -> Row:
    return faulty(
        lambda params: Moments(jnp.zeros(3), jnp.ones(3)),
        lambda g, state, params: (descend(g), state),
    )


def one_momentum_too_many() -> Row:
    row = faulty(
        lambda params: (zeros(params), zeros(params)), lambda g, state, params: (descend(g), state)
    )
    return dataclasses.replace(row, state_bytes=4)


def state_smaller_than_claimed() -> Row:
    return dataclasses.replace(stateless(lambda g, params: descend(g)), state_bytes=4)


FAULTS = (
    (checks.constant, counter_becomes_a_float),
    (checks.constant, counter_starts_weakly_typed),
    (checks.constant, momentum_widens),
    (checks.constant, updates_widen_under_x64),
    (checks.constant, structure_grows),
    (checks.constant, steps_are_counted_in_the_structure),
    (checks.bfloat16, momentum_in_bfloat16),
    (checks.bfloat16, arithmetic_in_bfloat16),
    (checks.float64, momentum_in_float32),
    (checks.strict_promotion, float_meets_integer),
    (checks.donated_first_step, state_is_the_parameters),
    (checks.donated_first_step, state_holds_one_parameter),
    (checks.no_retrace, counter_starts_weakly_typed),
    (checks.finite, divides_by_the_norm),
    (checks.finite, divides_by_the_parameters),
    (checks.jit_equals_no_jit, counts_in_python),
    (checks.vmap_over_rates, branches_on_the_rate),
    (checks.none_gradients, decays_without_a_gradient),
    (checks.none_gradients, stops_at_none),
    (checks.integer_leaves, stops_at_float0),
    (checks.masked, looks_into_masked_nodes),
    (checks.masked, counts_masked_nodes),
    (checks.partition, looks_into_masked_nodes),
    (checks.partition, counts_masked_nodes),
    (checks.inject_hyperparams, converts_the_rate),
    (checks.multi_steps, structure_grows),
    (checks.unknown_extra_args, takes_no_extra_args),
    (checks.orbax_round_trip, fields_share_a_name),
    (checks.state_bytes, one_momentum_too_many),
    (checks.state_bytes, state_smaller_than_claimed),
)


def honest(rate: Any) -> optax.GradientTransformationExtraArgs:
    """Descent along a curvature that is handed over, with a random length."""

    def leaf(g: Any, h: Any, length: Any) -> Any:
        if g is None:
            return None
        if g.dtype == jax.dtypes.float0:
            return jnp.zeros(g.shape)
        dtype = trees.accumulator_dtype(g)
        return jnp.asarray(-rate * length, dtype) * g.astype(dtype) / h.astype(dtype)

    def update(g: Any, state: Any, p: Any = None, *, curvature: Any, key: Any, **extra: Any) -> Any:
        length = jax.random.uniform(key, (), jnp.float32)
        step = jax.tree.map(
            lambda g, h: leaf(g, h, length), g, curvature, is_leaf=lambda x: x is None
        )
        return step, {"seen": state["seen"] + 1}

    return optax.GradientTransformationExtraArgs(lambda params: {"seen": jnp.int32(0)}, update)


def honest_extras(params: Any, gradients: Any, step: jax.Array) -> dict[str, Any]:
    curvature = jax.tree.map(lambda p: jnp.ones_like(p) + jnp.abs(p), params)
    return {"curvature": curvature, "key": jax.random.fold_in(jax.random.key(3), step)}


HONEST = Row("honest", honest, honest_extras, state_bytes=0)


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_extra_args_and_keys_break_nothing(check):
    check(HONEST)


@pytest.mark.parametrize(("check", "fault"), FAULTS, ids=lambda function: function.__name__)
def test_fault_is_caught(check, fault):
    with pytest.raises(AssertionError):
        check(fault())


def test_every_check_has_a_fault():
    assert {check for check, _ in FAULTS} == set(checks.CHECKS)


def test_a_waiver_excuses_a_fault_and_must_be_struck_when_it_is_gone():
    waive = {"state_bytes": "The paper counts one momentum."}
    verdict(dataclasses.replace(one_momentum_too_many(), waive=waive), checks.state_bytes)
    honest = dataclasses.replace(state_smaller_than_claimed(), state_bytes=0, waive=waive)
    with pytest.raises(AssertionError, match="strike the waiver"):
        verdict(honest, checks.state_bytes)
