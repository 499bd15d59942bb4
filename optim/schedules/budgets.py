"""One run for several budgets: decay at the end of each, then go on from the peak at once.

With peak `p`, final value `e`, budgets B_1 < ... < B_K (counts of steps from the start of the run),
B_0 = 0, warm-up steps `W` and decay steps D_k, step t of the cycle B_{k-1} <= t < B_k has::

    p t / W                        t < W, in the first cycle
    p                              up to B_k - D_k
    d((t - (B_k - D_k)) / D_k)     from there on
    e                              t >= B_K

where d is one of the shapes of `optim.schedules.decay_shapes`, from d(0) = p to d(1) = e. So a
decay of D steps starts at the peak and would reach the final value at step B_k, were that not the
first step of the next cycle, which has the peak: the model of budget B_k is the one after B_k
steps. With one budget it is `wsd_schedule`. In a cyclic cosine the decay is the whole cycle.

*Differences.* WSD-S resumes from the decayed checkpoint, so that one run serves every budget, where
WSD branches off and pays for each decay again; both follow this schedule's cycles. A fraction of
decay steps is of the steps so far in lingua, of the cycle in levanter: `decay_fraction_of` names
which. Both round down; here a fraction is rounded to the nearest count. levanter can warm up again
in each cycle; this does not.

*Cost.* A few scalar operations a step for each budget; no state.

*Reference.* Wen et al., Understanding Warmup-Stable-Decay Learning Rates, 2024 (arXiv:2410.05192),
for WSD-S and the cyclic cosine beside it; facebookresearch/lingua, lingua/optim.py;
marin-community/levanter@9263f81e, src/levanter/optim/config.py.
"""

import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from optim.schedules.decay_shapes import check_shape, decayed
from optim.schedules.steps import steps_of


def wsd_s_schedule(
    peak_value: float,
    *,
    budgets: Sequence[int],
    warmup_steps: int | float = 0,
    decay_steps: int | float = 0.1,
    decay_fraction_of: str = "total",
    decay_shape: str = "linear",
    init_value: float = 0.0,
    end_value: float = 0.0,
) -> optax.Schedule:
    """Warm up, then stay and decay once for every budget.

    Args:
      peak_value: the stable value.
      budgets: the steps after which a finished model is wanted, increasing.
      warmup_steps: an int counts steps, a float is a fraction of the first budget; 0 for none.
      decay_steps: an int counts the steps of each decay, a float is a fraction.
      decay_fraction_of: what that is a fraction of: "total", the steps up to the budget, or
        "cycle", those since the budget before.
      decay_shape: as in `wsd_schedule`; lingua's and levanter's is "harmonic".
      init_value: where the warm-up starts.
      end_value: where each decay ends; positive for "exponential" and "harmonic". lingua's and
        levanter's is a tenth of the peak.

    Raises:
      ValueError: budgets that do not increase, steps that are neither a count nor a fraction or do
        not fit into their cycle, an unknown shape or base, or a value that the shape cannot reach
        (traced values are not checked).

    >>> import optim
    >>> schedule = optim.wsd_s_schedule(1.0, budgets=(4, 8), decay_steps=2)
    >>> [float(schedule(t)) for t in range(10)]
    [1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    method = "wsd_s_schedule"
    warmup, lengths = _cycles(method, budgets, warmup_steps)
    if decay_fraction_of not in ("total", "cycle"):
        raise ValueError(
            f"{method}: decay_fraction_of is {decay_fraction_of!r}; accepted: 'total', 'cycle'."
        )
    check_shape(method, decay_shape, end_value=end_value, peak_value=peak_value)
    wholes = budgets if decay_fraction_of == "total" else lengths
    decays = [steps_of(method, "decay_steps", decay_steps, whole, "a budget") for whole in wholes]
    for cycle, (length, decay) in enumerate(zip(lengths, decays, strict=True)):
        room = length if cycle else length - warmup
        if decay > room:
            raise ValueError(
                f"{method}: decay_steps is {decay_steps}, {decay} before budget {budgets[cycle]}; "
                f"accepted: at most the {room} steps that the cycle has for them."
            )
    return _fall_at_the_end_of_each(
        budgets, decays, decay_shape, warmup, init_value, peak_value, end_value
    )


def cyclic_cosine_schedule(
    peak_value: float,
    *,
    budgets: Sequence[int],
    warmup_steps: int | float = 0,
    init_value: float = 0.0,
    end_value: float = 0.0,
) -> optax.Schedule:
    """Warm up, then one half wave of a cosine for every budget.

    Args:
      peak_value: the value at the start of each cycle, the first one's after the warm-up.
      budgets: the steps after which a finished model is wanted, increasing.
      warmup_steps: an int counts steps, a float is a fraction of the first budget; 0 for none.
      init_value: where the warm-up starts.
      end_value: where each cosine ends.

    Raises:
      ValueError: budgets that do not increase, or a warm-up that is neither a count nor a fraction
        or leaves the first cycle no step.

    >>> import optim
    >>> schedule = optim.cyclic_cosine_schedule(1.0, budgets=(2, 6))
    >>> [round(float(schedule(t)), 2) for t in range(7)]
    [1.0, 0.5, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    warmup, lengths = _cycles("cyclic_cosine_schedule", budgets, warmup_steps)
    decays = [lengths[0] - warmup, *lengths[1:]]
    return _fall_at_the_end_of_each(
        budgets, decays, "cosine", warmup, init_value, peak_value, end_value
    )


def _cycles(
    method: str, budgets: Sequence[int], warmup_steps: int | float
) -> tuple[int, list[int]]:
    """The steps of the warm-up and of every cycle."""
    counts = all(isinstance(budget, numbers.Integral) for budget in budgets)
    if not budgets or not counts or any(b <= a for a, b in zip([0, *budgets], budgets)):
        raise ValueError(
            f"{method}: budgets is {budgets}; accepted: ints from 1 that increase, one at least."
        )
    warmup = steps_of(method, "warmup_steps", warmup_steps, budgets[0], "the first budget")
    if warmup >= budgets[0]:
        raise ValueError(
            f"{method}: warmup_steps is {warmup}; "
            f"accepted: fewer than the first budget, {budgets[0]}."
        )
    return warmup, [b - a for a, b in zip([0, *budgets], budgets)]


def _fall_at_the_end_of_each(
    budgets: Sequence[int],
    decays: Sequence[int],
    decay_shape: str,
    warmup: int,
    init_value: float,
    peak_value: float,
    end_value: float,
) -> optax.Schedule:
    starts = [budget - decay for budget, decay in zip(budgets, decays, strict=True)]

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(count)
        cycles = [step < budget for budget in budgets]
        start, decay = (
            jnp.select(cycles, [jnp.full_like(step, x) for x in column], column[-1])
            for column in (starts, decays)
        )
        rise = init_value + (peak_value - init_value) * (step / max(warmup, 1))
        fall = decayed(decay_shape, step, start, decay, peak_value, end_value)
        return jnp.where(step < warmup, rise, fall)

    return schedule
