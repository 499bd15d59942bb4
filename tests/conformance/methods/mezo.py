"""MeZO, whose recordings carry the loss and the normal numbers that were drawn."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zeroth_order

from ..recording import Recording
from ..replay import Adapter, AdapterError, Pair

Build = Callable[..., zeroth_order.Algorithm]


def loss_fn(recording: Recording, dtype: Any) -> Callable[[Any, Any], jax.Array]:
    """(parameters, nothing) -> the loss that the recording names, torch's layout."""
    data = recording.tree("in/data", dtype)
    name = recording.hyper["loss"]
    if name == "mlp":

        def mlp(p: Any, batch: Any) -> jax.Array:
            logits = jnp.tanh(data["x"] @ p["w"].T + p["bias"]) @ p["v"].T
            chosen = jnp.take_along_axis(logits, data["y"][:, None], 1)[:, 0]
            return jax.nn.logsumexp(logits, axis=1) - chosen

        return mlp
    if name == "quad":
        count = sum(value.size for value in recording.tree("p0").values())

        def quadratic(p: Any, batch: Any) -> jax.Array:
            terms = [data[f"a_{k}"] * jnp.square(p[k] - data[f"c_{k}"]) for k in p]
            return sum(jnp.sum(term) for term in terms) / (2 * count)

        return quadratic
    raise AdapterError(f"{recording.stem} has the loss {name!r}; accepted: mlp, quad.")


def injected(z: Mapping[str, jax.Array]) -> zeroth_order.Direction:
    """The direction with these numbers, (...) by leaf, whatever the seed."""

    def of(params: Any) -> Any:
        return {
            name: zeroth_order.Leaf(
                number=0,
                stack=0,
                blocks=lambda seed, stack: jnp.asarray(seed, jnp.uint32),
                draw=lambda key, index, weight, name=name: z[name],
            )
            for name in params
        }

    return of


def closed_loop(build: Build) -> Adapter:
    """An adapter that lets `build(loss_fn, along, decays, **hyper)` make all steps."""

    def adapter(recording: Recording, dtype: Any) -> Mapping[str, Pair]:
        hyper = {k: v for k, v in recording.hyper.items() if k not in ("loss", "tensors")}
        loss = loss_fn(recording, dtype)
        start = recording.tree("p0", dtype)
        decays = {name: not ("bias" in name or "layer_norm" in name) for name in start}

        @jax.jit
        def run(params: Any, z: Any) -> Any:
            def step(carry: Any, z: Any) -> Any:
                params, count = carry
                algorithm = build(loss, injected(z), decays, **hyper)
                state = algorithm.init(params, jax.random.key(0))._replace(step=count)
                state, _ = algorithm.update(state, None)
                return (state.params, state.step), state.params

            return jax.lax.scan(step, (params, jnp.int32(0)), z)[1]

        drawn = {name: z[:, 0] for name, z in recording.tree("in/z", dtype).items()}
        ours = run(jax.tree.map(jnp.asarray, start), drawn)
        recorded = recording.tree(str(recording.final))
        return {k: Pair(np.asarray(ours[k]), recorded[k], start[k]) for k in start}

    return adapter


def mezo(
    loss: Any,
    along: zeroth_order.Direction,
    decays: Any,
    *,
    lr: float,
    eps: float,
    weight_decay: float = 0.0,
    estimator: Callable[..., zeroth_order.Estimator] = zeroth_order.spsa,
) -> zeroth_order.Algorithm:
    found = estimator(along, epsilon=eps)
    return zeroth_order.mezo(loss, lr, found, along, weight_decay=weight_decay, mask=decays)


def one_sided(along: zeroth_order.Direction, epsilon: float) -> zeroth_order.Estimator:
    return zeroth_order.spsa(along, epsilon=epsilon, one_sided=True)


ADAPTERS: dict[str, Adapter] = {"mezo": closed_loop(mezo)}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "mezo": {
        "one-sided": closed_loop(
            lambda loss, along, decays, **hyper: mezo(
                loss, along, decays, estimator=one_sided, **hyper
            )
        ),
        "everything decays": closed_loop(
            lambda loss, along, decays, **hyper: mezo(loss, along, None, **hyper)
        ),
        "decay not scaled by the rate": closed_loop(
            lambda loss, along, decays, *, lr, eps, weight_decay: mezo(
                loss, along, decays, lr=lr, eps=eps, weight_decay=weight_decay / lr
            )
        ),
        "divided by eps and not by twice that": closed_loop(
            lambda loss, along, decays, *, lr, eps, weight_decay: mezo(
                loss, along, decays, lr=2 * lr, eps=eps, weight_decay=weight_decay / 2
            )
        ),
    },
}
