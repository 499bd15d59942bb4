"""Normalized gradient descent for the logistic loss: a perceptron with soft mistakes.

With examples `a_i`, labels `y_i` of -1 or 1, parameters `p`, rate `lr`, the losses
l_i = log(1 + exp(-y_i <a_i, p>)) and their mean's gradient `g`::

    w_i = 1 / (1 + exp(y_i <a_i, p>)) = 1 - exp(-l_i)
    g = -mean(w_i y_i a_i)
    p = p - lr g / mean(w_i)

The weight w_i is the probability that the model gives to the wrong label. So the direction is an
average of the -y_i a_i with weights that sum to 1, and however small the losses grow the step does
not. For lr to infinity the w_i become 1 on the mistakes and 0 elsewhere: the batch perceptron that
divides by the number of its mistakes.

*Differences.* The paper states w_i by the margin; that it is a function of the loss alone, which
lets the rule work behind any model, is derived here. The mean loss does not determine mean(w_i)
(1 - exp(-mean(l_i)) is larger, by Jensen, unless all losses are equal), hence the losses of the
single examples are needed. For softmax cross-entropy 1 - exp(-l_i) is again the probability of
the wrong labels; with two classes that is the paper's rule, with more it is ours. The paper treats
full batches of a separable linear problem, without weight decay.

*Cost.* No state; one exponential an example.

*Reference.* Tyurin, From Logistic Regression to the Perceptron Algorithm: Exploring Gradient
Descent with Large Step Sizes, 2024 (arXiv:2412.08424). There is no official code.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim import trees


def scale_by_normalized_gradient() -> optax.GradientTransformationExtraArgs:
    """The gradient of the mean loss divided by the mean of 1 - exp(-loss), without rate.

    Its update takes the extra argument `value`: the losses of the examples over whose mean the
    gradient was taken, natural logarithms, of any shape but a scalar's. Where no loss is positive
    the gradient is handed on as it is, which then is zero.

    Raises:
      ValueError: the update is called without value, or with a scalar.

    >>> import jax, jax.numpy as jnp, optim
    >>> tx = optim.scale_by_normalized_gradient()
    >>> params, points = jnp.zeros(2), jnp.array([[4.0, 0.0], [0.0, 2.0]])  # all of class 1
    >>> losses = lambda p: jnp.log1p(jnp.exp(-points @ p))
    >>> gradient = jax.grad(lambda p: losses(p).mean())(params)
    >>> print(tx.update(gradient, tx.init(params), value=losses(params))[0])
    [-2. -1.]
    """

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        value: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params, extra_args
        if value is None or not jnp.ndim(value):
            given = "None" if value is None else "a scalar"
            raise ValueError(
                f"normalized_gradient: value is {given}; call update(updates, state, params, "
                "value=losses) with the logistic losses of the examples, an array of them."
            )
        losses = trees.as_dtype(value, trees.accumulator_dtype(value))
        total = jnp.mean(-jnp.expm1(-losses))
        divisor = jnp.where(total > 0, total, 1)

        def rule(g: jax.Array) -> tuple[jax.Array]:
            return (g / divisor.astype(g.dtype),)

        return trees.map_leaves(rule, updates)[0], state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def normalized_gradient(
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """Normalized gradient descent for the logistic loss; its update takes `value`, the losses.

    Args:
      learning_rate: rate lr, or a schedule of it; on separable data every constant finds a
        separator, and the paper's bound on its steps falls with the rate.

    Raises:
      ValueError: the update is called without value, or with a scalar.

    >>> import jax.numpy as jnp, optim
    >>> tx = optim.normalized_gradient(10.0)
    >>> params = jnp.zeros(1)
    >>> value = jnp.log(2.0) * jnp.ones(8)  # of eight examples, each undecided
    >>> updates, state = tx.update(jnp.array([-0.5]), tx.init(params), params, value=value)
    >>> print(updates)
    [10.]
    """
    return optax.chain(scale_by_normalized_gradient(), optax.scale_by_learning_rate(learning_rate))
