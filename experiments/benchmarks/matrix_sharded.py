"""Muon and SOAP on 8 B parameters over fsdp x tensor: what each chip of a TPU slice does.

A decoder of 32 layers, width 4096, hidden width 14336, parameters and state float32. Query, key,
value, gate, up and head are split (fsdp, tensor), out, down and embedding (tensor, fsdp).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optim
from experiments.benchmarks.ahead import Program, Slice

SLICES = {
    "v5p:8x8x8": Slice("v5p:8x8x8", (64, 8), ("fsdp", "tensor")),
    "v5e:16x16": Slice("v5e:16x16", (32, 8), ("fsdp", "tensor")),
}
COLUMN_PARALLEL = ("query", "key", "value", "gate", "up", "head")


def shapes(layers: int, width: int, hidden: int, vocabulary: int) -> dict[str, Any]:
    """Leaf shapes, layers stacked in front."""
    square, wide = (layers, width, width), (layers, width, hidden)
    return {
        "blocks": {
            **dict.fromkeys(("query", "key", "value", "out"), square),
            **dict.fromkeys(("gate", "up"), wide),
            "down": (layers, hidden, width),
        },
        "embedding": (vocabulary, width),
        "head": (width, vocabulary),
    }


def parameters(mesh: jax.sharding.Mesh, quick: bool) -> Any:
    """The parameters as shapes with shardings."""
    sizes = (2, 1024, 2048, 4096) if quick else (32, 4096, 14336, 32000)

    def leaf(path: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        column = optim.path_string(path).split("/")[-1] in COLUMN_PARALLEL
        axes = ("fsdp", "tensor") if column else ("tensor", "fsdp")
        spec = P(*[None] * (len(shape) - 2), *axes)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    tree = shapes(*sizes)
    return jax.tree.map_with_path(leaf, tree, is_leaf=lambda node: isinstance(node, tuple))


def step(
    make: Callable[[], optax.GradientTransformation], quick: bool, mesh: jax.sharding.Mesh
) -> tuple[Any, tuple[Any, ...]]:
    """One jitted step of an optimizer, parameters and state donated, and its abstract arguments.

    The optimizer is made while tracing: nothing can be computed on the chips of a described slice.
    """
    params = parameters(mesh, quick)
    state = placed_state(make, params)

    def update(params: Any, state: Any, gradient: Any) -> Any:
        optimizer = optax.with_extra_args_support(make())
        updates, state = optimizer.update(gradient, state, params)
        return optim.apply_updates(params, updates), state

    shardings = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
    function = jax.jit(update, donate_argnums=(0, 1), out_shardings=shardings)
    return function, (params, state, params)


def placed_state(make: Callable[[], optax.GradientTransformation], params: Any) -> Any:
    """The state as shapes: a momentum lies like its parameter, all else where init puts it."""
    paths = {optim.path_string(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}

    def like_its_parameter(path: Any, leaf: Any) -> Any:
        for name, param in paths.items():
            if optim.path_string(path).endswith(name) and leaf.shape == param.shape:
                return param.sharding
        return None

    def init(params: Any) -> Any:
        return make().init(params)

    shapes = jax.eval_shape(init, params)
    wanted = jax.tree.map_with_path(like_its_parameter, shapes)
    placed = jax.jit(init, out_shardings=wanted).lower(params).compile().output_shardings
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        placed,
    )


def partitioned(matrix: optax.GradientTransformation) -> optax.GradientTransformation:
    """`matrix` for the layers, AdamW for embedding and head."""
    transforms = {
        "matrix": optax.chain(matrix, optax.scale_by_learning_rate(1e-3)),
        "other": optax.adamw(1e-3),
    }
    return optax.partition(
        transforms,
        lambda tree: optim.path_labels(tree, {"blocks/.*": "matrix", "embedding|head": "other"}),
        mask_compatible_extra_args=True,
    )


def optax_muon(**options: Any) -> optax.GradientTransformation:
    """optax's Muon; which axes are rows and columns is declared in its own way."""
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)

    def dimensions(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: axes, tree)

    muon = optax.contrib.scale_by_muon(weight_dimension_numbers=dimensions, **options)
    return partitioned(muon)


def our_muon(**options: Any) -> optax.GradientTransformation:
    """Our Muon; query, key, value, out, gate, up, down are matrices of stacked layers."""
    return partitioned(optim.scale_by_muon({"blocks/.*": "b m n"}, **options))


def our_soap(**options: Any) -> optax.GradientTransformation:
    """Our SOAP."""
    return partitioned(optim.scale_by_soap({"blocks/.*": "b m n"}, **options))


STANDARD_ROWS = ((3.4445, -4.7750, 2.0315),) * 5
REFRESH = {0: 1.0, 1: 0.0}  # of SOAP's two ways to bases: from the last ones, not from nothing
MATRICES_A_CHIP = 2  # that a refresh works on in turn, with fsdp 64: 128 square ones, 96 wide


class Case(NamedTuple):
    """An optimizer, and how often what the text of its program leaves open is run."""

    make: Callable[[], optax.GradientTransformation]
    trips: float | None = None
    weights: Mapping[int, float] | None = None


def soap_on_mesh() -> optax.GradientTransformation:
    """State over both axes: gradient and update alone travel."""
    return our_soap(mesh_axis="fsdp", column_axis="tensor")


OPTIMIZERS = {
    "adamw": Case(lambda: optax.adamw(1e-3)),
    "optax muon, scan path": Case(lambda: optax_muon(ns_coeffs=STANDARD_ROWS)),
    "muon, no mesh_axis": Case(our_muon),
    "muon, mesh_axis=fsdp": Case(lambda: our_muon(mesh_axis="fsdp")),
    "muon, mesh_axis=fsdp, gram": Case(lambda: our_muon(mesh_axis="fsdp", form="gram")),
    "muon, mesh_axis=(fsdp, tensor)": Case(lambda: our_muon(mesh_axis=("fsdp", "tensor"))),
    "soap, ordinary step": Case(soap_on_mesh, 0.0),
    "soap, refresh step": Case(soap_on_mesh, MATRICES_A_CHIP, REFRESH),
}


def programs(quick: bool) -> Mapping[str, Program]:
    """Every optimizer on every slice; `quick` takes two small layers and a slice of 16 chips."""
    slices = {"v5e:4x4": Slice("v5e:4x4", (4, 4), ("fsdp", "tensor"))} if quick else SLICES
    return {
        f"{name}, {place}": Program(
            where, functools.partial(step, case.make, quick), case.weights, case.trips
        )
        for place, where in slices.items()
        for name, case in OPTIMIZERS.items()
    }
