import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression as Fit

from experiments.data.labelled import BUNDLED
from experiments.tasks.logistic import LogisticRegression

L2 = 1e-2


@pytest.mark.parametrize("data", BUNDLED)
def test_features_are_standardized(data):
    task = LogisticRegression(data, l2=0.0).build()
    x = task.batches(0, 0, task.facts["samples"])["x"]
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    deviation = x.std(0)
    assert np.all(np.isclose(deviation, 1, atol=1e-4) | (deviation == 0))


@pytest.mark.parametrize("data", BUNDLED)
def test_scikit_learn_s_solution_is_a_minimum_of_our_loss(data):
    """Fitted here again; for two classes its one vector is split over our two columns."""
    task = LogisticRegression(data, l2=L2).build()
    batch = task.batches(0, 0, task.facts["samples"])
    size = len(batch["label"])
    binary = len(np.unique(batch["label"])) == 2
    fit = Fit(C=(2 if binary else 1) / (L2 * size), tol=1e-10, max_iter=10_000)
    fit.fit(batch["x"].astype(np.float64), batch["label"])
    weights, bias = fit.coef_, fit.intercept_
    if binary:
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    params = {"kernel": jnp.asarray(weights.T, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    loss = jax.jit(jax.value_and_grad(lambda p: task.loss(p, batch, jax.random.key(0))[0]))
    value, grads = loss(params)
    assert float(value) == pytest.approx(task.facts["optimum"], rel=1e-5)
    assert all(np.abs(g).max() < 1e-4 for g in jax.tree.leaves(grads))
    metrics = task.evaluate(params, lambda b: b)
    assert metrics["loss"] == pytest.approx(task.facts["baselines"]["fitted"], rel=1e-3)
    assert metrics["error"] < 0.1


def test_start_is_the_uniform_guess():
    task = LogisticRegression("iris").build()
    params = task.init(jax.random.key(0))
    metrics = task.evaluate(params, lambda batch: batch)
    assert metrics["loss"] == pytest.approx(task.facts["baselines"]["uniform"], rel=1e-6)


def test_without_penalty_there_is_no_optimum_to_state():
    facts = LogisticRegression("iris", l2=0.0).build().facts
    assert facts["optimum"] is None and "fitted" not in facts["baselines"]


def test_errors():
    with pytest.raises(ValueError, match="l2 is -1"):
        LogisticRegression(l2=-1).build()
    with pytest.raises(ValueError, match="'mnist' is unknown"):
        LogisticRegression("mnist").build()
