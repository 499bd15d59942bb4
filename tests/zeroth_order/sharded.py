"""Prints, for each way to shard a stack of matrices, whether steps have the bits of one device.

Run by `test_directions` in a process with four devices. For each: whether one update has the same
bits, the collectives of its program, and whether the parameters do after twenty steps of MeZO whose
loss gathers the weights of a layer, so that the forward pass is the same in every bit.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

import zeroth_order

SPECS = {"rows": (None, "x", None), "columns": (None, None, "x"), "layers": ("x", None, None)}
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
ALONG = zeroth_order.direction(stack={"w": 1})


def one_update(mesh: jax.sharding.Mesh, placed: jax.NamedSharding) -> tuple[bool, list[str]]:
    estimate = zeroth_order.SeededGradient(jnp.uint32(3), jnp.array([0.3, -1.7]))
    value = {"w": jax.random.normal(jax.random.key(0), (4, 8, 12))}

    def step(p):
        return zeroth_order.apply(ALONG, estimate, p, rate=0.1)

    whole = np.asarray(jax.jit(step)(value)["w"])
    split = jax.device_put(value, placed)
    compiled = jax.jit(step, out_shardings=placed).lower(split).compile()
    same = bool((np.asarray(compiled(split)["w"]) == whole).all())
    return same, [c for c in COLLECTIVES if c in compiled.as_text()]


def twenty_steps(mesh: jax.sharding.Mesh, placed: jax.NamedSharding) -> bool:
    value = {"w": jax.random.normal(jax.random.key(0), (4, 8, 8)) / 3}
    x = jax.random.normal(jax.random.key(1), (5, 8))

    def run(where: jax.NamedSharding | None) -> np.ndarray:
        def loss(p, x):
            def block(h, w):
                w = zeroth_order.read(w)
                if where is not None:
                    whole = jax.NamedSharding(mesh, jax.P(None, None))
                    w = jax.lax.with_sharding_constraint(w, whole)
                return jnp.tanh(h @ w), None

            return jnp.sum(jnp.square(jax.lax.scan(block, x, p["w"])[0]), axis=1)

        estimator = zeroth_order.spsa(ALONG, epsilon=1e-2, samples=2, streamed=True)
        algorithm = zeroth_order.mezo(loss, 1e-2, estimator, ALONG)
        first = value if where is None else jax.device_put(value, where)
        state = algorithm.init(first, jax.random.key(3))
        steps = jax.jit(lambda s: jax.lax.scan(lambda s, _: algorithm.update(s, x), s, length=20))
        return np.asarray(steps(state)[0].params["w"])

    found, expected = run(placed), run(None)
    return bool((found == expected).all() and (found != np.asarray(value["w"])).any())


def main() -> None:
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices(), axis_types=auto)
    outcome = {}
    for name, spec in SPECS.items():
        placed = jax.NamedSharding(mesh, jax.P(*spec))
        outcome[name] = [*one_update(mesh, placed), twenty_steps(mesh, placed)]
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
