"""Prints, for each way to shard a stack of matrices, whether an update has the bits of one device.

Run by `test_directions` in a process with four devices; with it, the collectives of the program.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

import zeroth_order

SPECS = {"rows": (None, "x", None), "columns": (None, None, "x"), "layers": ("x", None, None)}
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")


def main() -> None:
    along = zeroth_order.direction(stack={"w": 1})
    estimate = zeroth_order.SeededGradient(jnp.uint32(3), jnp.array([0.3, -1.7]))
    value = {"w": jax.random.normal(jax.random.key(0), (4, 8, 12))}

    def step(p):
        return zeroth_order.apply(along, estimate, p, rate=0.1)

    whole = np.asarray(jax.jit(step)(value)["w"])
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices())
    outcome = {}
    for name, spec in SPECS.items():
        placed = jax.NamedSharding(mesh, jax.P(*spec))
        split = jax.device_put(value, placed)
        compiled = jax.jit(step, out_shardings=placed).lower(split).compile()
        text, found = compiled.as_text(), np.asarray(compiled(split)["w"])
        same = bool((found == whole).all())
        outcome[name] = [same, [c for c in COLLECTIVES if c in text]]
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
