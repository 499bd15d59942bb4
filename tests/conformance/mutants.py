"""For every adapter, the mistakes that its recordings must notice."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim
from optim import trees

from .adapters import (
    dadapt_adam,
    dadapt_sgd,
    prodigy,
    schedule_free_adamw,
    schedule_free_radam,
    schedule_free_sgd,
)
from .adapters import ademamix, adopt, power_of_step
from .replay import Adapter, open_loop


def _delayed() -> optax.GradientTransformation:
    """Hands on the gradient of the step before, zero at first."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return state, updates

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def _decay_after(rate: float) -> optax.GradientTransformation:
    """Decays what the step arrives at instead of what it starts from."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p: u - rate * (p + u), updates, params)
    )


def _changed(build: Callable[..., Any], **changes: Callable[[Any], Any]) -> Adapter:
    """`build` with some hyper-parameters changed, each by a function of its value."""
    return open_loop(
        lambda **hyper: build(**hyper | {name: new(hyper[name]) for name, new in changes.items()})
    )


def _apart(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation of every leaf alone, by which tensors share nothing."""

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        pairs = {
            name: transformation.update(updates[name], state[name], params[name])
            for name in updates
        }
        return {k: pair[0] for k, pair in pairs.items()}, {k: pair[1] for k, pair in pairs.items()}

    return optax.GradientTransformation(
        lambda params: {name: transformation.init(p) for name, p in params.items()}, update
    )


def _decay_by_new_d(build: Callable[..., Any]) -> Adapter:
    """Multiplies a decoupled decay by the d that the step has found."""

    def make(
        lr: float,
        betas: Any,
        weight_decay: float,
        decouple: bool,
        use_bias_correction: bool,
        **hyper: Any,
    ) -> optax.GradientTransformation:
        hyper |= {"lr": lr, "betas": betas, "use_bias_correction": use_bias_correction}
        if not decouple:
            return build(weight_decay=weight_decay, decouple=False, **hyper)
        inner = build(**hyper)

        def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
            updates, state = inner.update(updates, state, params)
            factor = state.d * lr * weight_decay
            if use_bias_correction:
                factor *= jnp.sqrt(1 - betas[1] ** state.steps) / (1 - betas[0] ** state.steps)
            return jax.tree.map(lambda u, p: u - factor * p, updates, params), state

        return optax.GradientTransformation(inner.init, update)

    return open_loop(make)


def _prodigy_eps_of_old_d(lr: float, eps: float, **hyper: Any) -> optax.GradientTransformation:
    """Adds eps times the d of before to the root; right but for a bias correction and decay."""
    inner = prodigy(lr=lr, eps=eps, **hyper)

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        _, new = inner.update(updates, state, params)
        move = jax.tree.map(
            lambda m, v: -state.d * lr * m / (jnp.sqrt(v) + eps * state.d), new.mu, new.nu
        )
        return move, new

    return optax.GradientTransformation(inner.init, update)


def _dadapt_new_second_moment(
    lr: float, betas: Any, eps: float, **hyper: Any
) -> optax.GradientTransformation:
    """Takes the v after the step for the numerator; right but for a bias correction and decay."""
    inner = dadapt_adam(lr=lr, betas=betas, eps=eps, **hyper)
    root = betas[1] ** 0.5

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        move, new = inner.update(updates, state, params)
        products = jax.tree.map(
            lambda g, s, v: jnp.sum(g * s / (jnp.sqrt(v) + eps)), updates, state.s, new.nu
        )
        product = state.d * lr * sum(jax.tree.leaves(products))
        numerator = root * state.numerator + (1 - root) * product
        norm = sum(jnp.sum(jnp.abs(s)) for s in jax.tree.leaves(new.s))
        d = jnp.maximum(state.d, numerator / ((1 - root) * norm))
        return move, new._replace(numerator=numerator, d=d)

    return optax.GradientTransformation(inner.init, update)


def _norm_with_decay(weight_decay: float, **hyper: Any) -> optax.GradientTransformation:
    """D-Adapt SGD whose first norm is that of the decayed gradient."""
    return optax.chain(optax.add_decayed_weights(weight_decay), dadapt_sgd(**hyper))


class _ServesY(NamedTuple):
    """A state that serves the parameters that are trained."""

    hidden: tuple[Any, ...]  # the leaves of the state that serves others

    def evaluation_params(self, params: Any) -> Any:
        return params


