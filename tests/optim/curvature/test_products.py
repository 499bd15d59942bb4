"""Products of curvature matrices: dense matrices in float64, dtypes, odd leaves, errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import optim

EXAMPLES = 5


def network(outputs):
    """Parameters (as a function, so that x64 may be on), inputs, and a small network."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(3, 4)), rng.normal(size=(4, outputs))
    params = {"first": {"kernel": first, "bias": rng.normal(size=4)}, "second": second}
    inputs = rng.normal(size=(EXAMPLES, 3))

    def predict(params, inputs=inputs):
        hidden = jnp.tanh(inputs @ params["first"]["kernel"] + params["first"]["bias"])
        return hidden @ params["second"]

    return jax.tree.map(jnp.asarray, params), inputs, predict


def scalar_predict(predict):
    return lambda params, *inputs: predict(params, *inputs)[..., 0]


def normal(outputs):
    """Labels one deviation away from the outputs, which have the covariance of the normal."""
    signs = itertools.product([-1.0, 1.0], repeat=outputs.size)
    return [(outputs + np.array(s), 0.5**outputs.size) for s in signs]


def categorical(outputs):
    return [(np.array(y), p) for y, p in enumerate(np.exp(outputs) / np.exp(outputs).sum())]


def bernoulli(outputs):
    p = 1 / (1 + np.exp(-outputs))
    return [(np.array(1.0), p), (np.array(0.0), 1 - p)]


LABELS = np.random.default_rng(1).normal(size=(EXAMPLES, 2))
# (number of outputs, loss of labels, labels, (label, probability) of one example's outputs)
LOSSES = {
    "squared_error": (2, optim.squared_error, LABELS, normal),
    "softmax_cross_entropy": (3, optim.softmax_cross_entropy, [0, 2, 2, 1, 0], categorical),
    "logistic_loss": (1, optim.logistic_loss, [0, 1, 1, 0, 1], bernoulli),
}


def setting(name):
    outputs, make, labels, distribution = LOSSES[name]
    params, inputs, predict = network(outputs)
    if name == "logistic_loss":
        predict = scalar_predict(predict)
    return params, inputs, predict, make, np.asarray(labels), distribution


def matrix(make_operator, params):
    """The matrix of an operator, all columns at once by vmap, and its parameters as a vector."""

    @jax.jit
    def columns(params):
        flat, unravel = ravel_pytree(params)
        products = jax.vmap(make_operator(params))(jax.vmap(unravel)(jnp.eye(flat.size)))
        return jax.vmap(lambda tree: ravel_pytree(tree)[0])(products).T

    return np.asarray(columns(params))


def flat(function, params):
    """The function of the parameters as one vector."""
    _, unravel = ravel_pytree(params)
    return lambda vector: function(unravel(vector))


def assert_same(found, expected):
    """To 1e-12 of the largest entry: some hundred roundings of 1e-16."""
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("name", LOSSES)
def test_products_are_those_of_dense_matrices(name):
    with jax.enable_x64(True):
        params, inputs, predict, make, labels, distribution = setting(name)
        loss = make(labels)
        vector = ravel_pytree(params)[0]

        dense = jax.jit(jax.hessian(flat(lambda p: loss(predict(p)), params)))(vector)
        whole = functools.partial(optim.hessian_operator, lambda p: loss(predict(p)))
        assert_same(matrix(whole, params), dense)

        jacobian = np.asarray(jax.jit(jax.jacobian(flat(predict, params)))(vector))
        jacobian = jacobian.reshape(-1, vector.size)
        outputs = predict(params)
        inner = jax.jit(jax.hessian(loss))(outputs)
        inner = np.asarray(inner).reshape(outputs.size, outputs.size)
        gauss_newton = jacobian.T @ inner @ jacobian
        for output_loss in (loss, lambda z: loss(z)):  # its closed form, and by differentiation
            operator = functools.partial(optim.gauss_newton_operator, predict, output_loss)
            assert_same(matrix(operator, params), gauss_newton)
        assert np.abs(gauss_newton - dense).max() > 0.01 * np.abs(dense).max()

        fisher = matrix(functools.partial(optim.fisher_operator, predict, loss), params)
        assert_same(fisher, expected_fisher(params, inputs, predict, make, distribution))
        assert_same(fisher, gauss_newton)


def expected_fisher(params, inputs, predict, make, distribution):
    """The mean over examples of E[g g'], with g of one example and one label from all there are."""
    vector = ravel_pytree(params)[0]
    gradient = jax.jit(
        jax.grad(lambda v, x, y: make(y[None])(flat(predict_one(predict, x), params)(v)[None]))
    )
    total = np.zeros((vector.size, vector.size))
    for x in inputs:
        for label, probability in distribution(np.asarray(predict_one(predict, x)(params))):
            g = np.asarray(gradient(vector, x, label))
            total += probability * np.outer(g, g)
    return total / len(inputs)


