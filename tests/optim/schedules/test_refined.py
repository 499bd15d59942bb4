"""Refined schedules: special cases, two numerical minimizers, the running median, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.ndimage import median_filter as scipy_median
from scipy.optimize import minimize

import optim
from optim.schedules.refined import median_filter

RNG = np.random.default_rng(0)


def by_hand(norms, power):
    """The definition, term by term, divided by the largest."""
    w = np.asarray(norms, float) ** power
    eta = np.array([w[t] * w[t + 1 :].sum() / w.sum() for t in range(len(w))])
    return eta / eta.max()


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("size", [2, 50, 1000])
def test_constant_norms_give_the_linear_decay(size, norm):
    """To the last rounding, the division's: weights and their sums are whole numbers."""
    schedule = optim.refine_schedule(np.full(size, 0.3), norm=norm)
    expected = np.arange(size - 1, -1, -1) / (size - 1)
    np.testing.assert_allclose(schedule, expected, rtol=2e-7)


@pytest.mark.parametrize(("norm", "power"), [("l2", -2), ("l1", -1)])
def test_follows_the_definition(norm, power):
    norms = np.exp(RNG.normal(size=300))
    with jax.enable_x64(True):
        schedule = np.asarray(optim.refine_schedule(norms, norm=norm, filter_width=None))
    np.testing.assert_allclose(schedule, by_hand(norms, power), rtol=1e-12)
    assert schedule.max() == 1 and schedule[-1] == 0


@settings(max_examples=30, deadline=None)
@given(
    logs=st.lists(st.floats(-6, 6), min_size=24, max_size=24),
    scale=st.sampled_from([1e-30, 1e-3, 7.0, 1e25]),
    norm=st.sampled_from(["l2", "l1"]),
    width=st.sampled_from([None, 3, 0.4]),
)
def test_scale_does_not_matter_and_the_ends_are_one_and_zero(logs, scale, norm, width):
    norms = np.exp(np.array(logs))
    ours = optim.refine_schedule(norms, norm=norm, filter_width=width)
    scaled = optim.refine_schedule(scale * norms, norm=norm, filter_width=width)
    np.testing.assert_allclose(ours, scaled, rtol=2e-5, atol=1e-30)
    assert ours.max() == 1 and ours[-1] == 0 and (ours >= 0).all()


# Minimizers.

SERIES = {
    "constant": np.ones(50),
    "growing": np.linspace(1, 3, 50),
    "falling": np.linspace(3, 1, 50),
}


def minimizer(both, norms):
    """L-BFGS-B with a bound of 1e-8, in float64, as precise as it gets."""
    found = minimize(
        lambda x: [np.asarray(part, float) for part in both(x, norms)],
        np.full(50, 50**-0.5),
        jac=True,
        method="L-BFGS-B",
        bounds=[(1e-8, None)] * 50,
        options={"maxiter": 10_000, "ftol": 1e-16, "gtol": 1e-12, "maxcor": 50},
    )
    return found.x


@jax.jit
@jax.value_and_grad
def bound_of_the_theorem(w, norms):
    return (1 + jnp.sum(w**2 * norms**2)) / (2 * jnp.sum(w))


@pytest.mark.parametrize("name", [*SERIES, "random"])
def test_weights_minimize_the_bound_of_the_theorem(name):
    norms = SERIES.get(name, np.exp(RNG.normal(size=50) / 2))
    with jax.enable_x64(True):
        weights = minimizer(bound_of_the_theorem, norms)
        schedule = np.asarray(optim.refine_schedule(norms, filter_width=None))
    eta = weights * (weights.sum() - np.cumsum(weights))
    np.testing.assert_allclose(schedule, eta / eta.max(), atol=1e-6)


@jax.jit
@jax.value_and_grad
def bound_of_the_last_iterate(rates, norms):
    def tails(x):
        return jnp.flip(jnp.cumsum(jnp.flip(x)))

    rest, noise = tails(rates), tails((rates * norms) ** 2)
    last = jnp.sum(rates[:-1] * noise[:-1] / (rest[:-1] * rest[1:]))
    return (1 + noise[0]) / (2 * rest[0]) + last / 2


@pytest.mark.parametrize(
    ("name", "gap", "excess"),
    [("constant", 0.035, 0.05), ("growing", 0.02, 0.02), ("falling", 0.09, 0.12)],
)
def test_rates_nearly_minimize_the_bound_of_the_last_iterate(name, gap, excess):
    """Another bound, of any rates; the two agree up to the end, where this one keeps a last step.

    Measured on 50 points, up to the best factor: 0.034, 0.019 and 0.086 apart over the first 80 per
    cent, with a bound 4.6, 1.7 and 11.7 per cent above the least. On 200 points: 0.004, 0.004 and
    0.016, and 1.1, 0.4 and 3.2 per cent.
    """
    norms = SERIES[name]
    with jax.enable_x64(True):
        rates = minimizer(bound_of_the_last_iterate, norms)
        schedule = np.asarray(optim.refine_schedule(norms, filter_width=None))
        # The theorem's own scale for the distance 1; the last rate, 0, is no step.
        weights = norms**-2.0
        eta = weights * (weights.sum() - np.cumsum(weights)) / weights.sum() ** 1.5
        ours = float(bound_of_the_last_iterate(eta[:-1], norms[:-1])[0])
        least = float(bound_of_the_last_iterate(rates, norms)[0])
    most = slice(0, 40)
    factor = rates[most] @ schedule[most] / (rates[most] @ rates[most])
    assert np.abs(factor * rates[most] - schedule[most]).max() < gap
    assert least <= ours < (1 + excess) * least
    np.testing.assert_allclose(rates[:25], eta[:25], rtol=0.1)