class _ServesZ(NamedTuple):
    """A state that serves the iterates of the inner optimizer."""

    hidden: tuple[Any, ...]
    z: Any

    def evaluation_params(self, params: Any) -> Any:
        del params
        return self.z


def _serving(serve: Callable[[Any], Any], build: Callable[..., Any]) -> Adapter:
    """`build` with another state to ask for the parameters to evaluate."""

    def make(**hyper: Any) -> optax.GradientTransformation:
        inner = build(**hyper)

        def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
            structure = jax.tree.structure(jax.eval_shape(inner.init, params))
            state = jax.tree.unflatten(structure, state.hidden)
            updates, state = inner.update(updates, state, params)
            return updates, serve(state)

        return optax.GradientTransformation(lambda params: serve(inner.init(params)), update)

    return open_loop(make)


def _serves_y(state: Any) -> Any:
    return _ServesY(tuple(jax.tree.leaves(state)))


def _serves_z(state: Any) -> Any:
    return _ServesZ(tuple(jax.tree.leaves(state)), state.z)


def _optax_schedule_free_adamw(
    lr: float,
    betas: Any,
    eps: float,
    weight_decay: float,
    warmup_steps: int,
    r: float,
    weight_lr_power: float,
    inner_momentum: float = 0.0,
) -> optax.GradientTransformation:
    del r, inner_momentum
    return optax.contrib.schedule_free_adamw(
        lr,
        warmup_steps or None,
        b1=betas[0],
        b2=betas[1],
        eps=eps,
        weight_decay=weight_decay,
        weight_lr_power=weight_lr_power,
    )


def _warmed(late_step: int, late_weight: int) -> Adapter:
    """Schedule-free SGD whose warm-up is late by some steps, for the step and for the weights."""

    def make(
        lr: float, momentum: float, warmup_steps: int, **same: Any
    ) -> optax.GradientTransformation:
        def rate(late: int) -> Callable[[jax.Array], jax.Array]:
            return lambda k: (
                lr * jnp.minimum(1.0, jnp.asarray(k + 1 - late, float) / max(warmup_steps, 1))
            )

        return optim.schedule_free(
            optax.sgd(rate(late_step)), rate(late_weight), b1=momentum, **same
        )

    return open_loop(make)


def _decay_at_z(
    lr: float, momentum: float, weight_decay: float, **same: Any
) -> optax.GradientTransformation:
    """Schedule-free SGD whose inner optimizer decays its own iterates."""
    inner = optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(lr))
    return optim.schedule_free(inner, lr, b1=momentum, **same)