def predict_one(predict, x):
    return lambda params: predict(params, x[None])[0]


def test_empirical_fisher_is_the_mean_of_outer_products():
    with jax.enable_x64(True):
        params, _, predict, _, labels, _ = setting("softmax_cross_entropy")

        def losses(params):
            logits = predict(params)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

        gradients = jax.jit(jax.jacobian(flat(losses, params)))(ravel_pytree(params)[0])
        found = matrix(functools.partial(optim.empirical_fisher_operator, losses), params)
        expected = np.asarray(gradients).T @ np.asarray(gradients) / EXAMPLES
        assert_same(found, expected)
        # The mean over positions of sequences is that over all losses.
        pairs = functools.partial(
            optim.empirical_fisher_operator, lambda p: jnp.stack([losses(p), losses(p)])
        )
        assert_same(matrix(pairs, params), expected)


def test_gauss_newton_of_a_linear_model_is_its_hessian():
    with jax.enable_x64(True):
        inputs = np.random.default_rng(0).normal(size=(EXAMPLES, 3))
        loss = optim.logistic_loss(np.array([0, 1, 1, 0, 1]))
        params = jnp.array([0.1, -0.2, 0.3])
        hessian = optim.hessian_operator(lambda w: loss(inputs @ w), params)
        gauss_newton = optim.gauss_newton_operator(lambda w: inputs @ w, loss, params)
        for v in jnp.eye(3):
            np.testing.assert_allclose(hessian(v), gauss_newton(v), rtol=1e-12, atol=1e-15)


def test_outputs_of_a_loss_of_ones_own_may_be_a_tree():
    def predict(w):
        return {"a": w[:2], "b": w[2] ** 2}

    def output_loss(outputs):
        return jnp.sum(outputs["a"] ** 2) * outputs["b"]

    params = jnp.array([1.0, 2.0, 3.0])
    matvec = optim.gauss_newton_operator(predict, output_loss, params)
    # J = diag(1, 1, 6), and the loss's Hessian at (1, 2, 9) is [18 0 2; 0 18 4; 2 4 0].
    expected = [[18, 0, 12], [0, 18, 24], [12, 24, 0]]
    np.testing.assert_allclose([matvec(v) for v in jnp.eye(3)], expected, rtol=1e-6)


def test_an_output_loss_of_ones_own_is_asked_for_its_products():
    loss = optim.OutputLoss(jnp.sum, lambda z, v: 2 * v, lambda z, v: 3 * v)
    vector, params = jnp.array([1.0, 2.0]), jnp.zeros(2)
    hessian = optim.gauss_newton_operator(lambda w: w, loss, params)(vector)
    fisher = optim.fisher_operator(lambda w: w, loss, params)(vector)
    assert hessian.tolist() == [2.0, 4.0] and fisher.tolist() == [3.0, 6.0]


def test_values_of_the_output_losses():
    with jax.enable_x64(True):
        outputs = jnp.array([[1.0, -1.0, 0.5], [0.0, 2.0, -3.0]])
        p = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
        cross_entropy = optim.softmax_cross_entropy(np.array([2, 0]))(outputs)
        np.testing.assert_allclose(cross_entropy, -np.log(p[0, 2] * p[1, 0]) / 2, rtol=1e-14)
        squared = optim.squared_error(np.zeros((2, 3)))(outputs)
        np.testing.assert_allclose(squared, np.sum(np.square(outputs)) / 4, rtol=1e-14)
        logistic = optim.logistic_loss(np.array([[0, 0, 1], [1, 0, 1]]))(outputs)
        sign = np.array([[-1, -1, 1], [1, -1, 1]])
        expected = np.log1p(np.exp(-sign * np.asarray(outputs))).mean()
        np.testing.assert_allclose(logistic, expected, rtol=1e-14)


def test_the_loss_is_traced_once_for_many_products():
    calls = []

    def loss(w):
        calls.append(w)
        return jnp.sum(w**4)

    matvec = optim.hessian_operator(loss, jnp.array([1.0, 2.0]))
    made = len(calls)
    for v in jnp.eye(2):
        matvec(v)
    jax.vmap(matvec)(jnp.eye(2))
    assert len(calls) == made == 1


def test_serves_a_solver_inside_jit():
    @jax.jit
    def newton(w, gradient):
        hessian = optim.hessian_operator(lambda w: jnp.sum(jnp.cosh(w["a"])) + w["b"] ** 2, w)
        return jax.scipy.sparse.linalg.cg(hessian, gradient)[0]

    w = {"a": jnp.array([0.0, 1.0]), "b": jnp.float32(1.0)}
    step = newton(w, {"a": jnp.sinh(w["a"]), "b": 2 * w["b"]})
    np.testing.assert_allclose(step["a"], np.tanh([0.0, 1.0]), rtol=1e-5)
    np.testing.assert_allclose(step["b"], 1.0, rtol=1e-5)


