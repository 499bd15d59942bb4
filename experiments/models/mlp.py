"""A multi-layer perceptron on flattened images.

    x ← relu(x kernel + bias) for each hidden layer, logits = x kernel + bias

Parameters: layer1/{kernel (in, out), bias (out,)}, layer2/..., the last of which gives the logits.
*Init*: normal with variance 2 / fan_in (He et al. 2015), the last layer 1 / fan_in; biases zero.
"""

import dataclasses
import math

import jax
from flax import nnx

from experiments.models.model import Model, from_module


@dataclasses.dataclass
class Mlp:
    """`build(shape, classes)` gives its functions of (batch, *shape) images."""

    hidden: tuple[int, ...] = (128, 128)  # widths; () is multinomial logistic regression

    def build(self, shape: tuple[int, int, int], classes: int) -> Model:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"Mlp: hidden is {self.hidden}; accepted: widths of at least 1.")
        widths = (math.prod(shape), *self.hidden, classes)
        return from_module("mlp", lambda rngs: Perceptron(widths, rngs=rngs))


class Perceptron(nnx.Module):
    """Linear layers with a ReLU between any two."""

    def __init__(self, widths: tuple[int, ...], *, rngs: nnx.Rngs):
        self.depth = len(widths) - 1
        for i in range(1, self.depth + 1):
            gain = 1.0 if i == self.depth else 2.0
            init = nnx.initializers.variance_scaling(gain, "fan_in", "normal")
            layer = nnx.Linear(widths[i - 1], widths[i], kernel_init=init, rngs=rngs)
            setattr(self, f"layer{i}", layer)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for i in range(1, self.depth):
            x = jax.nn.relu(getattr(self, f"layer{i}")(x))
        return getattr(self, f"layer{self.depth}")(x)
