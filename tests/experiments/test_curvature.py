"""Curvature estimates that a config names, and what else the train loop hands to an optimizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from experiments.config import Config, Curvature, Optimizer, Schedule, UserError
from experiments.curvature import build_curvature
from experiments.optimizers import build_optimizer
from experiments.tasks.classification import Classification
from experiments.tasks.logistic import LogisticRegression
from experiments.tasks.quadratic import Quadratic
from experiments.tasks.task import Task
from experiments.train import TrainState, make_train_step

from . import tiny
from .test_train import Regression, make_config, run

CONSTANT = Schedule("optax.constant_schedule")
TASK = LogisticRegression(data="iris", l2=0.0).build()
BATCH = TASK.batches(0, 0, 8)
PARAMS = {"kernel": jnp.full((4, 3), 0.1) * jnp.arange(3.0), "bias": jnp.zeros(3)}


def estimate(config: Curvature, task: Task = TASK) -> dict:
    return jax.jit(build_curvature(config, task))(PARAMS, BATCH, jax.random.key(0))


def test_the_empirical_fisher_is_of_the_samples_of_the_batch():
    def gradient(x, y):
        one = {"x": x[None], "label": y[None]}
        return jax.grad(lambda p: TASK.loss(p, one, None)[0])(PARAMS)

    each = jax.vmap(gradient)(jnp.asarray(BATCH["x"]), jnp.asarray(BATCH["label"]))
    found = estimate(Curvature("empirical_fisher"))
    jax.tree.map(
        lambda a, g: np.testing.assert_allclose(a, jnp.mean(g**2, 0), rtol=1e-5), found, each
    )


@pytest.mark.parametrize(
    "name", ["gauss_newton_bartlett", pytest.param("hutchinson", marks=pytest.mark.slow)]
)
def test_estimates_are_about_the_diagonal_of_the_hessian(name):
    """For a linear model of logits it is that of Gauss-Newton as well."""
    estimator = jax.jit(jax.vmap(build_curvature(Curvature(name), TASK), (None, None, 0)))
    found = estimator(PARAMS, BATCH, jax.random.split(jax.random.key(1), 2000))["bias"]
    hessian = jax.hessian(lambda b: TASK.loss({**PARAMS, "bias": b}, BATCH, None)[0])
    error = found.std(0) / 2000**0.5
    assert (jnp.abs(found.mean(0) - jnp.diag(hessian(PARAMS["bias"]))) < 5 * error).all()


def trained(config: Config, task: Task = TASK):
    """The state after the first step."""
    tx, _ = build_optimizer(config.optimizer, config.steps, PARAMS)
    state = TrainState(jnp.zeros((), jnp.int32), PARAMS, tx.init(PARAMS), jax.random.key(0))
    return jax.jit(make_train_step(task, lambda _: tx, config))(state, BATCH)[0]


def test_micro_batches_share_an_estimate():
    optimizer = Optimizer(
        "sophia", 0.1, CONSTANT, {"b2": 0.0}, curvature=Curvature("empirical_fisher")
    )
    whole, parts = (
        trained(make_config(optimizer=optimizer, accumulation=count)) for count in (1, 4)
    )
    expected = estimate(Curvature("empirical_fisher"))
    for state in (whole, parts):
        diagonal = state.optimizer.inner_state[0].diagonal
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), diagonal, expected)


def test_estimates_reach_every_group_of_a_split_optimizer():
    """Weight decay by group, a frozen leaf, a clipped norm and an average, all inside."""
    optimizer = Optimizer(
        "adahessian",
        0.1,
        CONSTANT,
        {"weight_decay": 0.1, "matrices": {"kernel": None}},
        clip_norm=1.0,
        weight_decay_multipliers=(("bias", 0.5),),
        ema_decay=0.9,
        curvature=Curvature("hutchinson", {"samples": 2}, every=2),
    )
    state = trained(make_config(optimizer=optimizer))
    assert (state.params["kernel"] != PARAMS["kernel"]).any()
    assert (state.params["bias"] != PARAMS["bias"]).any()
    frozen = trained(make_config(optimizer=Optimizer(**{**vars(optimizer), "frozen": ("bias",)})))
    np.testing.assert_array_equal(frozen.params["bias"], PARAMS["bias"])
    np.testing.assert_allclose(frozen.params["kernel"], state.params["kernel"], rtol=1e-6)


def test_a_run_with_half_newton_steps_ends_at_the_minimum(tmp_path):
    optimizer = Optimizer("adahessian", 0.5, CONSTANT, {"b1": 0.0}, curvature=Curvature())
    outcome = run(make_config(optimizer=optimizer, steps=24), tmp_path)
    start = Regression().build().evaluate({"w": jnp.zeros(5)}, lambda batch: batch)
    assert outcome.metrics["loss"] < 1e-2 * start["loss"]


@pytest.mark.slow
def test_sophia_learns_text_by_labels_that_the_model_draws(tmp_path):
    optimizer = Optimizer(
        "sophia",
        1e-2,
        CONSTANT,
        curvature=Curvature("gauss_newton_bartlett", every=4),
        weight_decay_multipliers=((".*/scale", 0.0),),
    )
    config = dataclasses.replace(tiny.get_config(), optimizer=optimizer, accumulation=2)
    outcome = run(config, tmp_path)
    diagonal = jax.tree.leaves(outcome.state.optimizer.inner_state[0].diagonal)
    assert all((leaf >= 0).all() and (leaf > 0).any() for leaf in diagonal)
    assert outcome.metrics["bits_per_byte"] < 0.8 * 8


def test_a_run_hands_on_the_gradient_of_its_batch(tmp_path):
    """MARS in its exact form asks for the gradient at the last parameters."""
    inner = Optimizer(
        "mars", 0.05, CONSTANT, {"approximate": False, "form": "lion", "weight_decay": 0.0}
    )
    optimizer = Optimizer("with_previous_gradient", 0.05, CONSTANT, {"inner": inner})
    config = make_config(optimizer=optimizer, steps=3)
    outcome = run(config, tmp_path)

    task, tx = (
        Regression().build(),
        optim.mars(0.05, form="lion", approximate=False, weight_decay=0.0),
    )
    params = task.init(jax.random.split(jax.random.key(config.seed))[0])
    state, last = tx.init(params), params
    for step in range(3):
        batch = task.batches(config.seed, 8 * step, 8)
        slope = jax.grad(lambda p, batch=batch: task.loss(p, batch, None)[0])
        previous = slope(last) if step else jax.tree.map(jnp.zeros_like, params)
        updates, state = tx.update(slope(params), state, params, previous_gradient=previous)
        last, params = params, optax.apply_updates(params, updates)
    np.testing.assert_allclose(outcome.state.params["w"], params["w"], rtol=1e-5)


@pytest.mark.parametrize(
    ("curvature", "message"),
    [
        (Curvature("lanczos"), "config.optimizer.curvature.name is 'lanczos'; accepted: hutch"),
        (
            Curvature("gauss_newton_bartlett"),
            "gauss_newton_bartlett draws labels from a classifier's logits, and this task has none",
        ),
        (
            Curvature("hutchinson", {"probes": 3}),
            "config.optimizer.curvature.kwargs has 'probes', which hutchinson does not take",
        ),
        (
            Curvature("hutchinson", {"samples": 0}),
            r"config.optimizer.curvature \(hutchinson\): hutchinson: samples is 0",
        ),
    ],
)
def test_curvatures_that_cannot_be(curvature, message):
    with pytest.raises(UserError, match=message):
        build_curvature(curvature, Quadratic().build())


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            Optimizer("sophia", curvature=Curvature(every=0)),
            r"config.optimizer.curvature \(with_curvature\): with_curvature: every is 0",
        ),
        (
            Optimizer("muon", kwargs={"auxiliary": Optimizer("sophia", curvature=Curvature())}),
            "config.optimizer.kwargs: sophia has a curvature of its own",
        ),
    ],
)
def test_optimizers_whose_curvature_cannot_be(optimizer, message):
    with pytest.raises(UserError, match=message):
        build_optimizer(optimizer, 3, PARAMS)


def test_an_optimizer_without_its_curvature_is_told(tmp_path):
    config = make_config(optimizer=Optimizer("sophia"))
    with pytest.raises(
        UserError, match=r"\(sophia, curvature = None\): sophia: curvature is missing"
    ):
        run(config, tmp_path)


@pytest.mark.slow
def test_classifiers_say_their_logits():
    for task in (Classification().build(), TASK):
        batch = task.batches(0, 0, 4)
        params = task.init(jax.random.key(0))
        logits = task.logits(params, batch)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        np.testing.assert_allclose(nats.mean(), task.loss(params, batch, None)[0], rtol=1e-5)