@pytest.mark.slow
def test_an_operator_may_leave_the_function_that_made_it():
    """And another, compiled once, takes one after the other."""
    inputs, labels = jnp.arange(6.0).reshape(3, 2), jnp.array([0, 1, 1])
    traced = []

    @jax.jit
    def make(w, labels):
        loss = optim.logistic_loss(labels)
        hessian = optim.hessian_operator(lambda w: loss(inputs @ w), w)
        return hessian, optim.gauss_newton_operator(lambda w: inputs @ w, loss, w)

    @jax.jit
    def multiply(matvec, vector):
        traced.append(1)
        return matvec(vector)

    vector = jnp.array([1.0, -2.0])
    with jax.checking_leaks():
        for w in (jnp.zeros(2), jnp.array([0.1, 0.3])):
            p = jax.nn.sigmoid(inputs @ w)
            expected = inputs.T @ (p * (1 - p) / 3 * (inputs @ vector))
            for matvec in make(w, labels):
                np.testing.assert_allclose(multiply(matvec, vector), expected, rtol=1e-5)
    assert len(traced) == 2


def test_a_model_may_have_a_reverse_rule_of_its_own():
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, u: (jnp.cos(x) * u,))
    loss = optim.squared_error(jnp.zeros(2))
    w, v = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
    gauss_newton = optim.gauss_newton_operator(sine, loss, w)(v)
    np.testing.assert_allclose(gauss_newton, jnp.cos(w) ** 2 * v / 2, rtol=1e-6)
    empirical = optim.empirical_fisher_operator(sine, w)(v)
    np.testing.assert_allclose(empirical, jnp.cos(w) ** 2 * v / 2, rtol=1e-6)
    hessian = optim.hessian_operator(lambda w: loss(sine(w)), w)(v)
    np.testing.assert_allclose(hessian, jnp.cos(2 * w) * v / 2, rtol=1e-6)


def operators(predict, labels, params):
    loss = optim.softmax_cross_entropy(labels)

    def losses(params):
        return optax.softmax_cross_entropy_with_integer_labels(predict(params), labels)

    return {
        "hessian": optim.hessian_operator(lambda p: loss(predict(p)), params),
        "gauss_newton": optim.gauss_newton_operator(predict, loss, params),
        "fisher": optim.fisher_operator(predict, loss, params),
        "empirical": optim.empirical_fisher_operator(losses, params),
    }


def test_bfloat16_parameters_have_float32_products():
    """Exactly those at the same point in float32, whether the vector is bfloat16 or float32."""
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(EXAMPLES, 3)), jnp.float32)
    labels = jnp.array([0, 2, 2, 1, 0])
    low = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), jnp.bfloat16)

    @jax.jit
    def products(params, vector):
        made = operators(lambda w: inputs @ w, labels, params)
        return {name: matvec(vector) for name, matvec in made.items()}

    with jax.numpy_dtype_promotion("strict"):
        found = products(low, low)
        expected = products(low.astype(jnp.float32), low.astype(jnp.float32))
        mixed = products(low, low.astype(jnp.float32))
    for name, product in found.items():
        assert product.dtype == jnp.float32
        np.testing.assert_array_equal(product, expected[name], err_msg=name)
        np.testing.assert_array_equal(product, mixed[name], err_msg=name)


@pytest.mark.slow
def test_outputs_may_be_bfloat16():
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(EXAMPLES, 3)), jnp.float32)
    params = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), jnp.float32)
    labels = jnp.array([0, 2, 2, 1, 0])

    def low(w):
        return inputs.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)

    found = operators(low, labels, params)
    expected = operators(lambda w: inputs @ w, labels, params)
    for name, matvec in found.items():
        product, other = matvec(params), expected[name](params)
        assert product.dtype == jnp.float32
        # A dozen roundings of 2^-9.
        np.testing.assert_allclose(product, other, atol=0.03 * float(abs(other).max()))


