"""The layer and its derivative are SciPy's, the equation is the one stated, the judge is fair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import least_squares

from experiments.figures import pde_layer_experts as target

pytestmark = pytest.mark.slow

RIDGE, SHARPNESS = 1e-2, 2.0


@pytest.fixture(scope="module", autouse=True)
def small():
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "POINTS", 24)
        patch.setattr(target, "EDGE_POINTS", 6)
        yield


@pytest.fixture(scope="module")
def net(small):
    return target.network(jax.random.key(5), 4)


def solved(residuals, size):
    found = least_squares(residuals, np.ones(size), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    return found.x


def test_the_layer_and_its_derivative_are_those_of_scipy():
    """The derivative of sum(sin omega) by a factor of the equation's terms."""
    keys = jax.random.split(jax.random.key(0), 7)
    shapes = [(24, 4)] * 3 + [(6, 4)] * 4
    of = target.Terms(*(jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)))

    def scaled(factor):
        return of._replace(inside=factor * of.inside, inside_t=20 * factor * of.inside_t)

    @jax.jit
    @jax.value_and_grad
    def ours(factor):
        omega, _ = target.layer(jnp.ones(4), scaled(factor), SHARPNESS, RIDGE)
        return jnp.sin(omega).sum()

    all_residuals = jax.jit(target.all_residuals)

    def theirs(factor):
        omega = solved(lambda w: all_residuals(w, scaled(factor), SHARPNESS, RIDGE), 4)
        return np.sin(omega).sum()

    value, slope = ours(0.7)
    # Ours stops where a step gains 1e-6 of the value, and omega is then near by the root of that.
    assert value == pytest.approx(theirs(0.7), abs=1e-4)
    step = 1e-4
    expected = (theirs(0.7 + step) - theirs(0.7 - step)) / (2 * step)
    assert abs(expected) > 1e-3
    assert slope == pytest.approx(expected, rel=1e-2)


def test_each_expert_solves_for_its_own_strip(net):
    method = target.Method(2, 4)
    weights = jax.jit(lambda net, key: target.weights(method, net, SHARPNESS, key, RIDGE))
    omega, _ = weights(net, jax.random.key(1))
    all_residuals = jax.jit(target.all_residuals)
    for expert, (x, t) in enumerate(zip(*target.points(jax.random.key(1), 2), strict=True)):
        assert expert / 2 <= x.min() < x.max() <= (expert + 1) / 2
        of = target.terms(net, SHARPNESS, x, t)
        expected = solved(lambda w, of=of: all_residuals(w, of, SHARPNESS, RIDGE), 4)
        np.testing.assert_allclose(omega[expert], expected, rtol=1e-3, atol=1e-4)
    assert np.abs(omega[0] - omega[1]).max() > 1e-2


def test_terms_are_derivatives_of_the_functions(net):
    x, t, h = jnp.array([0.2, 0.9]), jnp.array([0.3, 0.6]), 1e-4
    of = target.terms(net, SHARPNESS, x, t)

    def b(x, t):
        return jax.vmap(lambda x, t: target.functions(net, x, t, SHARPNESS))(x, t)

    second = (b(x + h, t) - 2 * b(x, t) + b(x - h, t)) / h**2
    np.testing.assert_allclose(of.inside, b(x, t))
    np.testing.assert_allclose(of.inside_xx, second, atol=1e-5)
    np.testing.assert_allclose(of.inside_t, (b(x, t + h) - b(x, t - h)) / (2 * h), atol=1e-6)
    along, one = target.midpoints(), jnp.ones(6)
    slope = (b(one + h, along) - b(one - h, along)) / (2 * h)
    np.testing.assert_allclose(of.right_x, slope, atol=1e-6)
    for found, place in ((of.start, (along, 0 * one)), (of.left, (0 * one, along))):
        np.testing.assert_allclose(found, b(*place))


