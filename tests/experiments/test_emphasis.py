"""Steps on weighted losses: by hand, in the warm-up, over micro-batches; what cannot be weighed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from experiments.config import (
    BatchGrowth,
    Config,
    Curvature,
    Emphasis,
    Optimizer,
    Schedule,
    UserError,
)
from experiments.mesh import make_mesh
from experiments.records import read_metrics
from experiments.tasks.logistic import LogisticRegression
from experiments.train import TrainState, build_program, make_train_step

from .test_train import Regression, make_config, run

SGD = Optimizer("optax.sgd", 0.5, Schedule("optax.constant_schedule"))
TASK = LogisticRegression(data="iris", l2=0.1).build()
BATCH = TASK.batches(0, 0, 8)
PARAMS = {"kernel": 0.3 * jnp.arange(12.0).reshape(4, 3) - 1, "bias": jnp.ones(3)}
EMPHASIS = Emphasis("quadratic", temperature=0.5, end_temperature=0.25, warmup=0.25)


def config(**changes: Any) -> Config:
    task = LogisticRegression(data="iris", l2=0.1)
    return make_config(**({"task": task, "optimizer": SGD, "emphasis": EMPHASIS} | changes))


def stepped(step: int, **changes: Any):
    """Parameters and metrics after a step that is the one of that number."""
    tx = optax.sgd(0.5)
    state = TrainState(jnp.int32(step), PARAMS, tx.init(PARAMS), jax.random.key(0))
    after, metrics = jax.jit(make_train_step(TASK, lambda _: tx, config(**changes)))(state, BATCH)
    return after.params, metrics


def by_hand(part: Any, temperature: float):
    """The gradient with weights of a part of the batch, and those weights."""

    def loss(params: Any, x: Any, label: Any) -> jax.Array:
        one = {"x": x[None], "label": label[None]}
        return TASK.loss(params, one, jax.random.key(0))[0]

    each = jax.vmap(jax.value_and_grad(loss), (None, 0, 0))
    values, gradients = each(PARAMS, part["x"], part["label"])
    weights = optim.loss_weights(values, temperature, "quadratic")
    return jax.tree.map(lambda g: jnp.tensordot(weights, g, 1), gradients), weights


def assert_moved_by(params: Any, gradient: Any) -> None:
    jax.tree.map(
        lambda after, before, g: np.testing.assert_allclose(
            after, before - 0.5 * g, rtol=1e-5, atol=1e-6
        ),
        params,
        PARAMS,
        gradient,
    )


def test_a_step_by_hand():
    """Step 3 of 12 is the first after the warm-up, step 9 two thirds of the way to 0.25."""
    for step, temperature in ((3, 0.5), (9, 0.5 - 0.25 * 6 / 9)):
        params, metrics = stepped(step)
        gradient, weights = by_hand(BATCH, temperature)
        assert_moved_by(params, gradient)
        assert metrics["largest_weight"] == pytest.approx(8 * float(weights.max()), rel=1e-5)
        assert 1.1 < metrics["largest_weight"] < 8


def test_the_warm_up_is_training_without_weights():
    (params, metrics), (plain, without) = stepped(2), stepped(2, emphasis=None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, plain)
    assert metrics["largest_weight"] == 1
    for name in ("loss", "mean_loss"):
        assert metrics[name] == pytest.approx(float(without["loss"]), rel=1e-5)
    assert metrics.keys() - without.keys() == {"mean_loss", "largest_weight"}


def test_micro_batches_are_weighed_each_by_itself():
    params, _ = stepped(3, accumulation=2)
    parts = [jax.tree.map(lambda x: x[i::2], BATCH) for i in (0, 1)]  # noqa: B023
    first, second = (by_hand(part, 0.5)[0] for part in parts)
    assert_moved_by(params, jax.tree.map(lambda a, b: (a + b) / 2, first, second))


def test_a_run_records_the_mean_without_weights(tmp_path):
    outcome = run(config(steps=4, emphasis=Emphasis(warmup=0.5)), tmp_path)
    lines = [line for line in read_metrics(tmp_path) if "mean_loss" in line]
    assert [line["largest_weight"] > 1 for line in lines] == [False, False, True, True]
    assert np.isfinite(outcome.metrics["loss"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": Regression()}, "config.task has no losses of single samples; accepted"),
        ({"accumulation": 8}, "a micro-batch has 1 sample .*; accepted: 2 or more"),
        ({"emphasis": Emphasis(temperature=0.0)}, "init_value is 0.0; accepted: init_value > 0"),
        ({"emphasis": Emphasis("mid")}, "scheme is 'mid'; accepted: linupper, quadratic, extremes"),
        ({"emphasis": Emphasis(warmup=1.0)}, "warmup_steps is 12; accepted: fewer than total"),
        (
            {"optimizer": dataclasses.replace(SGD, name="sophia", curvature=Curvature())},
            "config.optimizer.curvature is of the loss without weights; accepted: None",
        ),
        (
            {"batch_growth": BatchGrowth(16), "accumulation": 2},
            "config.batch_growth is of the loss without weights; accepted: None",
        ),
    ],
)
def test_what_cannot_be_weighed_is_one_sentence(changes, message):
    given = config(**changes)
    with pytest.raises(UserError, match=f"config.emphasis.*{message}"):
        build_program(given, make_mesh(given.mesh))
