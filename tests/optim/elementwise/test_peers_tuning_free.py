"""optax's tuning-free methods beside their authors' rules in NumPy, and where the two differ.

Rules are those of formll/dog@8d45cf5, rka97/dowg@e4dbe02, optimizedlearning/mechanic@4a037bc,
fabian-sp/MoMo@7be52f2 and bremen79/cocob@98e8b46. Where optax departs from them, a test says how.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

STEPS = 12
START = np.array([0.5, -1.0, 2.0, 0.3, -0.2])
CURVATURE = np.array([1.0, 3.0, 0.5, 2.0, 10.0])
NOISE = np.random.default_rng(0).normal(size=(STEPS, 5))


def losses_and_gradients():
    """The loss and gradient at step t and x, of a noisy quadratic that stays above 1."""

    def at(t, x):
        return 1 + x @ (CURVATURE * x) / 2 + 0.1 * NOISE[t] @ x, CURVATURE * x + 0.1 * NOISE[t]

    return at


def optax_path(tx):
    """Parameters after each step in float64, two leaves of a tree."""
    at = losses_and_gradients()

    def split(x):
        return {"a": jnp.asarray(x[:2]), "b": jnp.asarray(x[2:])}

    with jax.enable_x64(True):
        tx = optax.with_extra_args_support(tx)
        params = split(START)
        state = tx.init(params)
        update = jax.jit(tx.update)
        path = []
        for t in range(STEPS):
            x = np.concatenate([params["a"], params["b"]])
            value, gradient = at(t, x)
            updates, state = update(split(gradient), state, params, value=value)
            params = optax.apply_updates(params, updates)
            path.append(np.concatenate([params["a"], params["b"]]))
    return np.array(path)


def authors_path(rule):
    """The same by a generator of rules: receives (loss, gradient), yields x."""
    at = losses_and_gradients()
    steps = rule(START.copy())
    x = next(steps)
    path = []
    for t in range(STEPS):
        x = steps.send(at(t, x))
        path.append(x.copy())
    return np.array(path)


def dog(*, relative=1e-6, eps=1e-8, decay=0.0):
    def rule(x):
        start, farthest, total = x.copy(), relative * (1 + np.linalg.norm(x)), eps
        while True:
            _, g = yield x
            g = g + decay * x
            farthest = max(farthest, np.linalg.norm(x - start))
            total += g @ g
            x = x - farthest / np.sqrt(total) * g

    return rule


def dowg(*, eps=1e-4):
    def rule(x):
        start, square, total = x.copy(), eps, 0.0
        while True:
            _, g = yield x
            square = max(square, np.sum((x - start) ** 2))
            total += square * (g @ g)
            x = x - square * g / (np.sqrt(total) + eps)

    return rule


def cocob(*, alpha=100.0):
    def rule(x):
        most, norms, gradients, reward = np.full(5, 1e-8), np.zeros(5), np.zeros(5), np.zeros(5)
        start, bet = x.copy(), np.zeros(5)
        while True:
            _, g = yield start + bet
            most = np.maximum(most, np.abs(g))
            norms, gradients = norms + np.abs(g), gradients + g
            reward = np.maximum(reward - g * bet, 0)
            bet = -gradients / (most * np.maximum(norms + most, alpha * most)) * (reward + most)

    return rule


def momo(*, rate=1.0, beta=0.9, bound=0.0, decay=0.0, adapt=False, divide_step=True):
    """`divide_step=False` is optax's: weight decay divides the parameters, not the step."""

    def rule(x):
        d, mean, inner, least = None, None, None, bound
        while True:
            loss, g = yield x
            if d is None:
                d, mean, inner = g, loss, g @ x
            else:
                d = beta * d + (1 - beta) * g
                mean = beta * mean + (1 - beta) * loss
                inner = beta * inner + (1 - beta) * (g @ x)
            shrink = 1 + rate * decay
            if adapt and shrink * (mean - inner) + d @ x < shrink * least:
                least = max((shrink * (mean - inner) + d @ x) / (2 * shrink), bound)
            model = shrink * (mean - least - inner) + d @ x
            step = min(rate, max(model, 0) / (d @ d))
            if adapt:
                least = max(mean + d @ x - inner - step * (d @ d) / 2, bound)
            x = (x - step * d) / shrink if divide_step else x / shrink - step * d

    return rule


def momo_adam(*, rate=1e-2, bound=0.0, decay=0.0, adapt=False, divide_step=True):
    def rule(x, b1=0.9, b2=0.999, eps=1e-8):
        d, v, mean, inner, least, t = np.zeros(5), np.zeros(5), 0.0, 0.0, bound, 0
        while True:
            loss, g = yield x
            t += 1
            d, v = b1 * d + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            mean, inner = b1 * mean + (1 - b1) * loss, b1 * inner + (1 - b1) * (g @ x)
            scale, rho, shrink = np.sqrt(v / (1 - b2**t)) + eps, 1 - b1**t, 1 + rate * decay
            square = d @ (d / scale)
            cap = shrink * (mean - inner) + d @ x
            if adapt and cap < shrink * rho * least:
                least = max(cap / (2 * shrink * rho), bound)
            step = min(rate / rho, max(cap - shrink * rho * least, 0) / square)
            if adapt:
                least = max((mean + d @ x - inner - step * square / 2) / rho, bound)
            move = step * d / scale
            x = (x - move) / shrink if divide_step else x / shrink - move

    return rule


