"""A power of the step: a peak, and then a fall that needs no length of the run.

With peak `p`, power `a`, warm-up steps `W` and the step `K` from which it falls, step t has::

    p t / W         t < W
    p               W <= t <= K
    p (K / t)^a     t > K

K is W unless it is given, and the power is positive where the value falls: a = 1/2 is the inverse
square root. Schedules in use are settings of these:

- fairseq's `inverse_sqrt` has a = 1/2 and K = W;
- T5's, 1 / sqrt(max(t, k)), has a = 1/2, W = 0, K = k = 10,000 and p = 1 / sqrt(k);
- levanter's `inv_sqrt` has a = 1/2 and K = 10,000, whatever W;
- the Power Scheduler's min(p, B α n^β) after n tokens, at B sequences of L tokens a step, has
  a = -β and K = (p / (B α))^(1/β) / (B L); its authors' decay at the end is `cooldown_schedule`.

*Differences.* The Power Scheduler's β is negative, and its amplitude α stands for K. levanter also
has a floor under its inverse square root; `jnp.maximum` of the value and a floor is the same.

*Cost.* A few scalar operations a step; no state.

*Reference.* Raffel et al., Exploring the Limits of Transfer Learning, 2020 (arXiv:1910.10683);
Shen et al., Power Scheduler, 2024 (arXiv:2408.13359); facebookresearch/fairseq@3d262bb2,
fairseq/optim/lr_scheduler/inverse_square_root_schedule.py; marin-community/levanter@9263f81e,
src/levanter/optim/config.py.
"""

import jax
import jax.numpy as jnp
import optax

from optim import trees


def power_schedule(
    peak_value: float,
    *,
    power: float,
    warmup_steps: float = 0,
    decay_start: float | None = None,
) -> optax.Schedule:
    """Warm up, stay until `decay_start`, then fall as the step to the power -power.

    Args:
      peak_value: the largest value, p.
      power: a, from 0, which never falls.
      warmup_steps: steps W of the linear rise from 0; 0 for none.
      decay_start: the step K, which need not be whole; None for warmup_steps.

    Raises:
      ValueError: a negative power or warmup_steps, or decay_start that is below warmup_steps or is
        not positive (traced values are not checked).

    >>> import optim
    >>> schedule = optim.power_schedule(1.0, power=1.0, warmup_steps=2, decay_start=4)
    >>> [float(schedule(t)) for t in (0, 1, 2, 4, 8, 16)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.25]
    """
    return _power("power_schedule", peak_value, power, warmup_steps, decay_start)


def inverse_sqrt_schedule(
    peak_value: float, *, warmup_steps: float = 0, decay_start: float | None = None
) -> optax.Schedule:
    """`power_schedule` with the power 1/2.

    Args:
      peak_value: the largest value, p.
      warmup_steps: steps W of the linear rise from 0; 0 for none.
      decay_start: the step K, which need not be whole; None for warmup_steps.

    Raises:
      ValueError: a negative warmup_steps, or decay_start below it or not positive.

    >>> import optim
    >>> schedule = optim.inverse_sqrt_schedule(1.0, warmup_steps=4)
    >>> [float(schedule(t)) for t in (0, 2, 4, 16, 64)]
    [0.0, 0.5, 1.0, 0.5, 0.25]
    """
    return _power("inverse_sqrt_schedule", peak_value, 0.5, warmup_steps, decay_start)


def _power(
    method: str, peak_value: float, power: float, warmup_steps: float, decay_start: float | None
) -> optax.Schedule:
    trees.check_at_least(method, 0, power=power, warmup_steps=warmup_steps)
    start = warmup_steps if decay_start is None else decay_start
    trees.check_positive(method, decay_start=start)
    trees.check_at_least(method, warmup_steps, decay_start=start)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(count, jnp.result_type(float))
        rise = peak_value * (step / jnp.maximum(warmup_steps, 1))
        fall = peak_value * (start / jnp.maximum(step, start)) ** power
        return jnp.where(step < warmup_steps, rise, fall)

    return schedule
