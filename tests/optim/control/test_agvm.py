"""AGVM: factors by hand, a NumPy replay with and without Adam's division, steps, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

GROUPS = {"backbone/.*": "backbone", "(neck|head)": "rest", "mask": "mask"}
SHAPES = {"backbone/w": (3, 4), "backbone/b": (4,), "neck": (5,), "head": (2, 2), "mask": (6,)}
MEMBERS = {"backbone": ("backbone/w", "backbone/b"), "rest": ("neck", "head"), "mask": ("mask",)}


def draw(rng, noise):
    """Halves of a batch whose gradients share a part; the larger the noise, the less of it."""
    shared = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}

    def half():
        return {name: g + noise[name] * rng.normal(size=g.shape) for name, g in shared.items()}

    return half(), half()


NOISE = {"backbone/w": 1.0, "backbone/b": 1.0, "neck": 4.0, "head": 0.5, "mask": 0.05}


def replay(halves, *, rate, every, start, stop, momentum=0.97, adam=None):
    """The parameters and factors after each step, from zero, in NumPy."""
    params = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    factors = dict.fromkeys(MEMBERS, 1.0)
    m, v = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    trail = []
    for t, (first, second) in enumerate(halves):
        active = start <= t <= stop
        if active and t % every == 0:
            phi = {}
            for group, names in MEMBERS.items():
                a, b = (np.concatenate([h[n].ravel() for n in names]) for h in (first, second))
                if adam is not None:
                    b2, eps = adam
                    old = np.concatenate([v[n].ravel() for n in names])
                    a, b = (x / (np.sqrt(b2 * old + (1 - b2) * x**2) + eps) for x in (a, b))
                phi[group] = 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
            for group in MEMBERS:
                ratio = (phi["backbone"] + 1e-6) / (phi[group] + 1e-6)
                new = np.sqrt(np.clip(ratio, 0.5, 10.0))
                factors[group] = momentum * factors[group] + (1 - momentum) * new
        for group, names in MEMBERS.items():
            scale = factors[group] if active else 1.0
            for n in names:
                g = (first[n] + second[n]) / 2
                step = g
                if adam is not None:
                    m[n] = 0.9 * m[n] + 0.1 * g
                    v[n] = adam[0] * v[n] + (1 - adam[0]) * g**2
                    root = np.sqrt(v[n] / (1 - adam[0] ** (t + 1)))
                    step = m[n] / (1 - 0.9 ** (t + 1)) / (root + adam[1])
                params[n] = params[n] - scale * rate * step
        trail.append(({n: p.copy() for n, p in params.items()}, dict(factors)))
    return trail


@pytest.mark.parametrize("adam", [None, (0.99, 1e-8)])
def test_agrees_with_numpy_in_float64(adam):
    rng = np.random.default_rng(0)
    halves = [draw(rng, NOISE) for _ in range(14)]
    trail = replay(halves, rate=0.1, every=3, start=4, stop=11, momentum=0.8, adam=adam)
    assert trail[5][1]["mask"] == 1.0 != trail[6][1]["mask"]  # 6 is the first multiple of 3
    with jax.enable_x64(True):
        inner = optax.sgd(0.1) if adam is None else optax.adam(0.1, b2=adam[0], eps=adam[1])
        tx = optim.agvm(
            inner,
            GROUPS,
            anchor="backbone",
            momentum=0.8,
            every=3,
            start=4,
            stop=11,
            second_moment=None if adam is None else lambda state: state[0].nu,
            b2=0.999 if adam is None else adam[0],
        )
        params = {name: jnp.zeros(shape, jnp.float64) for name, shape in SHAPES.items()}
        state = tx.init(params)
        update = jax.jit(tx.update)
        for pair, (expected, factors) in zip(halves, trail, strict=True):
            pair = jax.tree.map(jnp.asarray, pair)
            gradient = jax.tree.map(lambda a, b: (a + b) / 2, *pair)
            updates, state = update(gradient, state, params, half_gradients=pair)
            params = optim.apply_updates(params, updates)
            for name in SHAPES:
                np.testing.assert_allclose(params[name], expected[name], rtol=1e-11, atol=1e-13)
            for group, factor in factors.items():
                assert float(state.factors[group]) == pytest.approx(factor, rel=1e-11)


def one_step(first, second, **options):
    """The factors after a step at which all is new: momentum 0."""
    tx = optim.agvm(
        optax.sgd(1.0), {"a": "a", "b": "b"}, anchor="a", momentum=0.0, start=0, **options
    )
    gradient = jax.tree.map(lambda x, y: (x + y) / 2, first, second)
    state = tx.init(gradient)
    updates, state = tx.update(gradient, state, gradient, half_gradients=(first, second))
    return {name: float(f) for name, f in state.factors.items()}, updates


def test_a_step_by_hand():
    """phi is 1 for the anchor at a right angle and 1 - 0.6 for the other: f is sqrt(1 / 0.4)."""
    first = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([1.0, 0.0])}
    second = {"a": jnp.array([0.0, 3.0]), "b": jnp.array([0.6, 0.8])}
    factors, updates = one_step(first, second)
    assert factors["a"] == 1.0
    assert factors["b"] == pytest.approx(2.5**0.5, rel=1e-5)
    assert updates["a"].tolist() == [-0.5, -1.5]
    np.testing.assert_allclose(updates["b"], -(2.5**0.5) * np.array([0.8, 0.4]), rtol=1e-5)


def test_ratios_are_clipped_before_the_root():
    right, same, opposite = (jnp.array(x) for x in ([0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]))
    first = {"a": same, "b": same}
    assert one_step(first, {"a": right, "b": same})[0]["b"] == pytest.approx(10**0.5)
    assert one_step(first, {"a": same, "b": opposite})[0]["b"] == pytest.approx(0.5**0.5)
    assert one_step(first, {"a": same, "b": same})[0]["b"] == pytest.approx(1.0)


def test_gradients_of_zero_are_at_right_angles():
    zeros, ones = jnp.zeros(2), jnp.ones(2)
    factors, _ = one_step({"a": ones, "b": zeros}, {"a": ones, "b": zeros})
    assert factors["b"] == pytest.approx(0.5**0.5)


def test_halves_are_read_when_a_factor_is_due_alone():
    """nan at other steps goes nowhere, and before the start updates are those of the inner."""
    tx = optim.agvm(optim.lion(0.1), {"w": "w"}, anchor="w", every=2, start=2)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    nans = ({"w": jnp.full(2, jnp.nan)},) * 2
    for step in range(4):
        halves = (params, params) if step == 2 else nans
        updates, state = tx.update(params, state, params, half_gradients=halves)
        assert updates["w"].tolist() == pytest.approx([-0.1, -0.1])


def test_defaults_start_at_step_500():
    tx = optim.agvm(optax.sgd(1.0), {"a": "a", "b": "b"}, anchor="a")
    params = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([1.0, 0.0])}
    halves = params, {"a": jnp.array([0.0, 1.0]), "b": jnp.array([1.0, 0.0])}
    state = tx.init(params)

    @jax.jit
    def step(state, _):
        state = tx.update(params, state, params, half_gradients=halves)[1]
        return state, state.factors["b"]

    _, factors = jax.lax.scan(step, state, None, 511)
    changed = np.flatnonzero(np.diff(np.asarray(factors), prepend=1.0))
    assert changed.tolist() == [500, 505, 510]
    assert float(factors[500]) == pytest.approx(0.97 + 0.03 * 10**0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor": "body"}, r"agvm: anchor is 'body'; accepted: one of the groups \['a', 'b'\]"),
        ({"momentum": 1.0}, "agvm: momentum is 1.0; accepted: 0 <= momentum < 1"),
        ({"b2": -1.0}, "agvm: b2 is -1.0"),
        ({"every": 0}, "agvm: every is 0; accepted: every >= 1"),
        ({"start": -1}, "agvm: start is -1; accepted: start >= 0"),
        ({"stop": -1}, "agvm: stop is -1; accepted: stop >= 0"),
    ],
)
def test_arguments_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        optim.agvm(optax.sgd(1.0), {"a": "a", "b": "b"}, **{"anchor": "a", **options})


def test_groups_and_halves_are_asked_for():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match="agvm: groups: no pattern matches the leaf 'b'"):
        optim.agvm(optax.sgd(1.0), {"a": "a"}, anchor="a").init(params)
    with pytest.raises(ValueError, match="agvm: groups: the pattern 'c' matches no leaf"):
        optim.agvm(optax.sgd(1.0), {".": "a", "c": "c"}, anchor="a").init(params)
    tx = optim.agvm(optax.sgd(1.0), {".": "a"}, anchor="a")
    with pytest.raises(ValueError, match=r"agvm: half_gradients is None; .*half_gradients=\(first"):
        tx.update(params, tx.init(params), params)
