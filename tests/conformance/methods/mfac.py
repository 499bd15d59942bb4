"""M-FAC."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim
from optim.solvers.windowed_inverse import (
    empty_window,
    inverse_product,
    newest_product,
    replace_oldest,
)

from ..mistakes import apart, changed, decay_after, delayed, without_decay
from ..replay import Adapter, open_loop


def _only_nonzero() -> optax.GradientTransformation:
    """Drops the gradients of weights that are zero at the start."""

    def update(updates: Any, kept: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return jax.tree.map(jnp.multiply, updates, kept), kept

    return optax.GradientTransformation(
        lambda params: jax.tree.map(lambda p: (p != 0).astype(p.dtype), params), update
    )


def _mfac(
    lr: float = 1e-3,
    momentum: float = 0,
    weight_decay: float = 0,
    ngrads: int = 1024,
    damp: float = 1e-5,
    moddev: Any = None,
    optdev: Any = None,
    gpus: Any = (),
    sparse: bool = False,
) -> optax.GradientTransformation:
    """M-FAC by its official arguments; where its arrays lie changes nothing."""
    del moddev, optdev, gpus
    transformation = optim.mfac(
        lr, window_size=ngrads, damping=damp, momentum=momentum, weight_decay=weight_decay
    )
    return optax.chain(_only_nonzero(), transformation) if sparse else transformation


ADAPTERS: dict[str, Adapter] = {"mfac": open_loop(_mfac)}


def _made_of(*links: Callable[[dict[str, Any]], optax.GradientTransformation]) -> Adapter:
    """Links made from the hyper-parameters, followed by the rate."""
    return open_loop(
        lambda **hyper: optax.chain(
            *(link(hyper) for link in links), optax.scale_by_learning_rate(hyper["lr"])
        )
    )


def _decay(hyper: dict[str, Any]) -> optax.GradientTransformation:
    return optax.add_decayed_weights(hyper["weight_decay"])


def _direction(hyper: dict[str, Any]) -> optax.GradientTransformation:
    return optim.scale_by_mfac(hyper["ngrads"], hyper["damp"])


def _average(hyper: dict[str, Any]) -> optax.GradientTransformation:
    return optax.ema(hyper["momentum"], debias=False)


def _corrected_average(hyper: dict[str, Any]) -> optax.GradientTransformation:
    return optax.ema(hyper["momentum"], debias=True)


def _sum(hyper: dict[str, Any]) -> optax.GradientTransformation:
    return optax.trace(hyper["momentum"])


def _of_a_sum(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """The Fisher matrix as a sum that is not divided by the number of gradients."""
    m = hyper["ngrads"]
    return optax.chain(optim.scale_by_mfac(m, hyper["damp"] / m), optax.scale(1 / m))


def _multiplied_first(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """The gradient enters the window after its product with the inverse."""
    m = hyper["ngrads"]

    def update(updates: Any, window: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        direction = inverse_product(window, updates, m * hyper["damp"])
        return jax.tree.map(lambda u: m * u, direction), replace_oldest(window, updates)[0]

    return optax.GradientTransformation(lambda params: empty_window(params, m), update)


def _divided_by_those_so_far(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """The sum is divided by the number of gradients in a window that fills up."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        window, count = replace_oldest(state[0], updates)[0], state[1] + 1
        m = jnp.minimum(count, hyper["ngrads"])
        direction = newest_product(window, m * hyper["damp"])
        return jax.tree.map(lambda u: m * u, direction), (window, count)

    return optax.GradientTransformation(
        lambda params: (empty_window(params, hyper["ngrads"]), jnp.int32(0)), update
    )


MUTANTS: dict[str, dict[str, Adapter]] = {
    "mfac": {
        "decay beside the direction": _made_of(_direction, _average, _decay),
        "decay after the step": open_loop(
            lambda **hyper: optax.chain(
                _mfac(**without_decay(hyper)), decay_after(hyper["lr"] * hyper["weight_decay"])
            )
        ),
        "momentum of gradients": _made_of(_decay, _average, _direction),
        "momentum corrected for its start": _made_of(_decay, _direction, _corrected_average),
        "undampened momentum": _made_of(_decay, _direction, _sum),
        "Fisher matrix not divided by m": _made_of(_decay, _of_a_sum, _average),
        "divided by the gradients so far": _made_of(_decay, _divided_by_those_so_far, _average),
        "multiplied before the window moves": _made_of(_decay, _multiplied_first, _average),
        "a gradient too few": changed(_mfac, ngrads=lambda m: m - 1),
        "every tensor alone": open_loop(lambda **hyper: apart(_mfac(**hyper))),
        "one gradient late": open_loop(lambda **hyper: optax.chain(delayed(), _mfac(**hyper))),
    },
}
