"""Tests of `python -m experiments merge`: what is merged is what the checkpoints hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.config import Config, Optimizer, Schedule
from experiments.tasks.logistic import LogisticRegression
from tests.experiments.test_train import run

CONFIG = Config(
    task=LogisticRegression("iris", l2=0.0),
    steps=12,
    batch_size=8,
    optimizer=Optimizer("optax.sgd", 0.5, Schedule("optax.constant_schedule")),
    evaluate_every=4,
    checkpoint_every=4,
    keep_checkpoints=3,
)


TASK = CONFIG.task.build()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged") / "run"
    run(CONFIG, folder)
    return folder


@pytest.fixture
def merge(workdir, capsys):
    def table(*arguments):
        assert main(["merge", f"--from={workdir}", *arguments]) == 0
        lines = capsys.readouterr().out.strip().splitlines()
        header = lines[0].split()
        rows = (line.rsplit(maxsplit=len(header) - 1) for line in lines[2:])
        return {name: dict(zip(header[1:], map(float, values))) for name, *values in rows}

    return table


def trained(step):
    """The same run, in a loop of its own."""
    params = TASK.init(jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda p, b: TASK.loss(p, b, jax.random.key(0))[0]))
    for t in range(step):
        grads = gradient(params, TASK.batches(CONFIG.seed, 8 * t, 8))
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    return params


def weighted(trees, weights):
    w = jnp.asarray(weights, jnp.float32)
    return jax.tree.map(lambda *leaves: jnp.tensordot(w, jnp.stack(leaves), 1), *trees)


def evaluated(params):
    return TASK.evaluate(params, lambda batch: batch)


def test_rows_are_the_checkpoints_and_their_merges(merge):
    found = merge("--weights=uniform,ema,step,loss", "--decay=0.25", "--power=2")
    steps = [4, 8, 12]
    parameters = [trained(step) for step in steps]
    losses = np.array([evaluated(p)["loss"] for p in parameters])
    for step, loss in zip(steps, losses):
        assert found[f"step {step}"]["loss"] == pytest.approx(loss, rel=1e-4)
    weights = {
        "uniform": np.ones(3),
        "ema": np.array([1.0, 4.0, 16.0]),
        "step": np.square([4.0, 8.0, 12.0]),
        "loss": losses**-2,
    }
    assert len(found) == len(steps) + len(weights)
    for kind, w in weights.items():
        expected = evaluated(weighted(parameters, w / w.sum()))
        row = next(metrics for name, metrics in found.items() if name.startswith(f"{kind}:"))
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert row["error"] == pytest.approx(expected["error"], abs=1e-4)


@pytest.mark.slow
def test_a_search_is_no_worse_than_the_steps_that_it_begins_with(merge):
    found = merge("--steps=4,12", "--weights=lcsc", "--evaluations=20")
    assert list(found)[:2] == ["step 4", "step 12"] and len(found) == 3
    assert list(found.values())[2]["loss"] <= found["step 12"]["loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights=best"], "merge: --weights has 'best'; accepted: uniform, ema, step"),
        (["--steps=4"], "merge: there are 1 checkpoints to merge; accepted: 2 or more"),
        (["--steps=4,5"], "there is no checkpoint 5 in "),
        (["--steps=4,x"], "merge: argument --steps: invalid"),
        (["--weights=ema", "--decay=1"], "merge: --weights=ema: ema_weights: decay is 1.0; acc"),
        (["--weights=lcsc", "--evaluations=3"], "merge: --weights=lcsc: lcsc: evaluations is 3"),
    ],
)
def test_mistakes_are_one_sentence(workdir, capsys, arguments, message):
    assert main(["merge", f"--from={workdir}", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    assert main(["merge", f"--from={tmp_path}"]) == 2
    assert "holds no run" in capsys.readouterr().err
