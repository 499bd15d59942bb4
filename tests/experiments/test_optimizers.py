"""Tests of experiments/optimizers.py: names and patterns of a config become one transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from experiments.config import Optimizer, Schedule, UserError
from experiments.optimizers import build_optimizer, build_schedule
from experiments.run import parse
from tests.experiments.test_run import TINY

PARAMS = {
    "a": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)},
    "b": {"kernel": jnp.full((3, 2), 2.0)},
}
GRADS = jax.tree.map(
    lambda p: 0.1 * jnp.arange(p.size, dtype=p.dtype).reshape(p.shape) - 0.2, PARAMS
)
CONSTANT = Schedule("optax.constant_schedule")


def run(config: Optimizer, steps: int = 3) -> dict:
    tx, _ = build_optimizer(config, steps, PARAMS)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADS, state, params)
        params = optim.apply_updates(params, updates)
    return params


def reference(tx: optax.GradientTransformation, steps: int = 3) -> dict:
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(left: dict, right: dict) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), left, right)


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        (
            "wsd_schedule",
            {"decay_steps": 5},
            lambda: optim.wsd_schedule(0.5, total_steps=20, decay_steps=5),
        ),
        ("optax.cosine_decay_schedule", {}, lambda: optax.cosine_decay_schedule(0.5, 20)),
        ("optax.constant_schedule", {}, lambda: optax.constant_schedule(0.5)),
        (
            "optax.warmup_cosine_decay_schedule",
            {"init_value": 0.0, "warmup_steps": 4},
            lambda: optax.warmup_cosine_decay_schedule(0.0, 0.5, 4, 20),
        ),
        ("optax.linear_schedule", {"end_value": 0.1}, lambda: optax.linear_schedule(0.5, 0.1, 20)),
    ],
)
def test_a_schedule_is_filled_in_from_the_run(name, kwargs, expected):
    built, wanted = build_schedule(Schedule(name, kwargs), 0.5, 20), expected()
    assert [float(built(t)) for t in range(21)] == [float(wanted(t)) for t in range(21)]


def test_what_the_config_says_about_a_schedule_stands():
    schedule = build_schedule(Schedule("optax.cosine_decay_schedule", {"decay_steps": 10}), 0.5, 20)
    assert float(schedule(10)) == 0.0


def test_a_position_sets_the_rate_of_all_optimizers_that_are_in_it():
    """Also of the auxiliary one, and whatever their own counts are."""
    schedule = Schedule("optax.linear_schedule", {"end_value": 0.0})
    auxiliary = Optimizer("lion", 0.5, schedule)
    config = Optimizer("muon", 0.5, schedule, {"auxiliary": auxiliary})

    @jax.jit
    def update(position: jax.Array) -> tuple[dict, dict]:
        tx, _ = build_optimizer(config, 10, PARAMS, position)
        first, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
        return first, tx.update(GRADS, state, PARAMS)[0]

    start, late = update(0), update(8)  # the rate falls from 0.5 to 0.1
    assert_close(jax.tree.map(lambda u: 0.2 * u, start), late)
    assert float(jnp.abs(late[1]["a"]["bias"]).max()) > 0


@pytest.mark.parametrize("name", ["lion", "optax.adamw", "optax.contrib.muon"])
def test_an_optimizer_is_found_by_name(name):
    moved = run(Optimizer(name, 0.1, CONSTANT))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), moved, PARAMS)))


@pytest.mark.parametrize(
    ("config", "phrase"),
    [
        (Optimizer("lyon"), "'lyon' names no function of optim"),
        (Optimizer("optax.adamv"), "'optax.adamv' names no function of optax"),
        (Optimizer("optax.adamw", kwargs={"beta1": 0.9}), "'beta1', .* takes: learning_rate, b1"),
        (Optimizer(schedule=Schedule("optax.warmup_cosine_decay_schedule")), "lacks init_value, w"),
        (Optimizer("lion", kwargs={"b1": 2.0}), r"config.optimizer \(lion\): .*b1"),
        (Optimizer(frozen=("c/.*",)), "c/"),
        (Optimizer(learning_rate_multipliers=(("a/.*", 2.0), (".*/bias", 0.0))), "a/bias"),
        (Optimizer("optax.sgd", weight_decay_multipliers=((".*/bias", 0.0),)), "sgd has no w"),
    ],
)  # fmt: skip
def test_a_wrong_config_is_one_sentence(config, phrase):
    with pytest.raises(UserError, match=phrase) as caught:
        build_optimizer(config, 10, PARAMS)
    assert "\n" not in str(caught.value)


def test_learning_rate_multipliers_scale_the_whole_update():
    config = Optimizer(
        "optax.sgd", 0.1, CONSTANT, learning_rate_multipliers=(("a/.*", 3.0), ("b/kernel", 0.5))
    )
    moved = run(config, steps=1)
    factors = {"a": {"kernel": 3.0, "bias": 3.0}, "b": {"kernel": 0.5}}
    assert_close(moved, jax.tree.map(lambda p, g, f: p - 0.1 * f * g, PARAMS, GRADS, factors))


def test_weight_decay_factors_zero_and_one_are_the_optimizers_own_mask():
    config = Optimizer(
        "optax.adamw",
        0.1,
        CONSTANT,
        {"weight_decay": 0.3},
        weight_decay_multipliers=((".*/bias", 0.0),),
    )
    mask = {"a": {"kernel": True, "bias": False}, "b": {"kernel": True}}
    assert_close(run(config), reference(optax.adamw(0.1, weight_decay=0.3, mask=mask)))


def test_other_weight_decay_factors_make_groups():
    config = Optimizer(
        "optax.adamw",
        0.1,
        CONSTANT,
        {"weight_decay": 0.3},
        weight_decay_multipliers=((".*/bias", 0.0), ("b/.*", 0.5)),
    )
    moved = run(config)
    for decay, pick in (
        (0.3, lambda t: t["a"]["kernel"]),
        (0.0, lambda t: t["a"]["bias"]),
        (0.15, lambda t: t["b"]["kernel"]),
    ):
        np.testing.assert_allclose(
            pick(moved), pick(reference(optax.adamw(0.1, weight_decay=decay))), rtol=1e-6
        )


def test_frozen_parameters_neither_move_nor_have_a_state():
    config = Optimizer("optax.adamw", 0.1, CONSTANT, frozen=("a/kernel",))
    moved = run(config)
    np.testing.assert_array_equal(moved["a"]["kernel"], PARAMS["a"]["kernel"])
    assert bool(jnp.any(moved["a"]["bias"] != PARAMS["a"]["bias"]))
    state = build_optimizer(config, 3, PARAMS)[0].init(PARAMS)
    assert (4, 3) not in [leaf.shape for leaf in jax.tree.leaves(state)]


def test_clipping_measures_the_whole_tree():
    config = Optimizer("optax.sgd", 0.1, CONSTANT, clip_norm=0.01)
    norm = optax.tree.norm(GRADS)
    moved = run(config, steps=1)
    assert_close(moved, jax.tree.map(lambda p, g: p - 0.1 * 0.01 / norm * g, PARAMS, GRADS))


def test_the_average_is_what_is_evaluated():
    config = Optimizer("optax.sgd", 0.1, CONSTANT, ema_decay=0.5)
    tx, _ = build_optimizer(config, 3, PARAMS)
    state = tx.init(PARAMS)
    updates, state = tx.update(GRADS, state, PARAMS)
    params = optim.apply_updates(PARAMS, updates)
    updates, state = tx.update(GRADS, state, params)
    served = optim.evaluation_params(state, optim.apply_updates(params, updates))
    last = jax.tree.map(lambda p, u: p + u, params, updates)
    assert bool(
        jnp.all(jnp.abs(served["a"]["kernel"] - last["a"]["kernel"])[GRADS["a"]["kernel"] != 0] > 0)
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            [
                "--config.optimizer.schedule.name=wsd_s_schedule",
                "--config.optimizer.schedule.kwargs={'budgets': (10, 20, 24)}",
            ],
            lambda: optim.wsd_s_schedule(3e-3, budgets=(10, 20, 24)),
        ),
        (
            [
                "--config.optimizer.schedule.name=cyclic_cosine_schedule",
                "--config.optimizer.schedule.kwargs={'budgets': [12, 24], 'end_value': 1e-4}",
            ],
            lambda: optim.cyclic_cosine_schedule(3e-3, budgets=(12, 24), end_value=1e-4),
        ),
        (
            [
                "--config.optimizer.schedule.name=array_schedule",
                "--config.optimizer.schedule.kwargs={'values': (1.0, 0.5, 0.0)}",
            ],
            lambda: optim.array_schedule((1.0, 0.5, 0.0), peak_value=3e-3, total_steps=24),
        ),
    ],
)
def test_schedules_with_tuples_are_given_on_the_command_line(flags, expected):
    config = parse([f"--config={TINY}", "--workdir=x", *flags])[0]
    built = build_schedule(config.optimizer.schedule, config.optimizer.learning_rate, config.steps)
    wanted = expected()
    assert [float(built(t)) for t in range(25)] == [float(wanted(t)) for t in range(25)]


def test_norms_are_recorded_before_clipping():
    config = Optimizer("optax.sgd", 0.1, CONSTANT, clip_norm=0.1, record_norms="l2")
    tx, _ = build_optimizer(config, 3, PARAMS)
    _, state = jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
    assert state[0].norms[0] == pytest.approx(float(optax.tree.norm(GRADS)))


def test_an_optimizer_inside_another_records_no_norms():
    inner = Optimizer("optax.sgd", 0.1, CONSTANT, record_norms="l2")
    with pytest.raises(UserError, match="set that of the outermost optimizer, which sees all"):
        build_optimizer(Optimizer("muon", 0.1, CONSTANT, {"auxiliary": inner}), 3, PARAMS)
