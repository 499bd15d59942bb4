r"""AutoLRS: the learning rate of each stage of a run, found by short probes from one checkpoint.

A stage has tau steps at one rate. Before it, `probes` rates are tried for tau / probes steps each,
all from the stage's first parameters, so that the search costs as many steps as the training. The
losses of a probe, extended by `exponential_forecast`, tell the loss that tau steps at its rate
would end at, and a Gaussian process over the forecasts y of the rates r so far says which is next:

.. math::
    s = \frac{\log (r / r_{min})}{\log (r_{max} / r_{min})}, \qquad
    k(s, s') = \Big(1 + q + \frac{q^2}{3}\Big) e^{-q}, \quad q = \sqrt 5 \, \frac{|s - s'|}{0.2}

    r_{next} = \arg\min_r \; \mu(r) - \kappa \, \sigma(r)

with mu and sigma of the posterior for y, shifted and scaled to mean 0 and variance 1, whose noise
has variance 0.01. The first rate is drawn, log-uniformly. The stage then goes on at the rate with
the least forecast. tau doubles after each stage until `max_stage_steps`, and nothing is carried
from one stage's search to the next.

*Differences.* From the authors' code: (1) The Gaussian process has fixed hyper-parameters; theirs
(skopt's) fits an amplitude, a length and a noise to the few values that it has. With their kappa of
10^6, the default here, the next rate is where sigma is largest, and the values matter to neither.
(2) Rates are the points of a grid of 1001 and none is tried twice; theirs tells the forecast of a
rate again when that comes up again. (3) A probe with a loss that is not finite counts as the worst
of the others to the process and is never chosen; theirs tells 10^6, and looking for the least then
is a type error. (4) A stage whose own losses are not finite is rolled back, and the next-best rate
takes its place. (5) The run has an end, `total_steps`: the last stage reaches it, and takes what
would be left for a stage shorter than the first; theirs has none. (6) After the first stage of full
length, theirs forecasts the validation loss, measured 16 times a probe; which losses to observe is
the caller's choice here. There, from then on, a probe with a loss above the one that the run began
with has its last loss for a forecast; here that is the rule in all stages, for losses above twice
that one, since those of single batches are noisy, with the mean of the last tenth of the losses. A
fit of a loss that has jumped by orders of magnitude says nothing of where it ends.

*Cost.* On the host: a solve with a probes x probes matrix and a forecast for each probe. On the
device: one copy of parameters and optimizer state.

*Reference.* Jin et al., AutoLRS: Automatic Learning-Rate Schedule by Bayesian Optimization on the
Fly, 2021 (arXiv:2105.10762); YuchenJin/autolrs@63e6ba9, autolrs_server.py, autolrs_callback.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from optim import trees
from optim.control.forecast import exponential_forecast

_LENGTH, _NOISE = 0.2, 0.01
_GRID = 1001


class AutoLRSState(NamedTuple):
    """State of `autolrs`: integers and small arrays, which lists may stand for (JSON)."""

    seed: np.ndarray  # (words,), uint32, from the key
    stage: int  # stages finished
    trained: int  # steps of those
    searched: int  # steps that were rolled back
    initial: float  # the first loss of the run; nan before
    rates: np.ndarray  # (probes,), float64, tried in this stage in their order; nan from there on
    forecasts: np.ndarray  # (probes,), float64, of those rates; inf where losses were not finite


class AutoLRSDecision(NamedTuple):
    """What to do next: copy or restore, then so many steps at this rate."""

    rate: float
    steps: int  # 0 when the run is over
    save: bool  # first keep a copy of parameters and optimizer state
    restore: bool  # first go back to that copy
    probe: bool  # whether the steps are a probe, to be rolled back


class AutoLRS(NamedTuple):
    """A host algorithm over observed losses."""

    init: Callable[[jax.Array], AutoLRSState]  # key
    update: Callable[[AutoLRSState, ArrayLike], tuple[AutoLRSState, AutoLRSDecision]]


def autolrs(
    min_rate: float,
    max_rate: float,
    *,
    total_steps: int,
    stage_steps: int = 1000,
    max_stage_steps: int = 8000,
    probes: int = 10,
    kappa: float = 1e6,
) -> AutoLRS:
    """A controller that finds the learning rate of each stage of a run.

    `update` takes the losses of the steps that the last decision asked for: of training or of
    validation, one a step or fewer, evenly spaced from the first step on; `()` in the first call.
    A kept state, the parameters and their copy are enough to take the search up again.

    Args:
      min_rate: least rate to try.
      max_rate: largest rate to try.
      total_steps: training steps of the run; probes make as many again.
      stage_steps: those of the first stage, tau, at least 3 probes; a probe has tau / probes.
      max_stage_steps: where tau stops doubling.
      probes: rates tried in each stage.
      kappa: weight of the uncertainty of a rate against its forecast.

    Raises:
      ValueError: min_rate is not positive or not below max_rate, probes is below 1 or above the
        grid's 1001, stage_steps is below 3 probes or above max_stage_steps or total_steps, or kappa
        is negative; or, in update, losses are given before any step was asked for, a probe has
        fewer than 3, or no rate of a stage is left whose losses are finite.

    >>> import jax, optim
    >>> controller = optim.autolrs(1e-3, 1.0, total_steps=60, stage_steps=60, probes=5)
    >>> state, x, losses = controller.init(jax.random.key(0)), 4.0, ()
    >>> while (step := controller.update(state, losses))[1].steps:
    ...     state, decision = step
    ...     saved = x if decision.save else saved
    ...     x, losses = saved if decision.restore else x, []
    ...     for _ in range(decision.steps):  # descent on x^2 / 2
    ...         losses, x = [*losses, x**2 / 2], x - decision.rate * x
    >>> state.searched, decision.rate > 0.1, abs(x) < 1e-3
    (60, True, True)
    """
    trees.check_positive("autolrs", min_rate=min_rate)
    trees.check_at_least("autolrs", 0, kappa=kappa)
    if not min_rate < max_rate < np.inf:
        raise ValueError(f"autolrs: max_rate is {max_rate}; accepted: above min_rate, finite.")
    if not 1 <= probes <= _GRID:
        raise ValueError(f"autolrs: probes is {probes}; accepted: 1 to {_GRID}.")
    trees.check_at_least("autolrs", 3 * probes, stage_steps=stage_steps)
    for name, steps in (("max_stage_steps", max_stage_steps), ("total_steps", total_steps)):
        trees.check_at_least("autolrs", stage_steps, **{name: steps})
    grid = np.geomspace(min_rate, max_rate, _GRID)

    def init(key: jax.Array) -> AutoLRSState:
        seed = np.asarray(jax.random.key_data(trees.named_key(key, "autolrs")))
        return AutoLRSState(seed, 0, 0, 0, np.nan, np.full(probes, np.nan), np.full(probes, np.nan))

    def length(state: AutoLRSState) -> int:
        """tau of this stage."""
        left = total_steps - state.trained
        full = min(stage_steps * 2**state.stage, max_stage_steps)
        return left if left < full + stage_steps else full

    def update(state: AutoLRSState, losses: ArrayLike) -> tuple[AutoLRSState, AutoLRSDecision]:
        rates, forecasts = (np.array(x, np.float64) for x in (state.rates, state.forecasts))
        state = state._replace(rates=rates, forecasts=forecasts)
        state = _observe(state, np.asarray(losses, np.float64).ravel(), length(state))
        if state.trained >= total_steps:
            return state, AutoLRSDecision(0.0, 0, save=False, restore=False, probe=False)
        tau, tried = length(state), int(np.sum(~np.isnan(state.rates)))
        if tried == probes:
            rate = _best(state)
            return state, AutoLRSDecision(rate, tau, save=False, restore=True, probe=False)
        if tried:
            rate = _suggest(grid, state.rates[:tried], state.forecasts[:tried], kappa)
        else:
            rng = np.random.default_rng([*map(int, state.seed), state.stage])
            rate = float(rng.choice(grid))
        state.rates[tried] = rate
        steps = tau // probes
        return state, AutoLRSDecision(rate, steps, save=not tried, restore=bool(tried), probe=True)

    return AutoLRS(init, update)


def _observe(state: AutoLRSState, losses: np.ndarray, tau: int) -> AutoLRSState:
    """The state after the losses of a probe, or of a stage; its arrays are written to."""
    tried, told = (int(np.sum(~np.isnan(x))) for x in (state.rates, state.forecasts))
    finite = bool(np.isfinite(losses).all())
    if not tried:
        if len(losses):
            raise ValueError(
                f"autolrs: losses has {len(losses)} values before any step was asked for; "
                f"accepted: ()."
            )
        return state
    if told < tried:
        steps = tau // len(state.rates)
        if np.isnan(state.initial):
            state = state._replace(initial=float(losses[0]))
        state.forecasts[told] = _forecast(losses, tau / steps, state.initial) if finite else np.inf
        return state._replace(searched=state.searched + steps)
    if not finite:
        state.forecasts[np.argmin(state.forecasts)] = np.inf
        return state._replace(searched=state.searched + tau)
    nothing = np.full(len(state.rates), np.nan)
    return state._replace(
        stage=state.stage + 1, trained=state.trained + tau, rates=nothing, forecasts=nothing.copy()
    )


def _forecast(losses: np.ndarray, lengths: float, initial: float) -> float:
    """The loss so many times the probe's own length from its first step."""
    if len(losses) < 3:
        raise ValueError(
            f"autolrs: losses has {len(losses)} values; accepted: at least 3 of a probe."
        )
    if losses.max() > initial + abs(initial):
        return float(losses[-max(len(losses) // 10, 1) :].mean())
    return exponential_forecast(losses, lengths * len(losses)).value


def _best(state: AutoLRSState) -> float:
    """The rate of the least forecast."""
    best = int(np.argmin(state.forecasts))
    if not np.isfinite(state.forecasts[best]):
        raise ValueError(
            f"autolrs: no rate of stage {state.stage} has losses that are finite, the least being "
            f"{state.rates.min():.3g}; accepted: a min_rate at which training does not diverge."
        )
    return float(state.rates[best])


def _suggest(grid: np.ndarray, rates: np.ndarray, forecasts: np.ndarray, kappa: float) -> float:
    """The rate of the grid, not yet tried, with the least lower confidence bound."""
    finite = np.isfinite(forecasts)
    y = np.where(finite, forecasts, np.max(forecasts[finite], initial=-np.inf))
    y = (y - y.mean()) / (y.std() or 1.0) if finite.any() else np.zeros_like(y)
    scale = np.log(grid[-1] / grid[0])
    mean, deviation = _posterior(np.log(rates / grid[0]) / scale, y, np.log(grid / grid[0]) / scale)
    bound = mean - kappa * deviation
    return float(grid[np.argmin(np.where(np.isin(grid, rates), np.inf, bound))])


def _posterior(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation at points, given noisy values y at x."""
    across = _kernel(at, x)
    gains = np.linalg.solve(_kernel(x, x) + _NOISE * np.eye(len(x)), across.T)
    variance = 1 - np.sum(across * gains.T, axis=1)
    return gains.T @ y, np.sqrt(np.maximum(variance, 0))


def _kernel(x: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Matérn 5/2."""
    q = np.sqrt(5) * np.abs(x[:, None] - other) / _LENGTH
    return (1 + q + q**2 / 3) * np.exp(-q)
