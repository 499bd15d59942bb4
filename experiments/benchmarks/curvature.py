"""Curvature: products of Hessian, Gauss-Newton and empirical Fisher, in gradients of a decoder.

The model is the quickstart's decoder on a batch of random bytes. "Kept" is a product alone, whose
operator was made before and is an input; "made" makes the operator and multiplies once. Fisher is
left out: with a closed form it is Gauss-Newton's program. The Hessian's other ways are

    jvp of grad            forward over reverse without keeping the linearization
    reverse over reverse   the pullback of the gradient, kept
    reverse over forward   the gradient of a directional derivative; nothing of it can be kept

"10 steps" are whole training steps on the same batch, gradients included: AdamW, Sophia with one
estimate in ten steps, AdaHessian with one a step.

On a machine that is busy or shared, mind the quartiles: all candidates are of the same length.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optim
from experiments.benchmarks.harness import Candidate, Comparison
from experiments.configs.language import quickstart
from experiments.models.decoder import Decoder
from experiments.tasks.language import LanguageModel

Operator = Callable[[Any], Any]


class Setting(NamedTuple):
    """A model on one batch."""

    params: Any
    predict: Callable[[Any], jax.Array]  # parameters -> logits
    labels: jax.Array  # (batch, length) bytes

    def loss(self, params: Any) -> jax.Array:
        return optim.softmax_cross_entropy(self.labels)(self.predict(params))

    def losses(self, params: Any) -> jax.Array:
        """Of each sequence."""
        logits = self.predict(params)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, self.labels)
        return jnp.mean(nats, axis=1)


def setting(decoder: Decoder, batch: int, length: int) -> Setting:
    model = decoder.build()
    tokens = jax.random.randint(jax.random.key(0), (batch, length + 1), 0, 256)
    params = jax.jit(model.init)(jax.random.key(1))
    return Setting(params, lambda p: model.apply(p, tokens[:, :-1]), tokens[:, 1:])


def gauss_newton_of_any_loss(task: Setting, params: Any) -> Operator:
    """The output loss as a plain function, whose gradient is differentiated."""
    loss = optim.softmax_cross_entropy(task.labels)
    return optim.gauss_newton_operator(task.predict, lambda logits: loss(logits), params)


def reverse_over_reverse(task: Setting, params: Any) -> Operator:
    _, pull = jax.vjp(jax.grad(task.loss), params)
    return jax.tree_util.Partial(lambda pull, v: pull(v)[0], pull)


def reverse_over_forward(task: Setting, params: Any) -> Operator:
    def slope(params: Any, v: Any) -> jax.Array:
        return jax.jvp(task.loss, (params,), (v,))[1]

    return lambda v: jax.grad(slope)(params, v)


def jvp_of_grad(task: Setting, params: Any) -> Operator:
    return lambda v: jax.jvp(jax.grad(task.loss), (params,), (v,))[1]


OPERATORS: Mapping[str, Callable[[Setting, Any], Operator]] = {
    "Hessian": lambda task, params: optim.hessian_operator(task.loss, params),
    "Hessian, jvp of grad": jvp_of_grad,
    "Hessian, reverse over reverse": reverse_over_reverse,
    "Hessian, reverse over forward": reverse_over_forward,
    "Gauss-Newton": lambda task, params: optim.gauss_newton_operator(
        task.predict, optim.softmax_cross_entropy(task.labels), params
    ),
    "Gauss-Newton of any loss": gauss_newton_of_any_loss,
    "empirical Fisher": lambda task, params: optim.empirical_fisher_operator(task.losses, params),
}
KEPT: tuple[str, ...] = (
    "Hessian",
    "Hessian, reverse over reverse",
    "Gauss-Newton",
    "Gauss-Newton of any loss",
    "empirical Fisher",
)
MADE: tuple[str, ...] = (
    "Hessian",
    "Hessian, jvp of grad",
    "Hessian, reverse over forward",
    "Gauss-Newton",
    "empirical Fisher",
)


def ones(params: Any) -> Any:
    return jax.tree.map(jnp.ones_like, params)


def gradient(task: Setting) -> Candidate:
    def step(carry: Any, params: Any) -> Any:
        del carry
        return jax.grad(task.loss)(params)

    return Candidate(step, ones(task.params), task.params)


def made(name: str, task: Setting) -> Candidate:
    """The vector is replaced by its product; the operator is made from the parameters each time."""
    make = functools.partial(OPERATORS[name], task)
    return Candidate(lambda v, params: make(params)(v), ones(task.params), task.params)


def kept(name: str, task: Setting) -> Candidate:
    """The same, with the operator as an input."""
    operator = jax.jit(functools.partial(OPERATORS[name], task))(task.params)
    return Candidate(lambda v, operator: operator(v), ones(task.params), operator)


def training(name: str, task: Setting) -> Candidate:
    """Ten steps, after which every optimizer is as far with its estimates as before."""
    make, curvature_fn = OPTIMIZERS[name](task)
    tx = optax.with_extra_args_support(make)

    def step(carry: Any, batch: None) -> Any:
        def one(carry: Any, count: jax.Array) -> Any:
            params, state = carry
            extras = {"curvature_fn": curvature_fn, "key": jax.random.fold_in(KEY, count)}
            updates, state = tx.update(jax.grad(task.loss)(params), state, params, **extras)
            return (optim.apply_updates(params, updates), state), None

        del batch
        return jax.lax.scan(one, carry, jnp.arange(10))[0]

    params = jax.tree.map(jnp.copy, task.params)
    return Candidate(step, (params, tx.init(params)), None)


KEY = jax.random.key(2)
OPTIMIZERS: Mapping[str, Callable[[Setting], tuple[optax.GradientTransformation, Any]]] = {
    "AdamW": lambda task: (optax.adamw(1e-4), None),
    "Sophia-G": lambda task: (
        optim.with_curvature(optim.sophia(1e-4), every=10),
        optim.gauss_newton_bartlett(task.predict),
    ),
    "Sophia-H": lambda task: (
        optim.with_curvature(optim.sophia(1e-4), every=10),
        optim.hutchinson(task.loss),
    ),
    "AdaHessian": lambda task: (
        optim.with_curvature(optim.adahessian(1e-4, averaging="windows")),
        optim.hutchinson(task.loss),
    ),
}


def candidates(quick: bool) -> Comparison:
    """`quick` takes one narrow layer, 2 sequences of 16 bytes, two products and two optimizers."""
    if quick:
        task = setting(Decoder(width=16, layers=1, heads=2, hidden=16), 2, 16)
    else:
        config = quickstart.get_config()
        assert isinstance(config.task, LanguageModel)
        task = setting(config.task.model, config.batch_size, config.task.length)
    found = {"gradient": functools.partial(gradient, task)}
    chosen = (("Hessian",), ("empirical Fisher",)) if quick else (KEPT, MADE)
    for kind, make, names in zip(("kept", "made"), (kept, made), chosen, strict=True):
        found |= {f"{name}: {kind}": functools.partial(make, name, task) for name in names}
    trained = ("AdamW", "Sophia-G") if quick else tuple(OPTIMIZERS)
    found |= {f"{name}: 10 steps": functools.partial(training, name, task) for name in trained}
    return Comparison(candidates=found, reference="gradient", ideal_bytes=None)