# The paper's shapes.


@pytest.mark.parametrize("last", [1.0, 2.0, 0.7])
def test_synthetic_norms_give_a_warm_up_and_a_decay(last):
    """The norms of the authors' figure: large at first, then flat, growing or shrinking."""
    x = np.linspace(0, 1, 2000)
    knots = np.interp(x, [0, 0.003, 0.02, 0.03, 0.1, 1], [15, 6, 4, 2, 1, last])
    norms = gaussian_filter1d(knots, sigma=40, mode="nearest")
    schedule = np.asarray(optim.refine_schedule(norms, filter_width=None))
    np.testing.assert_allclose(schedule, by_hand(norms, -2), atol=1e-5)
    top = schedule.argmax()
    assert 0.1 < x[top] < 0.16 and schedule[0] < 0.02
    assert (np.diff(schedule[:top]) > 0).all() and (np.diff(schedule[top:]) < 0).all()
    remaining = (1 - x[1500]) / (1 - x[top])
    if last == 1:
        assert schedule[1500] == pytest.approx(remaining, rel=0.01)
    else:  # a decay that growing norms make fast and shrinking ones slow
        assert (schedule[1500] < 0.7 * remaining) == (last > 1)


# The running median.


def official(norms, width):
    """The authors' recipe by scipy: mirror on the right by two widths, nearest on the left."""
    padded = np.pad(norms, (0, 2 * width), "reflect")
    return scipy_median(padded, size=width, mode="nearest")[: len(norms)]


@pytest.mark.parametrize(("size", "width"), [(2, 1), (2, 3), (7, 3), (7, 13), (60, 7), (200, 41)])
def test_median_equals_scipy(size, width):
    series = RNG.exponential(size=size).round(1).astype(np.float32)  # with ties
    ours = jax.jit(median_filter, static_argnums=1)(series, width)
    assert (np.asarray(ours) == official(series, width)).all()


@pytest.mark.parametrize("tau", [0.1, 0.35])
def test_a_fraction_is_the_papers_width(tau):
    norms = np.exp(RNG.normal(size=90)).astype(np.float32)
    width = 2 * (int(tau * 90) // 2) + 1
    expected = by_hand(official(norms, width), -1)
    ours = optim.refine_schedule(norms, norm="l1", filter_width=tau)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert (ours == optim.refine_schedule(norms, norm="l1", filter_width=width)).all()
    assert tau != 0.1 or (ours == optim.refine_schedule(norms, norm="l1")).all()


def test_the_width_of_the_authors_plots():
    """They take a tenth of 10,000 for a log of any length: less than a tenth of a longer one."""
    norms = np.exp(RNG.normal(size=12_000)).astype(np.float32)
    official_width = 2 * (int(0.1 * 10_000) // 2) + 1
    expected = by_hand(official(norms, official_width), -2)
    quirk = optim.refine_schedule(norms, filter_width=official_width)
    np.testing.assert_allclose(quirk, expected, atol=1e-5)
    ours = optim.refine_schedule(norms)
    assert (ours == optim.refine_schedule(norms, filter_width=1201)).all()
    assert np.abs(ours - quirk).max() > 1e-3


def test_traces_vectorizes_and_differentiates():
    norms = jnp.asarray(np.exp(RNG.normal(size=(2, 30))), jnp.float32)
    rows = [optim.refine_schedule(row) for row in norms]
    np.testing.assert_allclose(jax.jit(jax.vmap(optim.refine_schedule))(norms), rows, rtol=1e-6)
    slope = jax.grad(lambda x: optim.refine_schedule(x).sum())(norms[0])
    assert jnp.isfinite(slope).all() and (slope != 0).any()


def test_bfloat16_norms_are_worked_on_in_float32():
    norms = jnp.asarray([3.0, 2.0, 1.0, 2.0], jnp.bfloat16)
    assert optim.refine_schedule(norms).dtype == jnp.float32


@pytest.mark.parametrize(
    ("norms", "kwargs", "message"),
    [
        ([1.0], {}, r"norms has shape \(1,\); accepted: \(T,\) with T from 2"),
        ([[1.0, 2.0]], {}, r"norms has shape \(1, 2\); accepted"),
        ([1.0, 0.0, -1.0], {}, r"norms\[1\] is 0.0; accepted: positive, finite"),
        ([1.0, 2.0, -1.0], {}, r"norms\[2\] is -1.0; accepted: positive, finite"),
        ([1.0, 2.0, np.nan], {}, r"norms\[2\] is nan; accepted: positive, finite"),
        ([np.inf, 2.0, 1.0], {}, r"norms\[0\] is inf; accepted: positive, finite"),
        ([1.0, 1.0], {"norm": "l3"}, "norm is 'l3'; accepted: 'l2', 'l1'"),
        ([1.0, 1.0], {"filter_width": 2}, "filter_width is 2; accepted: an odd int from 1 to 3"),
        ([1.0, 1.0], {"filter_width": 5}, "filter_width is 5; accepted: an odd int from 1 to 3"),
        ([1.0, 1.0], {"filter_width": -1}, "filter_width is -1; accepted: an odd int"),
        ([1.0, 1.0], {"filter_width": 1.5}, "filter_width is 1.5; accepted: .* a float between"),
    ],
)
def test_errors_name_the_argument(norms, kwargs, message):
    with pytest.raises(ValueError, match=f"refine_schedule: {message}"):
        optim.refine_schedule(norms, **kwargs)
