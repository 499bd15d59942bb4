"""PSGD Kron."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim

from ..mistakes import decay_after, delayed, without_decay
from ..recording import Recording
from ..replay import Adapter, AdapterError, Pair, open_loop, rules_of


def kron_layout(shape: tuple[int, ...]) -> str | None:
    """How the authors fold a torch tensor: by the signed difference of the sides."""
    if len(shape) < 2:
        return None
    last = shape[-1] - int(np.prod(shape[:-1]))
    first = int(np.prod(shape[1:])) - shape[0]
    others = ["m" if last <= first else "n"] * (len(shape) - 2)
    return " ".join(["m", *others, "n"])


def build_kron(
    lr: float = 3e-4,
    preconditioner_update_probability: float | str | None = None,
    schedule: Mapping[str, float] | None = None,
    precond_dtype: None = None,
    **same: Any,
) -> optax.GradientTransformation:
    """`optim.kron` by its official arguments, most of which are called alike."""
    if precond_dtype is not None:
        raise AdapterError("psgd_kron: a precond_dtype is not supported.")
    probability: Any = preconditioner_update_probability
    if schedule is not None:  # of the probability, which is then only described
        probability = optim.update_probability_schedule(**schedule)
    return optim.kron(lr, preconditioner_update_probability=probability, **same)


def kron(build: Callable[..., Any]) -> Adapter:
    """PSGD Kron by `build`, with the recorded probes and balances in place of its draws.

    Leaves stay in torch's layout, on which the authors' folding depends.
    """

    def adapter(recording: Recording, dtype: Any) -> Mapping[str, Pair]:
        shapes = {leaf: value.shape for leaf, value in recording.tree("p0").items()}
        probes = {
            leaf: jnp.asarray(value.reshape(len(value), *shapes[leaf]), dtype)
            for leaf, value in recording.tree("in/V").items()
        }
        balances = jnp.asarray(recording.arrays["in/balance"])
        index = jnp.asarray(np.maximum(np.cumsum(recording.arrays["in/do_update"]) - 1, 0))
        inputs = {
            "matrices": rules_of({leaf: kron_layout(s) for leaf, s in shapes.items()}),
            "probe": lambda key, count, tree: {leaf: v[index[count]] for leaf, v in probes.items()},
            "balance": lambda key, count: balances[count],
        }
        return open_loop(functools.partial(build, **inputs))(recording, dtype)

    return adapter


def _kron_with(**changed: Callable[[Any], Any]) -> Adapter:
    """PSGD Kron with other arguments, functions of what a recording and its adapter give."""
    return kron(
        lambda **given: build_kron(**{**given, **{k: f(given) for k, f in changed.items()}})
    )


ADAPTERS: dict[str, Adapter] = {
    "psgd_kron": kron(build_kron),
}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "psgd_kron": {
        # Balancing keeps the product of the factors, so no trajectory can tell when it is done.
        "the probe of the next update": _kron_with(
            probe=lambda given: lambda key, count, tree: given["probe"](key, count + 2, tree)
        ),
        "gradient and momentum exchanged": _kron_with(
            momentum_into_precond_update=lambda given: (
                not given.get("momentum_into_precond_update", True)
            )
        ),
        "an update every step": _kron_with(
            schedule=lambda given: None, preconditioner_update_probability=lambda given: 1.0
        ),
        "one factor starts at the whole scale": _kron_with(
            precond_init_scale=lambda given: given["precond_init_scale"] ** 2
        ),
        "a convolution folded to be square": _kron_with(
            matrices=lambda given: {
                leaf: layout and "m" + layout[1:].replace("m", "n")
                for leaf, layout in given["matrices"].items()
            }
        ),
        "vectors decay": _kron_with(
            mask=lambda given: lambda params: jax.tree.map(lambda _: True, params)
        ),
        "decay after the step": kron(
            lambda **given: optax.chain(
                build_kron(**without_decay(given)),
                decay_after(given["lr"] * given["weight_decay"]),
            )
        ),
        "one gradient late": kron(lambda **given: optax.chain(delayed(), build_kron(**given))),
    },
}
