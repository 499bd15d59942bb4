"""Runs whose batches grow in one program are those of single steps, and the judge can say no."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from experiments.data.order import sample_indices
from experiments.figures import adaptive_batch as figure
from experiments.tasks.logistic import LogisticRegression

pytestmark = pytest.mark.slow

POINTS = figure.PIECES + figure.CHUNKS - 1


def test_growth_is_that_of_the_controller():
    for size in (4, 16, 512):
        for wanted in (0.0, 3.9, 4.0, 4.1, 100.0, 700.0, np.inf):
            for most in (size, 512):
                ours = figure.grown(jnp.int32(size), jnp.float32(wanted), jnp.int32(most))
                assert int(ours) == optim.next_batch_size(size, wanted, max_batch_size=most)


@pytest.mark.parametrize(("name", "rate"), [("AdaGrad", 0.1), ("AdaGrad-Norm", 3.0)])
def test_a_run_is_one_step_after_another(name, rate):
    """With batches as they are, gradients of all their samples at once, and sizes from the host."""
    task = LogisticRegression("digits").build()
    total = task.facts["samples"]
    data = task.batches(0, 0, total)
    start = task.init(jax.random.key(0))
    order = sample_indices(1, 0, 4096, total)

    def loss(params, batch):
        return task.loss(params, batch, jax.random.key(0))[0]

    batch = (jnp.int32(4), jnp.int32(128), jnp.float32(0.9))
    make = figure.OPTIMIZERS[name]
    run = functools.partial(figure.train, make, loss, start, jax.tree.map(jnp.asarray, data))
    found = jax.jit(run)(batch, jnp.float32(rate), order)

    tx = make(rate)
    params, state, size, seen, steps = start, tx.init(start), 4, 0, 0
    gradients = jax.jit(
        jax.vmap(jax.grad(lambda p, s: loss(p, jax.tree.map(lambda x: x[None], s))), (None, 0))
    )
    sizes = []
    while seen + size <= len(order):
        chosen = order[seen : seen + size]
        samples = {field: values[chosen] for field, values in data.items()}
        moments = optim.gradient_moments(gradients(params, samples))
        updates, state = tx.update(moments.mean, state, params)
        params = optax.apply_updates(params, updates)
        seen, steps = seen + size, steps + 1
        sizes.append(size)
        size = optim.next_batch_size(
            size, float(optim.norm_test(moments, eta=0.9)), max_batch_size=128
        )
    assert len({*sizes}) > 3
    assert int(found["steps"][-1]) == steps and int(found["batch_size"][-1]) == size
    np.testing.assert_allclose(found["loss"][-1], loss(params, data), rtol=1e-4)


def test_the_judge_can_say_no():
    """Excesses and steps of the right constant batch hold, those of the other fail."""
    rows = [(o, b, s) for o in figure.OPTIMIZERS for b in figure.BATCHES for s in (3, 4)]
    good = {"constant 4": (1.0, 1000.0), "constant 512": (4.0, 10.0)}
    for swapped in (False, True):
        ends = dict(good) | {
            b: (4.0, 1000.0) if swapped else (1.1, 11.0) for b in list(figure.BATCHES)[2:]
        }
        data = {
            "optimizer": np.repeat([o for o, _, _ in rows], POINTS),
            "batch": np.repeat([b for _, b, _ in rows], POINTS),
            "seed": np.repeat([s for _, _, s in rows], POINTS),
            "excess": np.repeat([ends[b][0] + 0.01 * s for _, b, s in rows], POINTS),
            "steps": np.repeat([ends[b][1] for _, b, _ in rows], POINTS),
        }
        held = [part.holds for part in figure.judge(data) if "same samples" not in part.claim]
        assert held == [not swapped] * len(held) and len(held) == 12
