"""WSD-S and the cyclic cosine: boundaries of cycles, the frameworks' formulas, wsd, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optim
from optim.schedules.decay_shapes import SHAPES

LATEST = 2**31 - 1  # the last step that an int32 counts


def lingua(step, n_steps, warmup, decay_fraction, cycle_length, min_ratio):
    """lr_wsd of facebookresearch/lingua, from its description: a multiple of the peak."""
    cycle = n_steps * cycle_length
    end = int(cycle) * (step // int(cycle) + 1)
    decay = int(end * decay_fraction)
    if step < warmup:
        return step / warmup
    if step <= end - decay:
        return 1.0
    s = (step - (end - decay)) / decay
    return 1 / (s / min_ratio + 1 - s)


def test_equals_lingua_whose_fraction_is_of_the_steps_so_far():
    schedule = optim.wsd_s_schedule(
        0.3,
        budgets=(40, 80, 120),
        warmup_steps=5,
        decay_steps=0.1,
        decay_shape="harmonic",
        end_value=0.03,
    )
    expected = [0.3 * lingua(t, 120, 5, 0.1, 1 / 3, 0.1) for t in range(120)]
    np.testing.assert_allclose(jax.jit(schedule)(jnp.arange(120)), expected, rtol=2e-6)


def test_equals_levanter_whose_fraction_is_of_the_cycle():
    """Its decay is lr / ((lr / min - 1) c / D + 1), of the cycle's length; first warm-up too."""
    budgets, peak, end = (50, 150), 0.3, 0.03
    expected = []
    for begin, budget in zip((0, *budgets), budgets):
        decay = (budget - begin) // 5
        for t in range(begin, budget):
            c = max(t - (budget - decay), 0)
            warm = t / 10 if t < 10 else 1
            expected.append(warm * peak / ((peak / end - 1) * c / decay + 1))
    schedule = optim.wsd_s_schedule(
        peak,
        budgets=budgets,
        warmup_steps=0.2,
        decay_steps=0.2,
        decay_fraction_of="cycle",
        decay_shape="harmonic",
        end_value=end,
    )
    np.testing.assert_allclose(schedule(jnp.arange(150)), expected, rtol=2e-6)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    warmup=st.integers(0, 5),
    lengths=st.lists(st.integers(8, 20), min_size=3, max_size=3),
    decay=st.integers(0, 3),
    end=st.floats(1e-3, 1.0),
)
def test_each_cycle_starts_at_the_peak_and_falls_to_the_end(shape, warmup, lengths, decay, end):
    budgets = np.cumsum(lengths).tolist()
    schedule = optim.wsd_s_schedule(
        0.7,
        budgets=budgets,
        warmup_steps=warmup,
        decay_steps=decay,
        decay_shape=shape,
        end_value=0.7 * end,
    )
    values = np.asarray(schedule(jnp.arange(62)))
    peak, last = np.float32(0.7), np.float32(0.7 * end)
    ulps = 8 * np.finfo(np.float32).eps * peak
    for begin, budget in zip((warmup, *budgets), budgets):
        assert (values[begin : budget - decay + (decay > 0)] == peak).all()
        assert (np.diff(values[begin:budget]) <= ulps).all()
        assert (values[budget - decay : budget] >= last - ulps).all()
    assert (np.diff(values[: warmup + 1]) > 0).all()
    assert (values[budgets[-1] :] == last).all()


def test_one_budget_is_wsd():
    steps = jnp.arange(23)
    options = {"warmup_steps": 3, "decay_steps": 0.4, "init_value": 0.1, "end_value": 0.2}
    ours = optim.wsd_s_schedule(0.5, budgets=[20], **options)(steps)
    assert (ours == optim.wsd_schedule(0.5, total_steps=20, **options)(steps)).all()


