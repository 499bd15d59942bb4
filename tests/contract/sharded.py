"""python -m tests.contract.sharded: every row on four devices, against itself on one.

The number of devices is fixed when jax starts, hence a process of its own, one for all rows. Prints
a JSON object, row -> what went wrong, or null.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from .harness import RATE, Row, assert_close, gradients, parameters, scan
from .table import ROWS

DEVICES = 4


def sharded_equals_unsharded(row: Row) -> None:
    """Kernels split over their rows, the rest replicated: the same run."""
    params = parameters()
    stacked = gradients(params)
    mesh = jax.make_mesh((DEVICES,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))

    def place(tree: Any, leading: tuple[None, ...]) -> Any:
        def put(leaf: jax.Array) -> jax.Array:
            split = leaf.ndim - len(leading) == 2 and leaf.shape[-2] > 0
            spec = PartitionSpec(*leading, "rows") if split else PartitionSpec()
            return jax.device_put(leaf, NamedSharding(mesh, spec))

        return jax.tree.map(put, tree)

    transformation = row.make(RATE)

    @jax.jit
    def run(params: Any, state: Any, stacked: Any) -> Any:
        return scan(row, transformation, params, state, stacked)

    alone = run(params, transformation.init(params), stacked)
    spread = place(params, ())
    ours = run(spread, transformation.init(spread), place(stacked, (None,)))
    assert_close(ours.trajectory, alone.trajectory, params, f"{row.name}: sharded")
    kernel = ours.params["dense"]["kernel"]
    assert not kernel.sharding.is_fully_replicated, f"{row.name}: gathers the parameters"


def _counts_devices() -> optax.GradientTransformation:
    """A planted fault: a mean over devices that counts those that a parameter lies on."""

    def init(params: Any) -> Any:
        return jax.tree.map(lambda p: jnp.float32(len(p.sharding.device_set)), params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        return jax.tree.map(jnp.divide, updates, state), state

    return optax.GradientTransformation(init, update)


FAULT = Row("planted fault: counts devices", lambda rate: _counts_devices())


def main() -> None:
    """Checks all rows, the planted fault among them."""
    assert len(jax.devices()) == DEVICES, "set XLA_FLAGS=--xla_force_host_platform_device_count=4"
    outcome: dict[str, str | None] = {}
    for row in (*ROWS, FAULT):
        try:
            sharded_equals_unsharded(row)
            outcome[row.name] = None
        except Exception as error:
            outcome[row.name] = f"{type(error).__name__}: {error}"
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
