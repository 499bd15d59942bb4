"""A small pre-activation ResNet whose normalization keeps no statistics.

    block:  y = relu(norm(x)),  x ← x + second(relu(norm(first(y))))
            shortcut(y) + ... where the block changes the shape
    logits = head(mean over pixels of relu(norm(x)))

Group normalization takes the place of batch normalization, so a sample's output depends on no other
sample, parameters are all that there is, and gradients of micro-batches add up.

Parameters: stem/kernel (3, 3, in, width), stage<i>/block<j>/{first,second}/kernel (3, 3, in, out),
.../{first_norm,second_norm}/{scale,bias}, .../shortcut/kernel (1, 1, in, out) where the shape
changes, norm/{scale,bias}, head/{kernel,bias}.
*Init*: normal with variance 2 / fan_in for convolutions.
*Reference*: He et al. 2016, "Identity Mappings in Deep Residual Networks"; Wu and He 2018, "Group
Normalization".
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.model import Model, from_module

GROUP = 8  # channels normalized together


@dataclasses.dataclass
class ResNet:
    """`build(shape, classes)` gives its functions of (batch, height, width, channels) images.

    Stage i has width · 2^i channels and, from the second on, half the pixels each way.
    """

    width: int = 16  # channels of the first stage, a multiple of 8
    stages: int = 3
    blocks: int = 1  # residual blocks in each stage

    def build(self, shape: tuple[int, int, int], classes: int) -> Model:
        if self.width < 1 or self.width % GROUP:
            raise ValueError(f"ResNet: width is {self.width}; accepted: multiples of {GROUP}.")
        if self.stages < 1 or self.blocks < 1:
            raise ValueError(
                f"ResNet: stages = {self.stages} and blocks = {self.blocks} must be at least 1."
            )
        return from_module("resnet", lambda rngs: Network(self, shape[-1], classes, rngs=rngs))


def _conv(fan: int, channels: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        fan,
        channels,
        (size, size),
        stride,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_in", "normal"),
        rngs=rngs,
    )


def _norm(channels: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=None, group_size=GROUP, rngs=rngs)


class Block(nnx.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, fan: int, channels: int, stride: int, *, rngs: nnx.Rngs):
        self.first_norm = _norm(fan, rngs)
        self.first = _conv(fan, channels, 3, stride, rngs)
        self.second_norm = _norm(channels, rngs)
        self.second = _conv(channels, channels, 3, 1, rngs)
        self.changes = stride != 1 or fan != channels
        if self.changes:
            self.shortcut = _conv(fan, channels, 1, stride, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.nn.relu(self.first_norm(x))
        x = self.shortcut(y) if self.changes else x
        y = jax.nn.relu(self.second_norm(self.first(y)))
        return x + self.second(y)


class Stage(nnx.Module):
    """Blocks at one resolution."""

    def __init__(self, fan: int, channels: int, stride: int, blocks: int, *, rngs: nnx.Rngs):
        self.blocks = blocks
        for i in range(blocks):
            block = Block(channels if i else fan, channels, 1 if i else stride, rngs=rngs)
            setattr(self, f"block{i + 1}", block)

    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.blocks):
            x = getattr(self, f"block{i + 1}")(x)
        return x


class Network(nnx.Module):
    """Stem, stages, head."""

    def __init__(self, config: ResNet, fan: int, classes: int, *, rngs: nnx.Rngs):
        self.stages = config.stages
        self.stem = _conv(fan, config.width, 3, 1, rngs)
        channels = config.width
        for i in range(config.stages):
            following = config.width * 2**i
            stage = Stage(channels, following, 2 if i else 1, config.blocks, rngs=rngs)
            setattr(self, f"stage{i + 1}", stage)
            channels = following
        self.norm = _norm(channels, rngs)
        self.head = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for i in range(self.stages):
            x = getattr(self, f"stage{i + 1}")(x)
        return self.head(jnp.mean(jax.nn.relu(self.norm(x)), axis=(1, 2)))