def mechanic(*, inner_rate=0.01, decay=1e-2, s_init=1e-6, eps=1e-8, jax_version=True):
    """Over gradient descent, in the authors' JAX version, which is optax's, or in PyTorch's."""

    def rule(x):
        betas = 1 - 0.1 ** np.arange(1.0, 7.0)
        start, reward, v = x.copy(), np.zeros(6), np.zeros(6)
        s = np.full(6, s_init) if jax_version else np.zeros(6)
        m = np.zeros(6) if jax_version else np.full(6, 1e-6)
        while True:
            _, g = yield x
            step = -inner_rate * g
            measured = x if jax_version else x + step
            size = np.linalg.norm(measured) + eps
            delta = (x - start) / (s.sum() + eps)
            decayed = g + decay * s.sum() * np.linalg.norm(g) / size * measured
            h = -(decayed @ delta)
            new_m = np.maximum(betas * m, abs(h) + eps if jax_version else abs(h))
            v = betas**2 * v + h**2
            reward = betas * reward + (np.clip(h, -m, m) if jax_version else h) * s
            if not jax_version:
                reward = np.maximum(reward, 0)
            m = new_m
            s = (s_init / 6 * m + np.maximum(reward, 0)) / (np.sqrt(v) + eps)
            x = start + s.sum() * (delta + step)

    return rule


contrib = optax.contrib
AGREE = {
    "dog": (contrib.dog(), dog()),
    "dog, decayed": (contrib.dog(weight_decay=0.1), dog(decay=0.1)),
    "dog, far": (contrib.dog(init_step=("heuristic", 1e-2)), dog(relative=1e-2)),
    "dowg": (contrib.dowg(), dowg()),
    "dowg, far": (contrib.dowg(eps=1e-2), dowg(eps=1e-2)),
    "cocob": (contrib.cocob(), cocob()),
    "cocob, bold": (contrib.cocob(alpha=2.0), cocob(alpha=2.0)),
    "momo": (contrib.momo(), momo()),
    "momo, capped": (contrib.momo(0.05), momo(rate=0.05)),
    "momo, adaptive": (
        contrib.momo(lower_bound=-1.0, adapt_lower_bound=True),
        momo(bound=-1.0, adapt=True),
    ),
    "momo_adam": (contrib.momo_adam(), momo_adam()),
    "momo_adam, free": (contrib.momo_adam(1.0, lower_bound=0.5), momo_adam(rate=1.0, bound=0.5)),
    "momo_adam, adaptive": (
        contrib.momo_adam(1.0, adapt_lower_bound=True),
        momo_adam(rate=1.0, adapt=True),
    ),
    "mechanic": (contrib.mechanize(optax.sgd(0.01)), mechanic()),
    "mechanic, large": (
        contrib.mechanize(optax.sgd(0.1), s_init=0.1),
        mechanic(inner_rate=0.1, s_init=0.1),
    ),
}


@pytest.mark.parametrize("name", AGREE)
def test_optax_follows_the_authors_rule(name):
    tx, rule = AGREE[name]
    ours, theirs = optax_path(tx), authors_path(rule)
    moved = np.abs(theirs - START).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10 * moved)


@pytest.mark.parametrize(
    ("tx", "rule"),
    [
        (contrib.momo(0.05, weight_decay=0.5), momo),
        (contrib.momo_adam(0.05, weight_decay=0.5), momo_adam),
    ],
)
def test_momos_weight_decay_leaves_the_step_whole_in_optax(tx, rule):
    """The authors divide parameters and step by 1 + rate decay; optax the parameters alone."""
    settings = {"rate": 0.05, "decay": 0.5}
    ours = optax_path(tx)
    moved = np.abs(ours - START).max()
    as_optax = authors_path(rule(**settings, divide_step=False))
    np.testing.assert_allclose(ours, as_optax, rtol=0, atol=1e-10 * moved)
    assert np.abs(ours - authors_path(rule(**settings))).max() > 1e-3 * moved


def test_a_constant_rate_of_cocob_changes_nothing_in_optax():
    """It scales the gradients, which COCOB normalises; only where L starts is it seen."""
    plain, scaled = optax_path(contrib.cocob()), optax_path(contrib.cocob(learning_rate=0.1))
    np.testing.assert_allclose(scaled, plain, rtol=0, atol=1e-6)


def test_momo_stops_in_optax_where_the_gradient_is_tiny():
    """At 1e-9 the authors' step is loss / |g|^2 up to the rate; optax makes none."""
    with jax.enable_x64(True):
        tx = contrib.momo()
        params = jnp.array([1.0])
        updates, _ = tx.update(jnp.array([1e-9]), tx.init(params), params, value=1.0)
    assert float(updates[0]) == 0.0
    x = momo()(np.ones(1))
    next(x)
    assert x.send((1.0, np.array([1e-9])))[0] < 1.0


def test_mechanics_two_versions_differ():
    """optax's is the first, of the paper's runs: the start of s, clipped h, a reward below zero."""
    first, later = (
        authors_path(mechanic(s_init=0.1)),
        authors_path(mechanic(s_init=0.1, jax_version=False)),
    )
    assert np.abs(first - later).max() > 1e-3 * np.abs(first - START).max()
