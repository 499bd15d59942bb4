"""LAMB."""

from typing import Any

import jax
import optax

import optim

from ..replay import Adapter, step_by_step


def _lamb(
    lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), **same: Any
) -> optax.GradientTransformation:
    """LAMB by its official arguments; the others are called alike, with the authors' defaults."""
    return optim.lamb(lr, b1=betas[0], b2=betas[1], **same)


def _of_parts(
    lr: float,
    betas: Any,
    eps: float,
    weight_decay: float,
    max_grad_norm: float,
    *,
    eps_in_root: bool = False,
    decay_last: bool = False,
) -> optax.GradientTransformation:
    """LAMB of optax's parts, which can be put together otherwise."""
    places = {"eps": 0.0, "eps_root": eps} if eps_in_root else {"eps": eps, "eps_root": 0.0}
    decay, ratio = optax.add_decayed_weights(weight_decay), optax.scale_by_trust_ratio()
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.scale_by_adam(b1=betas[0], b2=betas[1], **places),
        *((ratio, decay) if decay_last else (decay, ratio)),
        optax.scale_by_learning_rate(lr),
    )


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


ADAPTERS: dict[str, Adapter] = {"lamb": step_by_step(_lamb)}

MUTANTS: dict[str, dict[str, Adapter]] = {
    "lamb": {
        "no global clipping": step_by_step(
            lambda max_grad_norm, **same: _lamb(max_grad_norm=None, **same)
        ),
        "vectors left out": step_by_step(lambda **same: _lamb(trust_ratio_mask=_matrices, **same)),
        "vectors not decayed": step_by_step(lambda **same: _lamb(mask=_matrices, **same)),
        "decay after the trust ratio": step_by_step(
            lambda **same: _of_parts(decay_last=True, **same)
        ),
        "eps inside the root": step_by_step(lambda **same: _of_parts(eps_in_root=True, **same)),
    },
}
