"""Compiles the largest blocks that the regimes allow for TPU chips, and writes what it found.

Run by `test_regimes` in a process that can: for each program whether it has the kernel, its
temporaries, and the bytes that it updates in place.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import zeroth_order
from experiments.tpu_slice import slice_mesh
from zeroth_order.kernels.fused_update import fused_update
from zeroth_order.kernels.paired_product import perturbed_product

PAIRS = {  # tokens, m, n, dtype
    "most tokens and rows": (256, 8192, 2048, jnp.float32),
    "one token": (1, 4096, 1024, jnp.bfloat16),
    "cut blocks": (33, 1024, 1152, jnp.bfloat16),
    "blocks of rows": (128, 12288, 1024, jnp.bfloat16),
}
UPDATES = {  # directions, shape, dtype
    "stack": (64, (3, 1024, 1024), jnp.bfloat16),
    "cut blocks": (33, (1056, 1152), jnp.float32),
}


def pair(tokens, m, n, dtype, draws):
    def one(x, w, key, scale):
        return perturbed_product(x, w, key, scale, draws)

    shapes = ((2, tokens, m), dtype), ((m, n), dtype), ((), jnp.uint32), ((2,), jnp.float32)
    return jax.vmap(one, (0, None, None, 0)), shapes, ()


def update(directions, shape, dtype, draws):
    def run(w, keys, coefficients, rounding):
        return fused_update(w, keys, coefficients, draws, rounding)

    stack = shape[:-2]
    keys, coefficients = ((directions, *stack), jnp.uint32), ((directions,), jnp.float32)
    return run, ((shape, dtype), keys, coefficients, (stack, jnp.uint32)), (0,)


def main() -> None:
    found = {}
    for topology in ("v5e:2x2", "v5p:2x2x1"):
        on_chip = jax.NamedSharding(slice_mesh(topology, (1,), ("x",)), jax.P())
        for draws in ("rademacher", "popcount_normal"):
            for kind, cases in ((pair, PAIRS), (update, UPDATES)):
                for name, case in cases.items():
                    run, shapes, donated = kind(*case, getattr(zeroth_order, draws))
                    arguments = [jax.ShapeDtypeStruct(*s, sharding=on_chip) for s in shapes]
                    weights = arguments[0 if donated else 1]
                    jitted = jax.jit(run, donate_argnums=donated)
                    compiled = jitted.lower(*arguments).compile()
                    memory = compiled.memory_analysis()
                    found[f"{kind.__name__}, {name}, {draws}, {topology}"] = {
                        "kernel": "tpu_custom_call" in compiled.as_text(),
                        "temporaries": memory.temp_size_in_bytes,
                        "weights": weights.size * weights.dtype.itemsize,
                        "in place": memory.alias_size_in_bytes,
                    }
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
