"""AutoLRS: its Gaussian process beside scikit-learn's, the protocol, faults, a toy, resuming."""

import json

import jax
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

import optim
from optim.control.autolrs import _posterior, _suggest

GRID = np.geomspace(1e-4, 1.0, 1001)


def curve(rate, steps, optimum=0.03):
    """Losses of a run whose best rate for 1000 steps is known: slow below it, high above."""
    t = np.arange(steps)
    floor = np.log(np.maximum(rate / optimum, 1)) * 0.2
    return 2.0 * np.exp(-0.005 * rate / optimum * t) + 0.5 + floor


def drive(controller, key, run, state=None, losses=()):
    """All decisions up to the end; run(decision) -> losses."""
    state = controller.init(key) if state is None else state
    trail = []
    while True:
        state, decision = controller.update(state, losses)
        trail.append((state, decision))
        if not decision.steps:
            return trail
        losses = run(decision)


def decisions(trail):
    return [decision for _, decision in trail]


@pytest.mark.parametrize("size", [1, 2, 9])
def test_the_process_is_scikit_learns(size):
    rng = np.random.default_rng(size)
    x, y, at = rng.uniform(size=size), rng.normal(size=size), np.linspace(0, 1, 50)
    peer = GaussianProcessRegressor(Matern(0.2, nu=2.5), alpha=0.01, optimizer=None)
    expected = peer.fit(x[:, None], y).predict(at[:, None], return_std=True)
    np.testing.assert_allclose(_posterior(x, y, at), expected, rtol=1e-8, atol=1e-10)


def test_the_suggestion_is_the_least_bound_of_scikit_learns_process():
    rates = GRID[[100, 420, 430, 900]]
    y = np.array([2.0, 1.0, 1.1, 4.0])
    s = np.linspace(0, 1, 1001)[:, None]
    peer = GaussianProcessRegressor(Matern(0.2, nu=2.5), alpha=0.01, optimizer=None)
    peer.fit(s[[100, 420, 430, 900]], (y - y.mean()) / y.std())
    mean, deviation = peer.predict(s, return_std=True)
    for kappa in (0.5, 2.0, 1e6):
        expected = GRID[np.argmin(mean - kappa * deviation)]
        assert _suggest(GRID, rates, y, kappa) == pytest.approx(expected, rel=1e-12)


def test_pure_exploration_fills_the_interval():
    """From any first rate, ten rates leave no gap of twice their spacing."""
    for first in (0, 313, 1000):
        rates = GRID[[first]]
        for _ in range(9):
            rates = np.append(rates, _suggest(GRID, rates, np.linspace(1, 2, len(rates)), 1e6))
        places = np.sort(np.log(rates / GRID[0]) / np.log(GRID[-1] / GRID[0]))
        assert np.diff(places, prepend=0, append=1).max() < 2 / 9


def test_no_rate_is_tried_twice():
    """With kappa 0 and one grid point clearly best, the same point would come up again."""
    rates, y = GRID[[400, 500, 600]], np.array([5.0, -5.0, 5.0])
    for _ in range(6):
        rate = _suggest(GRID, rates, y, 0.0)
        assert rate not in rates
        assert abs(np.log(rate / GRID[500])) < 0.1  # beside it
        rates, y = np.append(rates, rate), np.append(y, -5.0)


def test_probes_and_stages_are_those_of_the_paper():
    controller = optim.autolrs(1e-4, 1.0, total_steps=16000)
    trail = drive(controller, jax.random.key(0), lambda d: curve(d.rate, d.steps))
    done = decisions(trail)
    training = [d for d in done if not d.probe and d.steps]
    # 1000, 2000, 4000, 8000; of the last 1000 a stage of its own.
    assert [d.steps for d in training] == [1000, 2000, 4000, 8000, 1000]
    assert [d.steps for d in done if d.probe] == np.repeat([100, 200, 400, 800, 100], 10).tolist()
    assert [d.save for d in done[:-1]] == ([True] + 10 * [False]) * 5
    assert all(d.restore != d.save for d in done[:-1])
    assert (trail[-1][0].trained, trail[-1][0].searched) == (16000, 16000)
    assert trail[-1][0].stage == 5
    for start in range(0, 55, 11):
        assert len({d.rate for d in done[start : start + 10]}) == 10
        assert done[start + 10].rate in {d.rate for d in done[start : start + 10]}


