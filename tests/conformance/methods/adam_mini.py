"""Adam-mini."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
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
    blocks = optim.adam_mini_blocks(dim=dim, num_heads=n_heads)
    return optim.adam_mini(
        lr, blocks=blocks, b1=betas[0], b2=betas[1], eps=eps, weight_decay=weight_decay
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
    "adam_mini": flax_kernels(open_loop(_adam_mini)),
}


def _mistaken(relabel: Callable[[str], str] = lambda label: label, **other: Any) -> Adapter:
    """Adam-mini that takes its blocks wrongly, or decays something else."""

    def build(
        lr: float,
        betas: Any,
        dim: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        **same: Any,
    ) -> optax.GradientTransformation:
        del n_kv_heads
        blocks = optim.adam_mini_blocks(dim=dim, num_heads=n_heads)
        return optim.adam_mini(
            lr,
            blocks=lambda params: jax.tree.map(relabel, blocks(params)),
            b1=betas[0],
            b2=betas[1],
            **same,
            **other,
        )

    return flax_kernels(open_loop(build))


MUTANTS: dict[str, dict[str, Adapter]] = {
    "adam_mini": {
        "decay of norms and biases": _mistaken(mask=None),
        "heads taken as neurons": _mistaken(
            lambda label: "1 *" if label.startswith("1 ") else label
        ),
        "all heads in one block": _mistaken(lambda label: "1" if label[2:].isdecimal() else label),
        "rows taken as columns": _mistaken(lambda label: "* 1" if label == "1 *" else label),
        "biases in one block": _mistaken(lambda label: "1" if label == "*" else label),
        "Adam": _mistaken(lambda label: "*"),
    },
}
