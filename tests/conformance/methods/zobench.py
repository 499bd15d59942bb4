"""ZO-Bench's optimizers, as compositions of an estimate with optax's or as algorithms."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim
import zeroth_order

from ..recording import Recording
from ..replay import Adapter, AdapterError, Pair
from .mezo import closed_loop, loss_fn

TRAINERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "zo_sgd": lambda lr, momentum: optax.sgd(lr, momentum or None),
    "zo_sign_opt": lambda lr, momentum: optax.sgd(lr, momentum or None),
    "zo_adam": lambda lr, momentum: optax.adam(lr),
}


def samples_of(z: Mapping[str, jax.Array]) -> zeroth_order.Direction:
    """The direction whose seed j has the numbers z[j], (samples, ...) by leaf."""

    def of(params: Any) -> Any:
        return {
            name: zeroth_order.Leaf(
                number=0,
                stack=0,
                blocks=lambda seed, stack: jnp.asarray(seed, jnp.uint32),
                draw=lambda key, index, weight, name=name: z[name][key.reshape(())],
            )
            for name in params
        }

    return of


def signed(estimator: zeroth_order.Estimator) -> zeroth_order.Estimator:
    """The estimate with the signs of its coefficients."""

    def estimate(*arguments: Any) -> zeroth_order.Estimate:
        found = estimator(*arguments)
        coefficients = jnp.sign(found.gradient.coefficients)
        return found._replace(gradient=found.gradient._replace(coefficients=coefficients))

    return estimate


def composed(
    trainer: str,
    *,
    lr: float,
    eps: float,
    momentum: float = 0.0,
    q: int = 1,
    perturbation_mode: str = "two_side",
    gradient_sparsity: float | None = None,
    one_sided: bool | None = None,
    sign: bool | None = None,
) -> Adapter:
    """An adapter of the trainers that step an optimizer by a dense estimate."""
    if one_sided is None:
        one_sided = perturbation_mode == "one_side"
    if sign is None:
        sign = trainer == "zo_sign_opt"

    def adapter(recording: Recording, dtype: Any) -> Mapping[str, Pair]:
        loss, start = loss_fn(recording, dtype), recording.tree("p0", dtype)
        tx = TRAINERS[trainer](lr, momentum)
        z, zeroed = recording.tree("in/z", dtype), recording.tree("in/zero_mask")
        if gradient_sparsity is not None:
            z = {name: np.where(zeroed[name][:, None], 0, z[name]) for name in z}

        @jax.jit
        def run(params: Any, z: Any) -> Any:
            def step(carry: Any, z: Any) -> Any:
                params, state = carry
                along = samples_of(z)
                found = zeroth_order.spsa(along, epsilon=eps, samples=q, one_sided=one_sided)
                estimator = signed(found) if sign else found
                fn = zeroth_order.value_and_grad(lambda p: loss(p, None), estimator, along)
                updates, state = tx.update(fn(params, 0)[1], state, params)
                params = optim.apply_updates(params, updates)
                return (params, state), params

            return jax.lax.scan(step, (params, tx.init(params)), z)[1]

        ours = run(jax.tree.map(jnp.asarray, start), z)
        recorded = recording.tree(str(recording.final))
        return {k: Pair(np.asarray(ours[k]), recorded[k], start[k]) for k in start}

    return adapter


def conservative(
    loss: Any,
    along: zeroth_order.Direction,
    decays: Any,
    *,
    lr: float,
    eps: float,
    momentum: float = 0.0,
    perturbation_mode: str = "two_side",
) -> zeroth_order.Algorithm:
    if momentum:
        raise AdapterError(f"zobench's zo_conserv is replayed without momentum, not {momentum}.")
    one_sided = perturbation_mode == "one_side"
    estimator = zeroth_order.spsa(along, epsilon=eps, one_sided=one_sided)
    return zeroth_order.zo_sgd_conservative(loss, lr, estimator, along)


def forward(
    loss: Any,
    along: zeroth_order.Direction,
    decays: Any,
    *,
    lr: float,
    eps: float,
    weight_decay: float = 0.0,
) -> zeroth_order.Algorithm:
    estimator = zeroth_order.forward_gradient(along)
    return zeroth_order.mezo(loss, lr, estimator, along, weight_decay=weight_decay, mask=decays)


def plain(
    loss: Any, along: zeroth_order.Direction, decays: Any, *, lr: float, eps: float, **_: Any
) -> zeroth_order.Algorithm:
    return zeroth_order.mezo(loss, lr, zeroth_order.spsa(along, epsilon=eps), along)


def by_trainer(
    conservative: Callable[..., Any] = conservative,
    forward: Callable[..., Any] = forward,
    **changed: Any,
) -> Adapter:
    def adapter(recording: Recording, dtype: Any) -> Mapping[str, Pair]:
        hyper = dict(recording.hyper)
        trainer = hyper.pop("trainer", "forward_grad")
        if trainer == "forward_grad":
            return closed_loop(forward)(recording, dtype)
        if trainer == "zo_conserv":

            def build(*arguments: Any, trainer: str, **hyper: Any) -> zeroth_order.Algorithm:
                return conservative(*arguments, **hyper)

            return closed_loop(build)(recording, dtype)
        if trainer not in TRAINERS:
            raise AdapterError(
                f"{recording.stem} has the trainer {trainer!r}; accepted: forward_grad, "
                f"zo_conserv, {', '.join(TRAINERS)}."
            )
        rest = {k: v for k, v in hyper.items() if k not in ("loss", "tensors")}
        try:
            made = composed(trainer, **(rest | changed))
        except TypeError as error:
            raise AdapterError(f"the adapter of zobench is {error}.") from error
        return made(recording, dtype)

    return adapter


ADAPTERS: dict[str, Adapter] = {"zobench": by_trainer()}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "zobench": {
        "always two sides": by_trainer(one_sided=False),
        "no sign": by_trainer(sign=False),
        "sign of every trainer": by_trainer(sign=True),
        "no momentum": by_trainer(momentum=0.0),
        "nothing zeroed": by_trainer(gradient_sparsity=None),
        "never conservative": by_trainer(conservative=plain),
        "forward gradient without decay": by_trainer(
            forward=lambda *a, weight_decay, **hyper: forward(*a, **hyper)
        ),
    },
}
