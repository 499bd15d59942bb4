"""Tests of experiments/mesh.py on one device; test_processes.py has more of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments.config import Config, Mesh, UserError
from experiments.mesh import check_batch, make_mesh, place_batch, state_sharding


class FakeMesh:
    """Stands for a mesh of several devices where only its shape is asked for."""

    def __init__(self, **shape: int):
        self.shape = shape


@pytest.mark.parametrize(
    ("mesh", "phrase"),
    [
        (Mesh(data=4), "wants 4 devices; this machine has 1"),
        (Mesh(fsdp=3), "wants 3 devices; this machine has 1"),
        (Mesh(data=0), "config.mesh.data is 0"),
        (Mesh(tensor=0), "config.mesh.tensor is 0"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(mesh, phrase):
    with pytest.raises(UserError, match=phrase):
        make_mesh(mesh)


def test_the_rest_of_the_devices_is_data():
    assert dict(make_mesh(Mesh()).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("batch", "accumulation", "good"), [(16, 2, True), (12, 2, False), (8, 1, True)]
)
def test_every_device_gets_as_many_samples(batch, accumulation, good):
    config = Config(task=None, steps=1, batch_size=batch, accumulation=accumulation)
    mesh = FakeMesh(data=4, fsdp=2, tensor=1)
    if good:
        check_batch(config, mesh)
    else:
        with pytest.raises(UserError, match=r"batch_size = 12 is not divisible .* = 2 \* 4 \* 2"):
            check_batch(config, mesh)


def test_a_state_is_laid_out_as_its_parameter():
    mesh = jax.sharding.AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731
    params = {
        "blocks": {
            "attention": {
                "query": {"kernel": shape(3, 64, 32)},
                "output": {"kernel": shape(3, 32, 64)},
            }
        },
        "embedding": shape(256, 64),
        "odd": shape(33, 99),
        "small": shape(8),
    }
    tree = {"params": params, "optimizer": ({"mu": params, "count": shape()},)}
    found = jax.tree.map(lambda s: s.spec, state_sharding(tree, mesh, Mesh(fsdp=2, tensor=2)))
    assert found["params"] == found["optimizer"][0]["mu"]
    assert found["params"]["blocks"]["attention"]["query"]["kernel"] == P(None, "fsdp", "tensor")
    assert found["params"]["blocks"]["attention"]["output"]["kernel"] == P(None, "tensor", "fsdp")
    assert found["params"]["embedding"] == P("fsdp", None)
    assert found["params"]["odd"] == P(None, None)
    assert found["params"]["small"] == P(None)
    assert found["optimizer"][0]["count"] == P()


def test_stacks_of_matrices_are_spread_whole_where_they_divide():
    mesh = jax.sharding.AbstractMesh((2, 2, 1), ("data", "fsdp", "tensor"))
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731
    stack = {"stacks": {"64x128_float32": {"mu": shape(4, 64, 128), "odd": shape(3, 64, 128)}}}
    found = jax.tree.map(lambda s: s.spec, state_sharding(stack, mesh, Mesh(fsdp=2)))
    assert found["stacks"]["64x128_float32"] == {
        "mu": P("fsdp", None, None),
        "odd": P(None, None, "fsdp"),
    }


def test_a_placed_batch_holds_the_same_samples():
    batch = {"x": np.arange(12).reshape(6, 2), "y": np.arange(6)}
    placed = place_batch(batch, make_mesh(Mesh()))
    np.testing.assert_array_equal(placed["x"], batch["x"])
    assert placed["y"].sharding.spec == P(("data", "fsdp"))
