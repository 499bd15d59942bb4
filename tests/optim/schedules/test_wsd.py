"""Warmup-stable-decay: boundaries, the shapes' formulas, phases, errors, jit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optim

SHAPES = (
    "linear",
    "cosine",
    "mirror-cosine",
    "square",
    "1-sqrt",
    "exponential",
    "harmonic",
)
PEAK, END = 0.3, 0.03


def decaying(shape, peak=PEAK, end=END):
    """Ten steps of warm-up, twenty stable ones, forty of decay."""
    return optim.wsd_schedule(
        peak, total_steps=70, warmup_steps=10, decay_steps=40, decay_shape=shape, end_value=end
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_boundaries_are_exact_in_float32(shape):
    schedule = jax.jit(decaying(shape))
    peak, end = np.float32(PEAK), np.float32(END)
    assert schedule(0) == 0
    assert schedule(9) < peak
    assert [schedule(t) for t in (10, 11, 29, 30)] == [peak] * 4
    assert schedule(31) < peak
    assert end < schedule(69)
    assert [schedule(t) for t in (70, 71, 10**9)] == [end] * 3
    assert schedule(5).dtype == jnp.float32


def harmonic_of_levanter(s, peak, end):
    return peak / ((peak / end - 1) * s + 1)


def harmonic_of_lingua(s, peak, end):
    ratio = end / peak
    return peak / (s / ratio + (1 - s))


def cosine_to(s, peak, end):
    return end + (peak - end) * np.cos(np.pi * s / 2) ** 2


@pytest.mark.parametrize(
    ("shape", "formula"),
    [
        ("linear", lambda s, peak, end: (1 - s) * peak + s * end),
        ("cosine", lambda s, peak, end: cosine_to(s, peak, end)),
        (
            "mirror-cosine",
            lambda s, peak, end: 2 * ((1 - s) * peak + s * end) - cosine_to(s, peak, end),
        ),
        ("square", lambda s, peak, end: peak - (peak - end) * s * s),
        ("1-sqrt", lambda s, peak, end: peak - (peak - end) * np.sqrt(s)),
        ("exponential", lambda s, peak, end: np.exp((1 - s) * np.log(peak) + s * np.log(end))),
        ("harmonic", harmonic_of_levanter),
        ("harmonic", harmonic_of_lingua),
    ],
)
def test_shapes_have_their_formulas(shape, formula):
    steps = np.arange(30, 71)
    expected = formula((steps - 30) / 40, PEAK, END)
    with jax.enable_x64(True):
        ours = jax.vmap(decaying(shape))(jnp.asarray(steps))
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_shape_of_a_decay_to_zero_at_its_middle():
    """A quarter of the way 1 - sqrt has half of the peak, linear three quarters, square most."""
    at_quarter = {
        shape: float(
            optim.wsd_schedule(1.0, total_steps=100, decay_steps=100, decay_shape=shape)(25)
        )
        for shape in ("linear", "cosine", "mirror-cosine", "square", "1-sqrt")
    }
    assert at_quarter == pytest.approx(
        {
            "linear": 0.75,
            "cosine": (1 + 0.5**0.5) / 2,
            "mirror-cosine": 1.5 - (1 + 0.5**0.5) / 2,
            "square": 1 - 1 / 16,
            "1-sqrt": 0.5,
        },
        rel=1e-6,
    )


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    warmup=st.integers(0, 30),
    stable=st.integers(0, 30),
    decay=st.integers(1, 30),
    peak=st.floats(1e-4, 10.0),
    start=st.floats(0.0, 1.0),
    end=st.floats(1e-3, 1.0),
)
def test_values_stay_between_the_ends_and_phases_are_monotone(
    shape, warmup, stable, decay, peak, start, end
):
    total = warmup + stable + decay
    schedule = optim.wsd_schedule(
        peak,
        total_steps=total,
        warmup_steps=warmup,
        decay_steps=decay,
        decay_shape=shape,
        init_value=start * peak,
        end_value=end * peak,
    )
    values = np.asarray(schedule(jnp.arange(92)))  # one length: one compilation
    ulps = 8 * np.finfo(np.float32).eps * peak
    assert values.min() >= min(start if warmup else 1.0, end) * peak - ulps
    assert values.max() <= peak + ulps
    assert (np.diff(values[: warmup + 1]) >= -ulps).all()
    assert (values[warmup : warmup + stable + 1] == np.float32(peak)).all()
    assert (np.diff(values[warmup + stable :]) <= ulps).all()
    assert (values[total:] == np.float32(end * peak)).all()


def test_fractions_are_of_the_whole_run():
    fractions = optim.wsd_schedule(1.0, total_steps=200, warmup_steps=0.1, decay_steps=0.25)
    counts = optim.wsd_schedule(1.0, total_steps=200, warmup_steps=20, decay_steps=50)
    steps = jnp.arange(201)
    assert (fractions(steps) == counts(steps)).all()
    whole = optim.wsd_schedule(1.0, total_steps=10, decay_steps=1.0)
    assert whole(1) == pytest.approx(0.9)


def test_init_value_starts_the_warmup():
    schedule = optim.wsd_schedule(1.0, total_steps=20, warmup_steps=4, init_value=0.2)
    np.testing.assert_allclose(schedule(jnp.arange(5)), [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)


def test_jit_equals_python_over_a_traced_step():
    for shape in SHAPES:
        schedule = decaying(shape)
        steps = jnp.array([0, 3, 10, 30, 31, 50, 69, 70])
        traced = jax.jit(schedule)(steps)
        np.testing.assert_allclose([schedule(int(t)) for t in steps], traced, rtol=1e-6)


@pytest.mark.parametrize("total", [2**25, 2**31 - 1])
def test_late_steps_are_counted_exactly(total):
    """float32 has no odd integers past 2^24."""
    schedule = optim.wsd_schedule(1.0, total_steps=total, decay_steps=2)
    assert schedule(jnp.array([total - 2, total - 1, total])).tolist() == [1.0, 0.5, 0.0]


def test_scales_updates_through_optax():
    tx = optax.scale_by_schedule(optim.wsd_schedule(1.0, total_steps=4, decay_steps=2))
    state, seen = tx.init(jnp.ones(1)), []
    for _ in range(5):
        updates, state = tx.update(jnp.ones(1), state)
        seen.append(float(updates[0]))
    assert seen == [1.0, 1.0, 1.0, 0.5, 0.0]


def test_peak_may_be_traced():
    def value(peak):
        return optim.wsd_schedule(
            peak, total_steps=10, decay_steps=4, decay_shape="harmonic", end_value=0.1
        )(8)

    peaks = jnp.array([1.0, 2.0])
    np.testing.assert_allclose(jax.vmap(value)(peaks), 1 / (5 + 0.5 / peaks), rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"total_steps": 0}, "total_steps is 0; accepted: an int from 1"),
        ({"total_steps": 10.0}, "total_steps is 10.0; accepted: an int from 1"),
        ({"warmup_steps": -1}, "warmup_steps is -1; accepted"),
        ({"decay_steps": -0.1}, "decay_steps is -0.1; accepted"),
        ({"decay_steps": 5.0}, "decay_steps is 5.0; accepted: an int from 0"),
        ({"warmup_steps": 6, "decay_steps": 5}, r"is 6 \+ 5; accepted: at most total_steps = 10"),
        ({"decay_shape": "cubic"}, "decay_shape is 'cubic'; accepted: linear, cosine, mirror-cos"),
        ({"decay_shape": "harmonic"}, "end_value is 0.0; decay_shape 'harmonic' accepts"),
        ({"decay_shape": "exponential", "end_value": -1}, "end_value is -1; decay_shape 'expon"),
    ],
)
def test_errors_name_the_argument(kwargs, message):
    with pytest.raises(ValueError, match=f"wsd_schedule: .*{message}"):
        optim.wsd_schedule(1.0, **{"total_steps": 10, **kwargs})
