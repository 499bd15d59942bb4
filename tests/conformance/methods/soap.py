"""SOAP."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim

from ..mistakes import decay_after, delayed
from ..recording import Recording
from ..replay import Adapter, open_loop


def merged(shape: tuple[int, ...], longest: int) -> tuple[int, ...]:
    """Neighbouring axes as one while their product is at most `longest`."""
    sizes: list[int] = []
    run = 1
    for size in shape:
        if run * size <= longest:
            run *= size
        elif run > 1:
            sizes, run = [*sizes, run], size
        else:
            sizes = [*sizes, size]
    return (*sizes, run) if run > 1 or not sizes else tuple(sizes)


def _with_merged_axes(recording: Recording, longest: int, channels_last: bool) -> Recording:
    """Leaves of two axes or more with their axes merged; one axis is (1, n), which is no vector."""
    start = recording.tree("p0")

    def shown(group: str, leaf: str, value: np.ndarray) -> np.ndarray:
        lead = {"p0": 0, "g": 1, recording.final: 1}.get(group)
        if lead is None or leaf not in start or start[leaf].ndim < 2:
            return value
        if channels_last and start[leaf].ndim == 4:
            value = np.moveaxis(value, -1, lead + 1)
        sizes = merged(value.shape[lead:], longest)
        return value.reshape(*value.shape[:lead], *((1,) if len(sizes) == 1 else ()), *sizes)

    arrays = {
        key: shown(key.partition("/")[0], key.partition("/")[2], value)
        for key, value in recording.arrays.items()
    }
    return dataclasses.replace(recording, arrays=arrays)


def first_bases(recording: Recording) -> Any:
    """The recorded bases by leaf, one a side, or the default where there are none."""
    found = recording.tree("in/Q0")
    if not found:
        return {}

    def sides(leaf: str, value: np.ndarray) -> list[np.ndarray | None]:
        recorded = {int(key.rpartition("/")[2]) for key in found if key.rpartition("/")[0] == leaf}
        # A leaf merged into one axis has another one of size 1 in front.
        shift = (
            value.ndim == 2
            and value.shape[0] == 1
            and recorded == {0}
            and found[f"{leaf}/0"].shape[0] == value.shape[1]
        )
        return [found.get(f"{leaf}/{side - shift}") for side in range(value.ndim)]

    bases = {leaf: sides(leaf, value) for leaf, value in recording.tree("p0").items()}
    return {"initial_basis": bases}


def build_soap(
    lr: float = 3e-3,
    betas: tuple[float, float] = (0.95, 0.95),
    shampoo_beta: float = -1,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize_grads: bool = False,
    data_format: str = "channels_first",
    correct_bias: bool = True,
    make: Any = optim.soap,
    **ours: Any,
) -> optax.GradientTransformation:
    """optim.soap by the official names."""
    del merge_dims, data_format  # the recording is shown with its axes merged
    return make(
        lr,
        b1=betas[0],
        b2=betas[1],
        shampoo_beta=shampoo_beta if shampoo_beta >= 0 else None,
        eps=eps,
        weight_decay=weight_decay,
        frequency=precondition_frequency,
        max_precond_dim=max_precond_dim,
        precondition_1d=precondition_1d,
        normalize=normalize_grads,
        bias_correction=correct_bias,
        **ours,
    )


def replayed(**changes: Any) -> Adapter:
    """The adapter, with arguments of `build_soap` or `optim.soap` changed."""

    def adapter(recording: Recording, dtype: Any) -> Mapping[str, Any]:
        hyper = recording.hyper
        if hyper.get("merge_dims", False):
            longest = hyper.get("max_precond_dim", 10000)
            last = hyper.get("data_format", "channels_first") == "channels_last"
            recording = _with_merged_axes(recording, longest, last)
        build = functools.partial(build_soap, **{**first_bases(recording), **changes})
        return open_loop(build)(recording, dtype)

    return adapter


def _decayed_before(lr: float, weight_decay: float, **same: Any) -> optax.GradientTransformation:
    return optax.chain(
        optim.scale_by_soap(**same),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(lr),
    )


def _decayed_always(lr: float, weight_decay: float, **same: Any) -> optax.GradientTransformation:
    return optax.chain(optim.soap(lr, weight_decay=0.0, **same), decay_after(lr * weight_decay))


def _uncorrected_twice(lr: float, bias_correction: bool, **same: Any) -> Any:
    return optim.soap(lr, bias_correction=not bias_correction, **same)


def _by_eigenvectors(x: jax.Array, basis: jax.Array) -> jax.Array:
    return jnp.linalg.eigh(x @ basis.T)[1][:, ::-1]


ADAPTERS: dict[str, Adapter] = {"soap": replayed()}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "soap": {
        "decay of what the step starts from": replayed(make=_decayed_before),
        "decay at the first step, too": replayed(make=_decayed_always),
        "one gradient late": replayed(
            make=lambda lr, **same: optax.chain(delayed(), optim.soap(lr, **same))
        ),
        "bias correction the other way": replayed(make=_uncorrected_twice),
        "another decay of the factors": replayed(
            make=lambda lr, **same: optim.soap(lr, **same | {"shampoo_beta": same["b1"] / 2})
        ),
        "b1 and b2 exchanged": replayed(
            make=lambda lr, b1, b2, **same: optim.soap(lr, b1=b2, b2=b1, **same)
        ),
        "bases sorted and never refreshed": replayed(orthonormalize=lambda x, basis: basis),
        "eigenvectors in place of one QR step": replayed(orthonormalize=_by_eigenvectors),
        "refreshed a step early": replayed(
            make=lambda lr, frequency, **same: optim.soap(lr, frequency=frequency - 1, **same)
        ),
        "direction normalized": replayed(
            make=lambda lr, normalize, **same: optim.soap(lr, normalize=not normalize, **same)
        ),
    }
}
