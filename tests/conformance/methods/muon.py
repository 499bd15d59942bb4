"""Muon, Keller Jordan's and Moonlight's."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim
from optim.solvers.newton_schulz import STANDARD

from ..mistakes import decay_after
from ..recording import Recording
from ..replay import Adapter, Pair, open_loop, transposed

Betas = Sequence[float]


def muon(
    shapes: Mapping[str, tuple[int, ...]],
    lr: float = 0.02,
    weight_decay: float = 0.0,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    aux_adam_for_1d: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """Muon on leaves of these shapes in torch's layouts; `changes` make a mutant of it.

    Each leaf has a method of its own, since the official factor of a convolution is that of its
    window, which its matrix does not show.
    """
    layouts = {1: None, 2: "n m", 3: "b n m", 4: "n m m m"}

    def of(shape: tuple[int, ...]) -> optax.GradientTransformation:
        window = math.sqrt(max(1, shape[2] / shape[3])) if len(shape) == 4 else 1
        arguments = {
            "b1": momentum,
            "nesterov": nesterov,
            "coefficients": (STANDARD[0],) * ns_steps,
            "scale": (lambda rows, columns: window) if len(shape) == 4 else "keller",
            "weight_decay": weight_decay,
            "dtype": None,
            "auxiliary": aux_adam_for_1d and _keller_adam(**aux_adam_for_1d),
            **(changes or {}),
        }
        return optim.muon(lr, matrices={".*": layouts[len(shape)]}, **arguments)

    methods = {leaf: of(shape) for leaf, shape in shapes.items()}
    return optax.partition(methods, {leaf: leaf for leaf in shapes})


def _keller_adam(
    lr: float = 3e-4, betas: Betas = (0.9, 0.95), eps: float = 1e-10, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    return optax.adamw(lr, *betas, eps, weight_decay=weight_decay)


def with_shapes(build: Callable[..., optax.GradientTransformation]) -> Adapter:
    """`open_loop` of a constructor that first takes the shapes of the leaves, by name."""

    def adapter(recording: Recording, dtype: Any) -> Mapping[str, Pair]:
        shapes = {leaf: value.shape for leaf, value in recording.tree("p0").items()}
        return open_loop(functools.partial(build, shapes))(recording, dtype)

    return adapter


def moonlight(
    lr: float = 1e-3,
    wd: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    adamw_betas: Betas = (0.9, 0.95),
    adamw_eps: float = 1e-8,
    changes: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """Moonlight's Muon on flax's layouts, undeclared; `changes` make a mutant of it."""
    arguments = {
        "b1": momentum,
        "nesterov": nesterov,
        "coefficients": (STANDARD[0],) * ns_steps,
        "scale": "moonlight",
        "eps": 1e-7 * (1 - momentum),
        "weight_decay": wd,
        "dtype": None,
        "auxiliary": optax.chain(
            _scale_by_moonlight_adam(adamw_betas[0], adamw_betas[1], adamw_eps),
            optax.add_decayed_weights(wd),
            optax.scale_by_learning_rate(lr),
        ),
    }
    return optim.muon(lr, **{**arguments, **(changes or {})})


def _scale_by_moonlight_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam whose eps is added before the bias correction of the second moment."""

    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jnp.int32(0), zeros, zeros

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        count, mu, nu = state
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, nu, updates)
        scale = jnp.sqrt(1 - b2 ** (count + 1)) / (1 - b1 ** (count + 1))
        updates = jax.tree.map(lambda m, v: scale * m / (eps + jnp.sqrt(v)), mu, nu)
        return updates, (count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def _rows_over_columns(rows: int, columns: int) -> float:
    return math.sqrt(max(1, rows / columns))


KELLER_MISTAKES: dict[str, dict[str, Any]] = {
    "no look ahead": {"nesterov": False},
    "eps of optax": {"eps": 1e-8},
    "scaled by the wrong side": {"scale": _rows_over_columns},
    "scaled as Moonlight": {"scale": "moonlight"},
    "decay of the other optimizer": {"weight_decay": 0.05},
    "polynomials of Dion": {"coefficients": "dion"},
}


MOONLIGHT_MISTAKES: dict[str, dict[str, Any]] = {
    "eps without the momentum's weight": {"eps": 1e-7},
    "scaled as Keller Jordan": {"scale": "keller"},
    "always a look ahead": {"nesterov": True},
    "always five steps": {"coefficients": "standard"},
}


ADAPTERS: dict[str, Adapter] = {
    "muon": with_shapes(muon),
    "muon_moonshot": transposed(open_loop(moonlight)),
}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "muon": {
        **{
            name: with_shapes(functools.partial(muon, changes=changes))
            for name, changes in KELLER_MISTAKES.items()
        },
        "decay after the step": with_shapes(
            lambda shapes, lr, weight_decay, **hyper: optax.chain(
                muon(shapes, lr, 0.0, **hyper), decay_after(lr * weight_decay)
            )
        ),
    },
    "muon_moonshot": {
        **{
            name: transposed(open_loop(functools.partial(moonlight, changes=changes)))
            for name, changes in MOONLIGHT_MISTAKES.items()
        },
        "decay after the step": transposed(
            open_loop(
                lambda lr, wd, **hyper: optax.chain(
                    moonlight(lr, wd=0.0, **hyper), decay_after(lr * wd)
                )
            )
        ),
        "decay scaled like the update": transposed(
            open_loop(
                lambda lr, wd, **hyper: moonlight(
                    lr, wd, **hyper, changes={"weight_decay": 0.2 * wd * 40**0.5}
                )
            )
        ),
    },
}