def test_a_fraction_of_the_whole_is_longer_in_later_cycles():
    def decaying(base):
        schedule = optim.wsd_s_schedule(
            1.0, budgets=(20, 40, 80), decay_steps=0.2, decay_fraction_of=base
        )
        values = np.asarray(schedule(jnp.arange(80)))
        return [int((part < 1).sum()) + 1 for part in np.split(values, [20, 40])]

    assert decaying("total") == [4, 8, 16]
    assert decaying("cycle") == [4, 4, 8]


def test_cyclic_cosine_is_a_cosine_over_each_cycle():
    schedule = optim.cyclic_cosine_schedule(0.4, budgets=(12, 30), warmup_steps=2, end_value=0.1)
    values = np.asarray(jax.jit(schedule)(jnp.arange(33)))
    s = np.concatenate([np.arange(10) / 10, np.arange(18) / 18])
    np.testing.assert_allclose(values[2:30], 0.25 + 0.15 * np.cos(np.pi * s), rtol=1e-6)
    np.testing.assert_allclose(values[:2], [0, 0.2], rtol=1e-6)
    assert values[2] == values[12] == np.float32(0.4)
    assert (values[30:] == np.float32(0.1)).all()


def test_the_latest_steps_are_counted_exactly():
    """float32 has one integer in 128 there, and a sum of two steps is beyond int32."""
    budgets = (LATEST - 6, LATEST)
    steps = jnp.array([LATEST - k for k in range(9, -1, -1)])
    schedule = jax.jit(optim.wsd_s_schedule(1.0, budgets=budgets, decay_steps=2))
    assert schedule(steps).tolist() == [1, 1, 0.5, 1, 1, 1, 1, 1, 0.5, 0]
    cosine = jax.jit(optim.cyclic_cosine_schedule(1.0, budgets=budgets))
    assert cosine(steps)[3] == 1 and cosine(steps)[-1] == 0
    np.testing.assert_allclose(cosine(steps)[6], 0.5, rtol=1e-6)
    assert cosine(jnp.int32(LATEST // 2)).item() == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"budgets": ()}, r"budgets is \(\); accepted: ints from 1 that increase"),
        ({"budgets": (0, 5)}, r"budgets is \(0, 5\); accepted: ints from 1"),
        ({"budgets": (5, 5)}, r"budgets is \(5, 5\); accepted: ints from 1"),
        ({"budgets": (5, 7.5)}, r"budgets is \(5, 7.5\); accepted: ints"),
        ({"warmup_steps": 10}, "warmup_steps is 10; accepted: fewer than the first budget, 10"),
        ({"warmup_steps": -1}, "warmup_steps is -1; accepted: an int from 0, .* the first budget"),
        ({"decay_steps": 1.5}, "decay_steps is 1.5; accepted"),
        ({"decay_steps": 6}, "decay_steps is 6, 6 before budget 15; accepted: at most the 5 steps"),
        ({"decay_steps": 0.4}, "decay_steps is 0.4, 6 before budget 15; accepted: at most the 5"),
        (
            {"decay_steps": 5, "warmup_steps": 6},
            "decay_steps is 5, 5 before budget 10; accepted: at most the 4 steps",
        ),
        ({"decay_fraction_of": "run"}, "decay_fraction_of is 'run'; accepted: 'total', 'cycle'"),
        ({"decay_shape": "cubic"}, "decay_shape is 'cubic'; accepted: linear, cosine"),
        ({"decay_shape": "harmonic"}, "end_value is 0.0; decay_shape 'harmonic' accepts"),
    ],
)
def test_errors_name_the_argument(kwargs, message):
    with pytest.raises(ValueError, match=f"wsd_s_schedule: {message}"):
        optim.wsd_s_schedule(1.0, **{"budgets": (10, 15), **kwargs})


def test_errors_of_the_cyclic_cosine():
    with pytest.raises(ValueError, match=r"cyclic_cosine_schedule: budgets is \[3, 2\]; accepted"):
        optim.cyclic_cosine_schedule(1.0, budgets=[3, 2])
    with pytest.raises(ValueError, match="cyclic_cosine_schedule: warmup_steps is 3; accepted"):
        optim.cyclic_cosine_schedule(1.0, budgets=[3], warmup_steps=1.0)