def test_the_violation_of_experts_by_hand(net):
    method = target.Method(2, 4)
    omega = jax.random.normal(jax.random.key(6), (2, 4))

    def u(expert):
        return lambda x, t: target.functions(net, x, t, SHARPNESS) @ omega[expert]

    total, along = 0.0, np.asarray(target.midpoints())
    for expert, strip in enumerate(zip(*target.points(jax.random.key(4), 2), strict=True)):
        f = u(expert)
        slopes = (jax.grad(f, 1), jax.grad(jax.grad(f)), f)
        u_t, u_xx, value = (jax.vmap(g)(*strip) for g in slopes)
        retardation = 1 + target.SORPTION * (np.maximum(value, 0) + 1e-6) ** (0.874 - 1)
        equation = target.EQUATION * (u_t - 0.25 / retardation * u_xx)
        total += np.mean(np.asarray(equation) ** 2) / 2
        own = along[(along >= expert / 2) & (along < (expert + 1) / 2)]
        total += sum(float(f(x, 0.0) - (1 - x) * np.exp(-2 * x)) ** 2 for x in own) / 6
    total += np.mean([float(u(0)(0.0, t) - 1) ** 2 for t in along])
    right = [float(u(1)(1.0, t) - 5e-4 * jax.grad(u(1))(1.0, t)) for t in along]
    total += np.mean(np.square(right))
    for derivative in (lambda f: f, jax.grad):
        jumps = [float(derivative(u(1))(0.5, t) - derivative(u(0))(0.5, t)) for t in along]
        total += np.mean(np.square(jumps))
    found = target.violation(method, net, omega, SHARPNESS, jax.random.key(4))
    assert float(found) == pytest.approx(float(total), rel=1e-9)


def test_the_reference_solves_the_equation():
    places, times = 201, 401
    u = target.reference(SHARPNESS, places, times)
    x, t = np.linspace(0, 1, places), np.linspace(0, 1, times)
    np.testing.assert_allclose(u[0], (1 - x) * np.exp(-2 * x), atol=1e-4)
    np.testing.assert_allclose(u[:, 0], 1)
    late, inner = slice(20, -1), slice(1, -1)
    rate = 0.25 / (1 + target.SORPTION * (u[late, inner] + 1e-6) ** (0.874 - 1))
    change = np.gradient(u, t, axis=0)[late, inner]
    # Differences in t of the output leave a part in a thousand of rates of order one.
    np.testing.assert_allclose(change, rate * np.diff(u[late], 2) * 200**2, atol=2e-3)
    slope = (3 * u[:, -1] - 4 * u[:, -2] + u[:, -3]) * 100
    np.testing.assert_allclose(u[:, -1], 5e-4 * slope, atol=1e-12)
    finer = target.reference(SHARPNESS, 2 * places - 1, times)
    np.testing.assert_allclose(u[late], finer[late, ::2], atol=1e-4)


def table(errors, times):
    """A stage of training and the last, at two ridges; the last but one of the better ridge."""
    rows = []
    for name in target.METHODS:
        for ridge, factor in ((1e-4, 2.0), (1e-2, 1.0)):
            for step, early in ((1, 0.1), (2, 1.0)):
                rows.append((target.TRAINING, name, ridge, step, errors[name] * factor * early))
    columns = dict(zip(("what", "method", "ridge", "step", "error"), zip(*rows), strict=True))
    columns = {name: np.array(values) for name, values in columns.items()}
    return columns | {"milliseconds": np.array([times[name] for name in columns["method"]])}


def test_the_judge_takes_the_last_error_of_the_better_ridge():
    soft, one, large, experts = target.METHODS
    times = {soft: 1.0, one: 5.0, large: 9.0, experts: 4.0}
    good = table({soft: 1.0, one: 0.1, large: 0.1, experts: 0.1}, times)
    assert target.final(good, one) == (0.1, 1e-2)
    assert all(part.holds for part in target.judge(good))
    bad = table({soft: 1.0, one: 0.21, large: 0.1, experts: 0.22}, times | {experts: 9.0})
    assert not any(part.holds for part in target.judge(bad))