def test_odd_leaves():
    """None, masked, integer, scalar and empty leaves; a vector may lack what is constant."""
    params = {
        "none": None,
        "masked": optax.MaskedNode(),
        "scalar": 2.0,
        "empty": jnp.zeros((0, 3)),
        "integer": jnp.array([1, 2, 3]),
        "bool": True,
    }

    def predict(p):
        return (p["scalar"] ** 2 * p["integer"] + jnp.sum(p["empty"])) * p["bool"]

    loss = optim.squared_error(jnp.zeros(3))
    made = {
        "hessian": optim.hessian_operator(lambda p: loss(predict(p)), params),
        "gauss_newton": optim.gauss_newton_operator(predict, loss, params),
    }
    # loss = 14 s^4 / 6; J = 4 (1, 2, 3)
    for name, expected in {"hessian": 14 * 12 * 4 / 6, "gauss_newton": 16 * 14 / 3}.items():
        for constant in (None, np.zeros(3, jax.dtypes.float0), jnp.array([7, 7, 7])):
            product = made[name]({**params, "scalar": 1.0, "integer": constant, "bool": None})
            assert jax.tree.structure(product) == jax.tree.structure(params)
            np.testing.assert_allclose(product["scalar"], expected, rtol=1e-6)
            assert product["integer"].tolist() == [0.0, 0.0, 0.0]
            assert product["integer"].dtype == product["bool"].dtype == jnp.float32
            assert product["empty"].shape == (0, 3)


def test_losses_that_are_no_scalar_are_named():
    with pytest.raises(ValueError, match=r"hessian_operator: loss_fn returns \(2,\); accepted"):
        optim.hessian_operator(lambda w: w**2, jnp.ones(2))
    with pytest.raises(ValueError, match=r"hessian_operator: loss_fn returns PyTreeDef"):
        optim.hessian_operator(lambda w: (jnp.sum(w), 1.0), jnp.ones(2))
    with pytest.raises(ValueError, match=r"gauss_newton_operator: output_loss returns \(2,\)"):
        optim.gauss_newton_operator(lambda w: w, lambda z: z, jnp.ones(2))
    for wrong in (jnp.sum, lambda w: {"a": w}):
        with pytest.raises(ValueError, match=r"empirical_fisher_operator: losses_fn returns"):
            optim.empirical_fisher_operator(wrong, jnp.ones(2))


@pytest.mark.parametrize("make", [optim.gauss_newton_operator, optim.fisher_operator])
def test_outputs_that_do_not_suit_the_labels_are_named(make):
    def identity(w):
        return w

    classes = optim.softmax_cross_entropy(jnp.array([0, 1]))
    for outputs in (jnp.ones(2), jnp.ones((3, 2)), jnp.ones((2, 1, 4)), jnp.float32(1.0)):
        with pytest.raises(ValueError, match=r"softmax_cross_entropy: the outputs are .*accepted"):
            make(identity, classes, outputs)
    with pytest.raises(ValueError, match=r"squared_error: the outputs are \(3,\).*\(2, 2\)"):
        make(identity, optim.squared_error(jnp.ones((2, 2))), jnp.ones(3))
    with pytest.raises(ValueError, match=r"logistic_loss: the outputs are \(2, 1\).*\(2,\)"):
        make(identity, optim.logistic_loss(jnp.array([0, 1])), jnp.ones((2, 1)))
    with pytest.raises(ValueError, match=r"softmax_cross_entropy: the outputs are PyTreeDef"):
        make(lambda w: {"logits": w}, classes, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"squared_error: the outputs have dtype int32"):
        make(lambda w: w.astype(jnp.int32), optim.squared_error(jnp.ones(2)), jnp.ones(2))


def test_labels_that_are_no_classes_are_named():
    for labels in (jnp.array([0.0, 1.0]), jnp.array([True, False])):
        with pytest.raises(ValueError, match=r"softmax_cross_entropy: labels have dtype"):
            optim.softmax_cross_entropy(labels)


def test_fisher_needs_a_likelihood():
    with pytest.raises(ValueError, match=r"fisher_operator: output_loss is <function.*accepted"):
        optim.fisher_operator(lambda w: w, lambda z: jnp.sum(z), jnp.ones(2))


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ({"w": jnp.ones(2)}, r"the vector is PyTreeDef.*accepted: a tree like the parameters"),
        (jnp.ones(2), r"the vector is PyTreeDef"),
        ({"w": jnp.ones(2), "b": jnp.ones(1)}, r"the vector's leaf 'b' is \(1,\); .*shape, \(\)"),
        ({"w": None, "b": jnp.ones(())}, r"the vector's leaf 'w' is .*shape, \(2,\)"),
    ],
)
def test_vectors_unlike_the_parameters_are_named(vector, message):
    params = {"w": jnp.ones(2), "b": jnp.ones(())}
    hessian = optim.hessian_operator(lambda p: jnp.sum(p["w"]) * p["b"], params)
    with pytest.raises(ValueError, match="hessian_operator: " + message):
        hessian(vector)


def test_complex_parameters_are_refused():
    with pytest.raises(ValueError, match=r"hessian_operator: the parameter 'w' .*complex64"):
        optim.hessian_operator(lambda p: jnp.real(p["w"]), {"w": jnp.complex64(1.0)})
