import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tasks.quadratic import Quadratic


def test_hessian_is_the_stated_spectrum():
    task = Quadratic(dimension=5, condition=16.0).build()
    batch = task.batches(0, 0, 3)
    x = {"x": jnp.arange(5.0)}
    hessian = jax.hessian(lambda p: task.loss(p, batch, jax.random.key(0))[0])(x)["x"]["x"]
    np.testing.assert_allclose(hessian, np.diag([1, 0.5, 0.25, 0.125, 0.0625]), atol=1e-6)


def test_gradient_noise_has_the_stated_deviation():
    task = Quadratic(dimension=4, noise=0.5).build()
    batch = task.batches(0, 0, 5000)
    x = {"x": jnp.zeros(4)}
    single = jax.vmap(
        lambda n: jax.grad(lambda p: task.loss(p, {"noise": n[None]}, jax.random.key(0))[0])(x)
    )
    noise = np.asarray(single(jnp.asarray(batch["noise"]))["x"])
    error = 0.5 / 5000**0.5
    assert np.abs(noise.mean(0)).max() < 5 * error
    np.testing.assert_allclose(np.cov(noise.T), 0.25 * np.eye(4), atol=0.025)
    assert np.mean(np.abs(noise) < 0.5) == pytest.approx(0.6827, abs=0.02)


def test_evaluation_leaves_the_noise_out():
    task = Quadratic(dimension=3, condition=4.0).build()
    params = {"x": jnp.array([1.0, 2.0, 4.0])}
    assert task.evaluate(params, lambda b: b) == {"loss": (1 + 0.5 * 4 + 0.25 * 16) / 2}
    loss, metrics = task.loss(params, task.batches(0, 0, 2), jax.random.key(0))
    assert float(metrics["objective"]) == 3.5 and float(loss) != 3.5


def test_start_has_the_expected_objective():
    task = Quadratic(dimension=50, condition=10.0).build()
    keys = jax.random.split(jax.random.key(0), 200)
    starts = [task.evaluate({"x": x}, lambda b: b)["loss"] for x in jax.vmap(task.init)(keys)["x"]]
    assert np.mean(starts) == pytest.approx(task.facts["baselines"]["expected start"], rel=0.05)


def test_one_dimension():
    assert Quadratic(dimension=1).build().evaluate({"x": jnp.ones(1)}, lambda b: b) == {"loss": 0.5}


@pytest.mark.parametrize("change", [{"dimension": 0}, {"condition": 0.5}, {"noise": -1.0}])
def test_errors(change):
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        Quadratic(**change).build()
