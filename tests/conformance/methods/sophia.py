"""Sophia-G, whose recorded estimates are squares of sampled gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optax

import optim

from ..mistakes import decay_after, delayed, without_decay
from ..recording import Recording
from ..replay import Adapter, AdapterError, open_loop


def _sophia(
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.965, 0.99),
    rho: float = 0.04,
    weight_decay: float = 1e-1,
    bs: int = 5120,
    hess_interval: int = 10,
    *,
    maximize: bool = False,
    capturable: bool = False,
    shift: int = 0,
) -> optax.GradientTransformation:
    """SophiaG by its official arguments, and the `bs` of its step, which the adapter reads.

    The authors refresh after step k - 1 of every k, which is before step k.
    """
    del bs, capturable
    if maximize:
        raise AdapterError("sophia_g: maximize=True is not replayed.")
    inner = optim.sophia(lr, b1=betas[0], b2=betas[1], gamma=rho, weight_decay=weight_decay)
    return optim.with_curvature(inner, every=hess_interval, start=hess_interval - shift)


def _square(bs: int, sampled: np.ndarray) -> np.ndarray:
    return bs * np.square(sampled)


def _replay(build: Callable[..., Any], curvature: Callable[[int, Any], Any] = _square) -> Adapter:
    """An adapter whose estimates are `curvature(bs, sampled gradient)`."""

    def curvatures(recording: Recording, dtype: Any) -> dict[str, np.ndarray]:
        # A sampled gradient is recorded for each step with one, which serves from the next on.
        counts = np.cumsum(recording.arrays["in/hess_step"])
        latest = np.concatenate([[0], counts[:-1]]) - 1
        bs = recording.hyper.get("bs", 5120)
        sampled = recording.tree("in/gh", dtype)
        none = {k: np.zeros((1, *p.shape)) for k, p in recording.tree("p0").items()}
        return {k: curvature(bs, x[latest]) for k, x in (sampled or none).items()}

    return open_loop(build, curvatures)


ADAPTERS: dict[str, Adapter] = {"sophia_g": _replay(_sophia)}


def _mutant(*before: optax.GradientTransformation, **changes: Any) -> Adapter:
    """Links in front of Sophia, and changes of hyper-parameters, functions of them all."""

    def build(**hyper: Any) -> optax.GradientTransformation:
        changed = {name: change(hyper) for name, change in changes.items()}
        tx = optax.with_extra_args_support(_sophia(**{**hyper, **changed}))
        return optax.chain(*before, tx)

    return _replay(build)


def _decay_after(**hyper: Any) -> optax.GradientTransformation:
    decay = decay_after(hyper["lr"] * hyper["weight_decay"])
    return optax.chain(_sophia(**without_decay(hyper)), decay)


def _with(variant: str) -> Callable[..., optax.GradientTransformation]:
    """A direction of another make, at the same steps."""

    def build(
        lr: float,
        betas: Any,
        rho: float,
        weight_decay: float,
        bs: int,
        hess_interval: int,
    ) -> optax.GradientTransformation:
        del bs
        links = {
            "corrected": [
                optim.scale_by_sophia(*betas, gamma=rho),
                optax.scale_by_schedule(lambda count: 1 / (1 - betas[0] ** (count + 1))),
                optax.clip(1.0),
            ],
            "sign": [optax.ema(betas[0], debias=False), optax.scale_by_sign()],
        }
        inner = optax.chain(
            *links[variant],
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(lr),
        )
        return optim.with_curvature(inner, every=hess_interval, start=hess_interval)

    return build


MUTANTS: dict[str, dict[str, Adapter]] = {
    "sophia_g": {
        "b1 and b2 exchanged": _mutant(betas=lambda hyper: hyper["betas"][::-1]),
        "refreshed a step early": _mutant(shift=lambda hyper: 1),
        "refreshed at the first step": _mutant(shift=lambda hyper: hyper["hess_interval"]),
        "one gradient late": _mutant(delayed()),
        "decay after the step": _replay(_decay_after),
        "decay not scaled by the rate": _mutant(
            weight_decay=lambda hyper: hyper["weight_decay"] / hyper["lr"]
        ),
        "without the batch": _replay(_sophia, lambda bs, x: np.square(x)),
        "absolute values for squares": _replay(_sophia, lambda bs, x: bs * np.abs(x)),
        "clipped to norm 1": _replay(
            _sophia, lambda bs, x: bs * np.square(x / np.maximum(np.linalg.norm(x), 1))
        ),
        "momentum corrected for its start": _replay(_with("corrected")),
        "the sign alone": _replay(_with("sign")),
    },
}
