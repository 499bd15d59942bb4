"""Adam-mini."""

import dataclasses
from typing import Any

import optax

import optim

from ..recording import Recording
from ..replay import Adapter, Pair, open_loop, transposed


def _adam_mini(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    model_sharding: bool | None = None,
    dim: int = 2048,
    n_heads: int = 32,
    n_kv_heads: int | None = None,
    verbose: bool = True,
) -> optax.GradientTransformation:
    del model_sharding, verbose, n_kv_heads  # the last of which the code only checks
    return optim.adam_mini(
        lr,
        blocks=optim.adam_mini_blocks(dim=dim, num_heads=n_heads),
        b1=betas[0],
        b2=betas[1],
        eps=eps,
        weight_decay=weight_decay,
    )


def flax_kernels(adapter: Adapter) -> Adapter:
    """`adapter` shown torch's modules as flax's: `q_proj|weight` as a kernel (in, out) by path.

    torch's embeddings have no layout of their own then, and heads that end inside a row, which
    the official code allows since it goes by elements, become rows.
    """

    def shown(recording: Recording, dtype: Any) -> dict[str, Pair]:
        width, heads = recording.hyper.get("dim", 2048), recording.hyper.get("n_heads", 32)
        blocks = optim.adam_mini_blocks(dim=width, num_heads=heads)
        names = {leaf: leaf.replace("|", "/") + "/kernel" for leaf in recording.tree("p0")}
        arrays = dict(recording.arrays)
        for group in ("p0", "g", recording.final):
            for leaf, name in names.items():
                value = arrays.pop(f"{group}/{leaf}")
                start = recording.arrays[f"p0/{leaf}"]
                try:
                    blocks({name: start.T})
                except ValueError:
                    steps = value.shape[: value.ndim - start.ndim]
                    value = value.reshape(*steps, -1, width * width // heads)
                arrays[f"{group}/{name}"] = value
        renamed = dataclasses.replace(recording, arrays=arrays)
        return dict(transposed(adapter)(renamed, dtype))

    return shown


ADAPTERS: dict[str, Adapter] = {
    "adam_mini": lambda *recorded: flax_kernels(open_loop(_adam_mini))(*recorded),
}

MUTANTS: dict[str, dict[str, Adapter]] = {}