MUTANTS: dict[str, dict[str, Adapter]] = {
    "dadapt_adam": {
        "bias correction exchanged": _changed(dadapt_adam, use_bias_correction=operator.not_),
        "decay exchanged": _changed(dadapt_adam, decouple=operator.not_),
        "decay by the new d": _decay_by_new_d(dadapt_adam),
        "a d of each tensor": open_loop(lambda **hyper: _apart(dadapt_adam(**hyper))),
        "new second moment in the numerator": open_loop(_dadapt_new_second_moment),
        "b1 and b2 exchanged": _changed(dadapt_adam, betas=lambda betas: betas[::-1]),
        "d stays d0": _changed(dadapt_adam, growth_rate=lambda rate: 1.0),
    },
    "dadapt_sgd": {
        "first norm with decay": open_loop(_norm_with_decay),
        "a d of each tensor": open_loop(lambda **hyper: _apart(dadapt_sgd(**hyper))),
        "momentum of the gradients": open_loop(
            lambda momentum, **hyper: optax.chain(
                optax.ema(momentum, debias=False), dadapt_sgd(momentum=0.0, **hyper)
            )
        ),
        "d stays d0": _changed(dadapt_sgd, growth_rate=lambda rate: 1.0),
        "one gradient late": open_loop(
            lambda **hyper: optax.chain(_delayed(), dadapt_sgd(**hyper))
        ),
    },
    "prodigy": {
        "bias correction exchanged": _changed(prodigy, use_bias_correction=operator.not_),
        "decay exchanged": _changed(prodigy, decouple=operator.not_),
        "decay by the new d": _decay_by_new_d(prodigy),
        "safeguard exchanged": _changed(prodigy, safeguard_warmup=operator.not_),
        "beta3 is b2": open_loop(lambda **hyper: prodigy(**hyper | {"beta3": hyper["betas"][1]})),
        "a d of each tensor": open_loop(lambda **hyper: _apart(prodigy(**hyper))),
        "eps of the old d": open_loop(_prodigy_eps_of_old_d),
        "growth not limited": _changed(prodigy, growth_rate=lambda rate: float("inf")),
        "every second entry": open_loop(lambda **hyper: prodigy(**hyper, slice_p=2)),
    },
    "sf_adamw": {
        "optax, without power or momentum": open_loop(_optax_schedule_free_adamw),
        "y served": _serving(_serves_y, schedule_free_adamw),
        "z served": _serving(_serves_z, schedule_free_adamw),
        "one step of warm-up more": _changed(schedule_free_adamw, warmup_steps=lambda w: w + 1),
        "equal weights": _changed(schedule_free_adamw, weight_lr_power=lambda power: 0.0),
        "no power of the step": _changed(schedule_free_adamw, r=lambda r: 0.0),
        "momentum ignored": open_loop(
            lambda inner_momentum=0.0, **hyper: schedule_free_adamw(**hyper)
        ),
        "decay left out": _changed(schedule_free_adamw, weight_decay=lambda decay: 0.0),
    },
    "sf_radam": {
        "y served": _serving(_serves_y, schedule_free_radam),
        "SGD phase exchanged": _changed(schedule_free_radam, silent_sgd_phase=operator.not_),
        "not rectified": open_loop(lambda silent_sgd_phase, **hyper: schedule_free_adamw(**hyper)),
        "equal weights": _changed(schedule_free_radam, weight_lr_power=lambda power: 0.0),
        "no power of the step": _changed(schedule_free_radam, r=lambda r: 0.0),
    },
    "sf_sgd": {
        "y served": _serving(_serves_y, schedule_free_sgd),
        "z served": _serving(_serves_z, schedule_free_sgd),
        "decay at z": open_loop(_decay_at_z),
        "warm-up one step late": _warmed(1, 1),
        "warm-up of the step one late": _warmed(1, 0),
        "warm-up of the weights one late": _warmed(0, 1),
        "equal weights": _changed(schedule_free_sgd, weight_lr_power=lambda power: 0.0),
        "no power of the step": _changed(schedule_free_sgd, r=lambda r: 0.0),
        "one gradient late": open_loop(
            lambda **hyper: optax.chain(_delayed(), schedule_free_sgd(**hyper))
        ),
def _ademamix(warm_ups: Callable[..., tuple[Any, Any]]) -> Adapter:
    """AdEMAMix with other warm-ups than ours of b3 and alpha."""

    def build(**hyper: Any) -> optax.GradientTransformation:
        b1, b2, b3 = hyper["betas"]
        slow = optim.ademamix_b3_schedule(b3, b1=b1, warmup_steps=hyper["beta3_warmup"] or 0)
        weight = optim.ademamix_alpha_schedule(
            hyper["alpha"], warmup_steps=hyper["alpha_warmup"] or 0
        )
        slow, weight = warm_ups(slow, weight, hyper)
        return optim.ademamix(
            hyper["lr"],
            b1=b1,
            b2=b2,
            b3=slow,
            alpha=weight,
            eps=hyper["eps"],
            weight_decay=hyper["weight_decay"],
        )

    return open_loop(build)


def _ademamix_eps_corrected(**hyper: Any) -> optax.GradientTransformation:
    """(sqrt(v) + eps) / sqrt(1 - b2^t) for the denominator."""

    def at(count: Any) -> optax.GradientTransformation:
        eps = hyper["eps"] / jnp.sqrt(1 - hyper["betas"][1] ** (count + 1.0))
        return ademamix(**{**hyper, "eps": eps})

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count, inner = state
        updates, inner = at(count).update(updates, inner, params)
        return updates, (count + 1, inner)

    return optax.GradientTransformation(lambda p: (jnp.int32(0), at(0).init(p)), update)


def _adopt(denominator: Callable[..., Any]) -> Adapter:
    """ADOPT with denominator(v, new v, eps) in place of max(sqrt(v), eps)."""

    def build(
        lr: Any, betas: Any, eps: Any, clip: Any, weight_decay: Any, decouple: bool
    ) -> optax.GradientTransformation:
        def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
            count, m, v = state

            def leaf(g: Any, m: Any, v: Any, p: Any) -> tuple[Any, ...]:
                g += 0.0 if decouple else weight_decay * p
                new_v = betas[1] * v + (1 - betas[1]) * g**2
                bound = power_of_step(clip)(count + 0.0)
                u = jnp.clip(g / denominator(v, new_v, eps), -bound, bound)
                new_m = betas[0] * m + (1 - betas[0]) * u
                step = -lr * (new_m + (weight_decay * p if decouple else 0.0))
                return tuple(
                    jnp.where(count == 0, *pair) for pair in ((0, step), (m, new_m), (g**2, new_v))
                )

            updates, (m, v) = trees.map_leaves(leaf, updates, (m, v), params)
            return updates, (count + 1, m, v)

        def init(params: Any) -> Any:
            return jnp.int32(0), trees.zeros_like(params), trees.zeros_like(params)

        return optax.GradientTransformation(init, update)

    return open_loop(build)


MUTANTS: dict[str, dict[str, Adapter]] = {
    "ademamix": {
        "b3 rises linearly": _ademamix(
            lambda slow, weight, hyper: (
                optax.linear_schedule(*hyper["betas"][::2], hyper["beta3_warmup"] - 1)
                if hyper["beta3_warmup"]
                else slow,
                weight,
            )
        ),
        "warm-ups count steps from 0": _ademamix(
            lambda slow, weight, hyper: (lambda n: slow(n - 1), lambda n: weight(n - 1))
        ),
        "slow momentum corrected for its start": _ademamix(
            lambda slow, weight, hyper: (slow, lambda n: weight(n) / (1 - slow(n) ** (n + 1.0)))
        ),
        "eps before the bias correction": open_loop(_ademamix_eps_corrected),
        "decay in the gradient": open_loop(
            lambda weight_decay, **hyper: optax.chain(
                optax.add_decayed_weights(weight_decay), ademamix(**hyper)
            )
        ),
        "decay after the step": open_loop(
            lambda lr, weight_decay, **hyper: optax.chain(
                ademamix(lr=lr, **hyper), _decay_after(lr * weight_decay)
            )
        ),
        "one gradient late": open_loop(lambda **hyper: optax.chain(_delayed(), ademamix(**hyper))),
    },
    "adopt": {
        "denominator sees the gradient": _adopt(lambda v, new, eps: jnp.maximum(new**0.5, eps)),
        "eps added to the root": _adopt(lambda v, new, eps: v**0.5 + eps),
        "eps inside the root": _adopt(lambda v, new, eps: (v + eps**2) ** 0.5),
        "clip counts the gradient itself": open_loop(
            lambda lr, betas, eps, clip, weight_decay, decouple: optim.adopt(
                lr,
                b1=betas[0],
                b2=betas[1],
                eps=eps,
                clip_value_fn=lambda step: power_of_step(clip)(step + 1),
                weight_decay=weight_decay,
                decouple=decouple,
            )
        ),
        "coupled for decoupled decay": open_loop(
            lambda decouple, **hyper: adopt(decouple=not decouple, **hyper)
        ),
        "decoupled decay at the first call": open_loop(
            lambda lr, weight_decay, **hyper: optax.chain(
                adopt(lr, **hyper), optax.add_decayed_weights(-lr * weight_decay)
            )
        ),
        "decay after the step": open_loop(
            lambda lr, weight_decay, **hyper: optax.chain(
                adopt(lr=lr, **hyper), _decay_after(lr * weight_decay)
            )
        ),
        "no clip": open_loop(lambda clip, **hyper: adopt(clip=None, **hyper)),
        "one gradient late": open_loop(lambda **hyper: optax.chain(_delayed(), adopt(**hyper))),
    },
    "lion": {
        "b1 and b2 exchanged": open_loop(
            lambda lr, betas, weight_decay: optim.lion(
                lr, b1=betas[1], b2=betas[0], weight_decay=weight_decay
            )
        ),
        "decay not scaled by the rate": open_loop(
            lambda lr, betas, weight_decay: optax.chain(
                optim.lion(lr, b1=betas[0], b2=betas[1]),
                optax.add_decayed_weights(-weight_decay),
            )
        ),
        "decay after the step": open_loop(
            lambda lr, betas, weight_decay: optax.chain(
                optim.lion(lr, b1=betas[0], b2=betas[1]), _decay_after(lr * weight_decay)
            )
        ),
        "sign of the new momentum": open_loop(
            lambda lr, betas, weight_decay: optax.chain(
                optax.ema(betas[1], debias=False),
                optax.scale_by_sign(),
                optax.add_decayed_weights(weight_decay),
                optax.scale_by_learning_rate(lr),
            )
        ),
        "one gradient late": open_loop(
            lambda lr, betas, weight_decay: optax.chain(
                _delayed(), optim.lion(lr, b1=betas[0], b2=betas[1], weight_decay=weight_decay)
            )
        ),
    },
}
