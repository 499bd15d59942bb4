"""python -m tests.optim.matrix.spread: stacks spread over four devices against one device.

The number of devices is fixed when jax starts, hence a process of its own. Prints a JSON object,
method -> [largest difference of a parameter, whether the state lies spread].
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optim

SHAPES = {"a": (8, 6), "b": (6, 8), "c": (8, 6), "d": (5,), "e": (3, 5, 7)}
METHODS = {
    "kron": lambda **mesh: optim.kron(0.01, weight_decay=0.1, **mesh),
    "cosmos": lambda **mesh: optim.cosmos(0.01, rank=2, dtype=None, **mesh),
}


def _run(transformation: Any, params: Any) -> Any:
    def step(carry: Any, count: jax.Array) -> Any:
        params, state = carry
        key = jax.random.fold_in(jax.random.key(1), count)
        gradient = {k: jnp.sin(p * (3 + count)) for k, p in params.items()}
        updates, state = transformation.update(gradient, state, params, key=key)
        return (optim.apply_updates(params, updates), state), None

    start = jax.jit(transformation.init)(params)
    return jax.jit(lambda *carry: jax.lax.scan(step, carry, jnp.arange(3))[0])(params, start)


def main() -> None:
    """Runs both methods both ways."""
    params = {
        k: jax.random.normal(jax.random.fold_in(jax.random.key(0), i), shape)
        for i, (k, shape) in enumerate(SHAPES.items())
    }
    outcome = {}
    for name, make in METHODS.items():
        alone, _ = _run(make(), params)
        mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        with jax.set_mesh(mesh):
            rows = {k: P("x") if len(SHAPES[k]) == 2 else P() for k in params}
            spread = {k: jax.device_put(p, NamedSharding(mesh, rows[k])) for k, p in params.items()}
            ours, state = _run(make(mesh_axis=("x", "y")), spread)
        stacks = jax.tree.leaves(state[0][-1])
        lies = all(
            len(x) % 4 == 0 and x.sharding.shard_shape(x.shape)[0] * 4 == len(x) for x in stacks
        )
        outcome[name] = [max(float(jnp.abs(ours[k] - alone[k]).max()) for k in params), lies]
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
