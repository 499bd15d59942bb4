"""Energy, minimiser and sensitivity are those of plain NumPy, and the judge can say no."""

import jax
import numpy as np
import pytest

from experiments.figures import soft_sphere_sensitivity as target

pytestmark = pytest.mark.slow

SPHERES, TIGHTEST = target.QUICK_SPHERES, target.FORCES[-1]


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def data():
    return target.measure(quick=True)


@pytest.fixture(scope="module")
def start():
    with jax.enable_x64(True):
        key = jax.random.key(0)
        return target.side(SPHERES) * jax.random.uniform(key, (SPHERES, 2))


@pytest.fixture(scope="module")
def minimum(start):
    with jax.enable_x64(True):
        return target.implicit(start, target.THETA, TIGHTEST)


def energy(x, theta):
    """A loop over pairs and the nine nearest copies of the box."""
    box, total = target.side(len(x)), 0.0
    shifts = [np.array([a, b]) * box for a in (-1, 0, 1) for b in (-1, 0, 1)]
    x = np.asarray(x) % box
    for i in range(len(x)):
        for j in range(i):
            sizes = [1.0 if k < len(x) // 2 else theta for k in (i, j)]
            r = min(np.linalg.norm(x[i] - x[j] + shift) for shift in shifts)
            total += max(0.0, 1 - 2 * r / sum(sizes)) ** 2 / 2
    return total


@pytest.mark.parametrize("theta", [0.6, 0.8])
def test_energy_is_that_of_a_loop_over_pairs_and_copies(start, minimum, theta):
    for x in (start, minimum[0]):
        np.testing.assert_allclose(target.energy(x, theta), energy(x, theta), rtol=1e-10)


def test_the_box_holds_the_packing_fraction():
    areas = np.pi / 4 * np.asarray(target.diameters(SPHERES, target.THETA)) ** 2
    assert areas.sum() / target.side(SPHERES) ** 2 == pytest.approx(target.FRACTION)


def test_fire_ends_at_rest_below_and_keeps_the_centre(start, minimum):
    x, _ = minimum
    assert abs(target.gradient(x, target.THETA)).max() <= TIGHTEST
    assert energy(x, target.THETA) < energy(start, target.THETA) / 2
    np.testing.assert_allclose(x.mean(0), start.mean(0), atol=1e-10)


def test_the_sensitivity_is_the_least_solution_of_the_dense_system(minimum):
    x, sensitivity = minimum
    step, unit = 1e-6, np.eye(x.size).reshape(-1, *x.shape)
    hessian = np.stack(
        [
            (target.gradient(x + step * e, 0.6) - target.gradient(x - step * e, 0.6)).ravel()
            for e in unit
        ]
    ) / (2 * step)
    b = (target.gradient(x, 0.6 + step) - target.gradient(x, 0.6 - step)).ravel() / (2 * step)
    expected = -np.linalg.pinv(hessian, rcond=1e-7) @ b
    # Differences of a gradient of order one leave 1e-10, over the least eigenvalue of about 1e-2.
    np.testing.assert_allclose(sensitivity.ravel(), expected, atol=1e-6)
    np.testing.assert_allclose(sensitivity.mean(0), 0, atol=1e-12)
    assert abs(sensitivity).max() > 0.1


def test_a_derivative_through_few_steps_is_that_of_central_differences(start):
    """Loose enough that no contact and no decision of FIRE changes in between."""
    force, h = 0.05, 1e-7
    tangent, steps = target.unrolled(start, target.THETA, force)
    up, down = (target.fire(start, target.THETA + s, force) for s in (h, -h))
    assert steps == up.steps == down.steps
    np.testing.assert_allclose(tangent, (up.x - down.x) / (2 * h), atol=1e-5 * abs(tangent).max())


def test_every_part_can_be_judged_and_drawn(data):
    held = [part.holds for part in target.judge(data)]
    assert held[:3] == [True, True, True]
    assert len(target.plot(data).axes) == 3


def test_the_judge_says_no_when_the_two_change_places(data):
    swapped = data | {"implicit": data["unrolled"], "unrolled": data["implicit"]}
    # Of the first two, the kinds of rows have no unrolled column: NaN is no agreement.
    assert not any(part.holds for part in target.judge(swapped))