def test_the_last_stage_takes_a_short_rest():
    controller = optim.autolrs(0.1, 1.0, total_steps=100, stage_steps=30, probes=3)
    done = decisions(drive(controller, jax.random.key(0), lambda d: curve(d.rate, d.steps)))
    assert [d.steps for d in done if not d.probe] == [30, 70, 0]  # 30, 60 and 10 left


@pytest.mark.parametrize("kappa", [1.0, 1e6])
def test_the_best_rate_is_found(kappa):
    """Within the spacing of ten rates over four decades, at every stage and seed."""
    controller = optim.autolrs(1e-4, 1.0, total_steps=3000, kappa=kappa)
    for seed in range(4):
        done = decisions(drive(controller, jax.random.key(seed), lambda d: curve(d.rate, d.steps)))
        for decision in (d for d in done if not d.probe and d.steps):
            assert 0.01 < decision.rate < 0.1


def test_losses_may_be_observed_every_few_steps():
    """At rates whose decays are not slower than the fit's slowest, so that it is exact."""
    controller = optim.autolrs(0.03, 1.0, total_steps=1000)
    every = drive(controller, jax.random.key(0), lambda d: curve(d.rate, d.steps))
    some = drive(controller, jax.random.key(0), lambda d: curve(d.rate, d.steps)[::5])
    for (state, decision), (other, same) in zip(every, some, strict=True):
        assert decision == same
        told = ~np.isnan(state.forecasts)
        np.testing.assert_allclose(state.forecasts[told], other.forecasts[told], rtol=1e-5)


