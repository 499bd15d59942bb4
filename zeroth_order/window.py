"""The last estimates of a run: seeds and coefficients, from which its moments are made again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from zeroth_order.descent import DescentState
from zeroth_order.gradients import SeededGradient


class WindowState(NamedTuple):
    """Parameters, and the estimates of the last steps in a ring."""

    descent: DescentState
    seeds: jax.Array  # (window,), uint32
    coefficients: jax.Array  # (window, samples), float32 or wider; 0 where no step was yet

    @property
    def params(self) -> optax.Params:
        """The parameters."""
        return self.descent.params


def empty_window(descent: DescentState, window: int, samples: int, dtype: jnp.dtype) -> WindowState:
    """The state without a step."""
    return WindowState(descent, jnp.zeros(window, jnp.uint32), jnp.zeros((window, samples), dtype))


def with_newest(state: WindowState, gradient: SeededGradient) -> SeededGradient:
    """The estimates of the window after this step's, in its ring's order."""
    slot = state.descent.step % state.seeds.size
    if gradient.coefficients.shape != state.coefficients.shape[1:]:
        raise ValueError(
            f"samples is {state.coefficients.shape[1]}, and the estimator has "
            f"{gradient.coefficients.size}; accepted: the estimator's."
        )
    return SeededGradient(
        state.seeds.at[slot].set(gradient.seed),
        state.coefficients.at[slot].set(gradient.coefficients),
    )


def weights(decay: ArrayLike, step: jax.Array, window: int, dtype: jnp.dtype) -> jax.Array:
    """decay^age of each slot, (window,), 0 where no step was yet; the newest has the age 0."""
    age = (step - jnp.arange(window)) % window
    return jnp.where(age <= step, jnp.asarray(decay, dtype) ** age, 0)
