"""What a model is: two plain functions over a nested dict of arrays."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx

Params = Any  # nested dict of arrays


class Model(NamedTuple):
    """A network without state: the parameters are a plain dict that any optimizer can walk.

    Modules are written in Flax NNX; `apply` merges the dict into them, so nothing but the dict is
    ever kept, sharded or saved.
    """

    init: Callable[[jax.Array], Params]  # key -> params, traceable
    apply: Callable[[Params, jax.Array], jax.Array]  # (params, inputs) -> float32 logits


class ImageModelConfig(Protocol):
    """A typed dataclass that describes a network from images to class logits."""

    def build(self, shape: tuple[int, int, int], classes: int) -> Model: ...


def graph(create: Callable[[], nnx.Module]) -> Any:
    """What `nnx.merge` needs besides the arrays of a module, without making any array."""
    return nnx.split(nnx.eval_shape(create))[0]


def from_module(name: str, create: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """The functions of a module whose arrays are all parameters; its draws depend on `name`."""
    structure = graph(lambda: create(nnx.Rngs(0)))

    def init(key: jax.Array) -> Params:
        named = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return nnx.to_pure_dict(nnx.state(create(nnx.Rngs(named))))

    def apply(params: Params, inputs: jax.Array) -> jax.Array:
        return nnx.merge(structure, params)(inputs)

    return Model(init, apply)