def test_probes_that_diverge_are_not_chosen():
    def run(decision):
        losses = curve(decision.rate, decision.steps)
        if decision.rate > 0.02:
            losses[len(losses) // 2 :] = np.nan
        return losses

    for kappa in (1.0, 1e6):
        controller = optim.autolrs(1e-4, 1.0, total_steps=1000, kappa=kappa)
        trail = drive(controller, jax.random.key(1), run)
        rates, forecasts = trail[-2][0].rates, trail[-2][0].forecasts
        assert np.isinf(forecasts[rates > 0.02]).all() and (rates > 0.02).any()
        assert trail[-2][1].rate == rates[rates <= 0.02].max()


def test_a_probe_that_jumps_is_not_extended():
    """A fit of its fall would go far below all others; it stays where it is."""

    def run(decision):
        losses = curve(decision.rate, decision.steps)
        if decision.rate > 0.1:
            losses[2:] += 5e3 * np.exp(-np.arange(len(losses) - 2) / 40) + 2.0
        return losses

    controller = optim.autolrs(1e-4, 1.0, total_steps=1000)
    trail = drive(controller, jax.random.key(0), run)
    rates, forecasts = trail[-2][0].rates, trail[-2][0].forecasts
    jumped = rates > 0.1
    assert jumped.any() and 0.01 < trail[-2][1].rate < 0.1
    ends = [run(optim.AutoLRSDecision(r, 100, False, False, True))[-10:] for r in rates[jumped]]
    np.testing.assert_allclose(forecasts[jumped], np.mean(ends, axis=1))


def test_a_stage_that_diverges_is_rolled_back():
    failed = []

    def run(decision):
        losses = curve(decision.rate, decision.steps)
        if not decision.probe and not failed:
            failed.append(decision.rate)
            losses[-1] = np.inf
        return losses

    controller = optim.autolrs(1e-4, 1.0, total_steps=1000)
    state, again = drive(controller, jax.random.key(0), run)[-2]
    assert again.restore and not again.probe and again.steps == 1000
    assert again.rate != failed[0]
    assert (state.trained, state.searched) == (0, 2000)
    order = state.rates[np.argsort(state.forecasts)]
    assert (again.rate, failed[0]) == (order[0], order[-1])


def test_no_rate_left_is_an_error():
    controller = optim.autolrs(0.5, 1.0, total_steps=30, stage_steps=30, probes=3)
    with pytest.raises(ValueError, match=r"autolrs: no rate of stage 0 has losses .* min_rate"):
        drive(controller, jax.random.key(0), lambda d: np.full(d.steps, np.nan))


def test_the_key_decides_and_each_stage_draws_anew():
    controller = optim.autolrs(1e-4, 1.0, total_steps=3000)

    def first_rates(seed):
        done = decisions(drive(controller, jax.random.key(seed), lambda d: curve(d.rate, d.steps)))
        return [d.rate for d in done if d.save]

    assert first_rates(0) == first_rates(0)
    assert len({*first_rates(0), *first_rates(1), *first_rates(2)}) == 6


def test_first_rates_are_log_uniform():
    controller = optim.autolrs(1e-4, 1.0, total_steps=1000)
    keys = jax.random.split(jax.random.key(0), 200)
    rates = [controller.update(controller.init(key), ())[1].rate for key in keys]
    places = np.log(rates) / np.log(1e4) + 1
    # A mean of 200 uniforms has a deviation of 0.02, their variance is 1/12.
    assert abs(places.mean() - 0.5) < 0.08
    assert abs(places.var() - 1 / 12) < 0.02


def test_a_search_goes_on_from_a_state_in_json():
    controller = optim.autolrs(1e-4, 1.0, total_steps=3000)

    def run(decision):
        return curve(decision.rate, decision.steps)

    trail = drive(controller, jax.random.key(3), run)
    for stop in (0, 4, 10, 13):  # amid probes, and amid a stage
        state, decision = trail[stop]
        written = json.dumps([x.tolist() if isinstance(x, np.ndarray) else x for x in state])
        again = optim.AutoLRSState(*json.loads(written))
        rest = drive(controller, None, run, state=again, losses=run(decision))
        assert decisions(rest) == decisions(trail[stop + 1 :])


def test_update_leaves_the_old_state_alone():
    controller = optim.autolrs(1e-4, 1.0, total_steps=1000)
    state, decision = controller.update(controller.init(jax.random.key(0)), ())
    before = state.rates.copy(), state.forecasts.copy()
    controller.update(state, curve(decision.rate, decision.steps))
    np.testing.assert_array_equal((state.rates, state.forecasts), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_rate": 0.0}, r"min_rate is 0.0; accepted: min_rate > 0"),
        ({"max_rate": 1e-4}, r"max_rate is 0.0001; accepted: above min_rate"),
        ({"max_rate": np.inf}, r"max_rate is inf"),
        ({"total_steps": 999}, r"total_steps is 999; accepted: total_steps >= 1000"),
        ({"stage_steps": 29}, r"stage_steps is 29; accepted: stage_steps >= 30"),
        ({"max_stage_steps": 500}, r"max_stage_steps is 500; accepted: max_stage_steps >= 1000"),
        ({"probes": 0}, r"probes is 0; accepted: 1 to 1001"),
        ({"kappa": -1.0}, r"kappa is -1.0; accepted: kappa >= 0"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    accepted = {"min_rate": 1e-3, "max_rate": 1.0, "total_steps": 2000}
    with pytest.raises(ValueError, match="autolrs: " + message):
        optim.autolrs(**{**accepted, **arguments})


def test_losses_that_do_not_fit_are_errors():
    controller = optim.autolrs(1e-4, 1.0, total_steps=1000)
    state = controller.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"autolrs: losses has 1 values before any step"):
        controller.update(state, [2.3])
    state, _ = controller.update(state, ())
    with pytest.raises(ValueError, match=r"autolrs: losses has 2 values; accepted: at least 3"):
        controller.update(state, [2.3, 2.2])
