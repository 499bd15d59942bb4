"""Devices by name, and where each array of a run lives on them."""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optim
from experiments.config import Config, UserError
from experiments.config import Mesh as MeshConfig

SAMPLE_AXES = ("data", "fsdp")
MINIMUM_SHARDED_SIZE = 1024  # elements; below, the latency of a gather outweighs the memory

STACK = re.compile(r"(^|/)\d+(x\d+)*_[a-z]+\d+/")  # the name of a group of optim.matrices


def make_mesh(config: MeshConfig) -> jax.sharding.Mesh:
    """The mesh (data, fsdp, tensor) over the devices of all processes."""
    available = jax.device_count()
    fixed = config.fsdp * config.tensor
    for name in ("fsdp", "tensor"):
        if getattr(config, name) < 1:
            raise UserError(
                f"config.mesh.{name} is {getattr(config, name)}; it must be at least 1."
            )
    if config.data < 1 and config.data != -1:
        raise UserError(
            f"config.mesh.data is {config.data}; accepted: at least 1, or -1 for the rest."
        )
    data = max(available // fixed, 1) if config.data == -1 else config.data
    wanted = data * fixed
    shape = f"data={data}, fsdp={config.fsdp}, tensor={config.tensor}"
    if wanted > available:
        raise UserError(
            f"config.mesh ({shape}) wants {wanted} devices; this machine has {available}."
        )
    if wanted != available and jax.process_count() > 1:
        raise UserError(
            f"config.mesh ({shape}) uses {wanted} devices; several processes use all {available}."
        )
    return jax.make_mesh(
        (data, config.fsdp, config.tensor),
        (*SAMPLE_AXES, "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[:wanted],
    )


def check_batch(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Raise UserError unless every device gets as many samples of every micro-batch."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % (config.accumulation * shards):
        raise UserError(
            f"config.batch_size = {config.batch_size} is not divisible by "
            f"accumulation * data * fsdp = {config.accumulation} * {mesh.shape['data']} * "
            f"{mesh.shape['fsdp']}."
        )


def state_sharding(tree: Any, mesh: jax.sharding.Mesh, config: MeshConfig) -> Any:
    """A NamedSharding for each leaf of a tree of shapes, by its path and shape alone.

    Optimizer states keep the names of the parameters that they belong to at the end of their paths,
    so a momentum is laid out as its parameter is, whatever the optimizer. Stacks of matrices, kept
    under a name such as `768x3072_float32`, are spread by whole matrices where these divide.
    """

    def leaf_sharding(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes: list[str | None] = [None] * leaf.ndim
        if mesh.shape["tensor"] > 1:
            axis = _tensor_axis(optim.path_string(path), leaf, config.tensor_axes)
            if axis is not None and leaf.shape[axis] % mesh.shape["tensor"] == 0:
                axes[axis] = "tensor"
        fsdp = mesh.shape["fsdp"]
        stacked = STACK.search(optim.path_string(path)) and leaf.ndim > 1
        free = [i for i in range(leaf.ndim) if axes[i] is None and leaf.shape[i] % fsdp == 0]
        if fsdp > 1 and free and leaf.size >= MINIMUM_SHARDED_SIZE:
            whole = stacked and 0 in free
            axes[0 if whole else max(free, key=lambda i: leaf.shape[i])] = "fsdp"
        return NamedSharding(mesh, P(*axes))

    return jax.tree.map_with_path(leaf_sharding, tree)


def _tensor_axis(
    path: str, leaf: jax.ShapeDtypeStruct, rules: tuple[tuple[str, int], ...]
) -> int | None:
    for pattern, axis in rules:
        if re.fullmatch(pattern, path) and -leaf.ndim <= axis < leaf.ndim:
            return axis % leaf.ndim
    return None


def place_batch(batch: Any, mesh: jax.sharding.Mesh) -> Any:
    """Put a host batch on the devices, its leading axis split; each process moves only its part.

    A leading axis that does not divide (a validation set's) is left whole on every device.
    """

    def place(array: np.ndarray) -> jax.Array:
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        spec = P(SAMPLE_AXES) if array.ndim and array.shape[0] % shards == 0 else P()
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, batch)
