"""Hessian, Gauss-Newton, Fisher and empirical Fisher as operators on trees like the parameters.

With a model `f` (parameters p -> outputs), an output loss `l` (outputs -> scalar), the loss
`L = l o f`, the Jacobian `J` of f at p, and `g_i` the gradient of the loss of example i of n::

    hessian_operator            v -> d/dr grad L(p + r v)         at r = 0
    gauss_newton_operator       v -> J' (grad grad l) J v
    fisher_operator             v -> J' E_y[s s'] J v / n         s = grad of -log p(y | outputs)
    empirical_fisher_operator   v -> sum_i g_i (g_i' v) / n

Each is linearized once, where it is made; a product only runs that linearization. Under `jax.vmap`
an operator takes many vectors at once. It is a tree of arrays, so that a function under `jax.jit`
may make one, take one and return one; outside of `jax.jit`, products run one operation at a time.

*Output losses.* Gauss-Newton takes any `outputs -> scalar`, by the derivative of its gradient.
`squared_error`, `softmax_cross_entropy` and `logistic_loss` bring their products in closed form,
which is no faster but serves the Fisher too. They are minus log likelihoods in their natural
parameter, where the Hessian by the outputs does not depend on the labels and is E_y[s s']:
Gauss-Newton is then the Fisher.

*Leaves and dtypes.* The functions are called on parameters promoted to float32 at least, and
products are in that dtype whatever the vector's, since a product in bfloat16 is wrong in its third
digit; where that will do, let the function cast. Leaves that are not floating are constants: a
vector may have anything there, None included, and its product has zeros in float32.

*Cost.* In gradients of the loss, counting multiplications: a Hessian product 2, the others 4/3, and
before that, to make the operator, 1 and 1/3, once. `python -m experiments bench curvature`, on the
quickstart's decoder (float32, two CPU cores, medians of 7 rounds), in gradients of 119 ms::

                                        product    operator and one product    keeps
    Hessian                             1.70       2.68                        2.8
    Gauss-Newton                        1.00       1.45                        0.9
    Gauss-Newton of any loss            0.96
    empirical Fisher                    0.95       1.33                        0.9
    Hessian, reverse over reverse       2.07                                   2.7
    Hessian, reverse over forward                  2.37
    Hessian, forward over reverse                  2.18

"Keeps" is the size of the operator, in temporaries of a gradient. Fisher's program is that of
Gauss-Newton. The last three are not offered: forward over reverse, which the Hessian is, wins over
the other two, kept or made anew. Where one product is all, the last line,
`jax.jvp(jax.grad(loss_fn), (params,), (vector,))`, costs less than an operator; from the third
product on it costs more.

*Reference.* Pearlmutter, Fast Exact Multiplication by the Hessian, 1994; Schraudolph, Fast
Curvature Matrix-Vector Products for Second-Order Gradient Descent, 2002; Martens, New Insights and
Perspectives on the Natural Gradient Method, 2020 (arXiv:1412.1193); Kunstner, Balles and Hennig,
Limitations of the Empirical Fisher Approximation for Natural Gradient Descent, 2019
(arXiv:1905.12558).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optim import trees
from optim.curvature.space import Space, described, scalar_valued

Operator = Callable[[Any], Any]  # a tree like the parameters -> its product, likewise


class OutputLoss(NamedTuple):
    """A loss of a model's outputs, called as one, that knows its own curvature.

    The products are with matrices over all outputs, so that the mean over examples is in them.
    """

    value: Callable[[Any], jax.Array]  # outputs -> scalar
    hessian_product: Callable[[Any, Any], Any]  # (outputs, v like them) -> (grad grad l) v
    fisher_product: Callable[[Any, Any], Any]  # (outputs, v like them) -> E_y[s s'] v / n

    def __call__(self, outputs: Any) -> jax.Array:
        return self.value(outputs)


def squared_error(targets: ArrayLike) -> OutputLoss:
    """Half the squared distance from the targets, averaged over examples, the first axis.

    As a likelihood: y is normal around the outputs, of unit variance.

    Args:
      targets: of the shape of the outputs.

    Raises:
      ValueError: the outputs are no floating array of that shape.

    >>> import jax.numpy as jnp, optim
    >>> loss = optim.squared_error(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> print(loss(jnp.array([[1.0, 3.0], [3.0, 1.0]])))
    2.5
    """
    shape = jnp.shape(targets)
    count = shape[0] if shape else 1

    def prepared(outputs: Any) -> jax.Array:
        return _array("squared_error", outputs, shape, f"an array of the targets' shape, {shape}")

    def value(outputs: Any) -> jax.Array:
        outputs = prepared(outputs)
        return jnp.sum(jnp.square(outputs - trees.as_dtype(targets, outputs.dtype))) / (2 * count)

    def product(outputs: Any, vector: Any) -> jax.Array:
        return trees.as_dtype(vector, prepared(outputs).dtype) / count

    return OutputLoss(value, product, product)


def softmax_cross_entropy(labels: ArrayLike) -> OutputLoss:
    """-log softmax(outputs)[label], averaged over all labels; the outputs are logits.

    Args:
      labels: integers in [0, classes), one for each position of the outputs but their last axis.

    Raises:
      ValueError: the labels are no integers, or the outputs no floating array of the labels' shape
        with one more axis, the classes.

    >>> import jax.numpy as jnp, optim
    >>> loss = optim.softmax_cross_entropy(jnp.array([0, 2]))
    >>> print(loss(jnp.zeros((2, 4))), jnp.log(4.0))
    1.3862944 1.3862944
    """
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ValueError(
            f"softmax_cross_entropy: labels have dtype {jnp.result_type(labels)}; accepted: "
            "integers, the numbers of the classes."
        )
    shape = jnp.shape(labels)
    count = jnp.size(labels)

    def prepared(outputs: Any) -> jax.Array:
        given = described(outputs)
        classes = given[-1:] if isinstance(given, tuple) else ()
        wanted = f"an array of the labels' shape and an axis of classes, {shape} + (classes,)"
        return _array("softmax_cross_entropy", outputs, (*shape, *classes), wanted)

    def value(outputs: Any) -> jax.Array:
        outputs = prepared(outputs)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))

    def product(outputs: Any, vector: Any) -> jax.Array:
        p = jax.nn.softmax(prepared(outputs))
        weighted = p * trees.as_dtype(vector, p.dtype)
        return (weighted - p * jnp.sum(weighted, -1, keepdims=True)) / count

    return OutputLoss(value, product, product)


def logistic_loss(labels: ArrayLike) -> OutputLoss:
    """-log sigmoid(outputs) where the label is 1, -log sigmoid(-outputs) where it is 0, averaged.

    Args:
      labels: 0 or 1 (or a probability), of the shape of the outputs, which are logits.

    Raises:
      ValueError: the outputs are no floating array of the labels' shape.

    >>> import jax.numpy as jnp, optim
    >>> loss = optim.logistic_loss(jnp.array([1, 0]))
    >>> print(loss(jnp.array([100.0, 0.0])), jnp.log(2.0) / 2)
    0.3465736 0.3465736
    """
    shape = jnp.shape(labels)
    count = jnp.size(labels)

    def prepared(outputs: Any) -> jax.Array:
        return _array("logistic_loss", outputs, shape, f"an array of the labels' shape, {shape}")

    def value(outputs: Any) -> jax.Array:
        outputs = prepared(outputs)
        targets = trees.as_dtype(labels, outputs.dtype)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(outputs, targets))

    def product(outputs: Any, vector: Any) -> jax.Array:
        p = jax.nn.sigmoid(prepared(outputs))
        return p * (1 - p) * trees.as_dtype(vector, p.dtype) / count

    return OutputLoss(value, product, product)


def hessian_operator(loss_fn: Callable[[Any], jax.Array], params: Any) -> Operator:
    """v -> H v, with the Hessian H of `loss_fn` at the parameters.

    Args:
      loss_fn: parameters -> scalar.
      params: where the Hessian is taken.

    Raises:
      ValueError: loss_fn does not return a scalar, a parameter is complex, or a vector is no tree
        like the parameters.

    >>> import jax.numpy as jnp, optim
    >>> matvec = optim.hessian_operator(lambda p: p["a"] ** 2 * p["b"], {"a": 2.0, "b": 3.0})
    >>> product = matvec({"a": 1.0, "b": 0.0})
    >>> print(product["a"], product["b"])
    6.0 4.0
    """
    space = Space("hessian_operator", params)
    loss = scalar_valued("hessian_operator", "loss_fn", space.function(loss_fn, params))
    _, push = jax.linearize(jax.grad(loss), space.coordinates(params))
    return jax.tree_util.Partial(functools.partial(_linear, space), push)


def gauss_newton_operator(
    predict: Callable[[Any], Any],
    output_loss: Callable[[Any], jax.Array] | OutputLoss,
    params: Any,
) -> Operator:
    """v -> G v, with the generalized Gauss-Newton matrix G of `output_loss` after `predict`.

    G is the Hessian of the loss were the model replaced by its linearization; it is positive
    semidefinite where the output loss is convex.

    Args:
      predict: parameters -> outputs, an array or a tree of them.
      output_loss: outputs -> scalar; an `OutputLoss` multiplies by its closed form.
      params: where G is taken.

    Raises:
      ValueError: output_loss does not return a scalar, the outputs do not suit it, a parameter is
        complex, or a vector is no tree like the parameters.

    >>> import jax.numpy as jnp, optim
    >>> inputs, labels = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, 0])
    >>> loss = optim.logistic_loss(labels)
    >>> matvec = optim.gauss_newton_operator(lambda w: inputs @ w, loss, jnp.zeros(2))
    >>> print(matvec(jnp.array([1.0, 0.0])))  # inputs' inputs / 8
    [1.25 1.75]
    """

    def middle(outputs: Any) -> Operator:
        if isinstance(output_loss, OutputLoss):
            return _closed_form(output_loss.hessian_product, outputs)
        loss = scalar_valued("gauss_newton_operator", "output_loss", output_loss)
        return jax.linearize(jax.grad(loss), outputs)[1]

    return _sandwich("gauss_newton_operator", predict, middle, params)


def fisher_operator(
    predict: Callable[[Any], Any], output_loss: OutputLoss, params: Any
) -> Operator:
    """v -> F v, with the Fisher information F of the distribution that the outputs stand for.

    The expectation is over labels that the model itself would give, exact, without drawing any.

    Args:
      predict: parameters -> outputs.
      output_loss: `squared_error`, `softmax_cross_entropy`, `logistic_loss`, or another
        `OutputLoss` with a `fisher_product`.
      params: where F is taken.

    Raises:
      ValueError: output_loss is no `OutputLoss`, the outputs do not suit it, a parameter is
        complex, or a vector is no tree like the parameters.

    >>> import jax.numpy as jnp, optim
    >>> loss = optim.softmax_cross_entropy(jnp.array([0]))
    >>> matvec = optim.fisher_operator(lambda w: w[None], loss, jnp.log(jnp.array([1.0, 3.0])))
    >>> print(matvec(jnp.array([1.0, 0.0])).round(4))  # p - p p' with p = 1/4, 3/4
    [ 0.1875 -0.1875]
    """
    if not isinstance(output_loss, OutputLoss):
        raise ValueError(
            f"fisher_operator: output_loss is {output_loss!r}; accepted: squared_error(targets), "
            "softmax_cross_entropy(labels), logistic_loss(labels) or another OutputLoss, since a "
            "loss alone does not say how labels are distributed."
        )

    def middle(outputs: Any) -> Operator:
        return _closed_form(output_loss.fisher_product, outputs)

    return _sandwich("fisher_operator", predict, middle, params)


def empirical_fisher_operator(losses_fn: Callable[[Any], jax.Array], params: Any) -> Operator:
    """v -> sum_i g_i (g_i' v) / n, with the gradients g_i of n losses, none of which is kept.

    With the labels of the data, not the model's: no Fisher information, unless the model is right.

    Args:
      losses_fn: parameters -> the losses of the examples, an array.
      params: where the gradients are taken.

    Raises:
      ValueError: losses_fn returns no array of losses, a parameter is complex, or a vector is no
        tree like the parameters.

    >>> import jax.numpy as jnp, optim
    >>> inputs = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> matvec = optim.empirical_fisher_operator(lambda w: inputs @ w, jnp.zeros(2))
    >>> print(matvec(jnp.array([1.0, 0.0])))
    [5. 7.]
    """
    method = "empirical_fisher_operator"

    def middle(losses: Any) -> Operator:
        if not isinstance(losses, jax.Array) or losses.ndim == 0:
            raise ValueError(
                f"{method}: losses_fn returns {described(losses)}; accepted: an array of the "
                "losses of the examples, not yet averaged."
            )
        return jax.tree_util.Partial(functools.partial(_mean, losses.size))

    return _sandwich(method, losses_fn, middle, params)


def _sandwich(
    method: str, function: Callable[[Any], Any], middle: Callable[[Any], Operator], params: Any
) -> Operator:
    """v -> J' M J v with the Jacobian J of the function and M = middle(its value).

    J is the transpose of the pullback, since models may have reverse rules of their own and then
    nothing forward.
    """
    space = Space(method, params)
    outputs, pull = jax.vjp(space.function(function, params), space.coordinates(params))
    shapes = jax.tree.map(lambda z: jax.ShapeDtypeStruct(z.shape, z.dtype), outputs)
    product = functools.partial(_pushed_and_pulled, space, shapes)
    return jax.tree_util.Partial(product, pull, middle(outputs))


# An operator is a Partial of one of these and of what its linearization keeps, a tree of arrays.


def _linear(space: Space, push: Operator, vector: Any) -> Any:
    return space.tree(push(space.coordinates(vector)))


def _pushed_and_pulled(
    space: Space, shapes: Any, pull: Callable[[Any], Any], inner: Operator, vector: Any
) -> Any:
    push = jax.linear_transpose(lambda outputs: pull(outputs)[0], shapes)
    product = inner(push(space.coordinates(vector))[0])
    product = jax.tree.map(lambda u, z: u.astype(z.dtype), product, shapes)
    return space.tree(pull(product)[0])


def _mean(count: int, vector: jax.Array) -> jax.Array:
    return vector / count


def _closed_form(product: Callable[[Any, Any], Any], outputs: Any) -> Operator:
    """The product with what does not depend on the vector, such as probabilities, done once."""
    return jax.linearize(functools.partial(product, outputs), outputs)[1]


def _array(method: str, outputs: Any, shape: tuple[int, ...], wanted: str) -> jax.Array:
    """The outputs in float32 at least, if they have the shape."""
    if described(outputs) != shape:
        raise ValueError(f"{method}: the outputs are {described(outputs)}; accepted: {wanted}.")
    if not jnp.issubdtype(jnp.result_type(outputs), jnp.floating):
        raise ValueError(
            f"{method}: the outputs have dtype {jnp.result_type(outputs)}; accepted: floats."
        )
    return trees.as_dtype(outputs, trees.accumulator_dtype(outputs))
