"""The transformations under contract. Adding one is a row."""

from typing import Any

import optax

import optim

from .harness import Row


def _clipped_adamw(rate: Any) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))


# A row named as a public function of optim stands for it.
ROWS: tuple[Row, ...] = (
    Row("lion", lambda rate: optim.lion(rate, weight_decay=0.1), state_bytes=4),
    Row("scale_by_lion", lambda rate: optim.scale_by_lion(), state_bytes=4),
    Row(
        "keep_if_finite",
        lambda rate: optim.keep_if_finite(optim.lion(rate, weight_decay=0.1)),
        state_bytes=4,
    ),
    Row(
        "params_ema",
        lambda rate: optax.chain(optim.lion(rate, weight_decay=0.1), optim.params_ema(0.9)),
        state_bytes=8,
    ),
    Row(
        "optax.chain(clip_by_global_norm, adamw)",
        _clipped_adamw,
        state_bytes=8,
        waive={
            "bfloat16": "optax.adamw holds its moments and updates in the dtype of the parameters.",
            "strict_promotion": "optax.adamw raises a float to the power of its integer count.",
            "none_gradients": "optax.adamw casts moments like parameters that it was not given.",
            "integer_leaves": "optax.adamw squares gradients of dtype float0, which is an error.",
        },
    ),
)

# Public functions that are no transformations: each has tests of its own. Schedules, whose names
# end in `_schedule`, and classes need not be listed.
OTHER_FUNCTIONS = frozenset(
    {
        "apply_updates",
        "describe",
        "evaluation_params",
        "inject_hyperparams",
        "path_labels",
        "path_string",
        "stochastic_round",
    }
)
