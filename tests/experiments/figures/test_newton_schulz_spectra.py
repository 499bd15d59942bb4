"""The spectra are what the polynomials say, the errors what they are called, the judge fair."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.figures import newton_schulz_spectra as target

pytestmark = pytest.mark.slow  # like the target's trial

SHOWN = {"classical": 5, "standard": 5, "dion": 5, "aol": 4, "polar_express": 5, "minimax": 5}


@pytest.fixture(scope="module")
def data():
    return target.measure(quick=True)


def rows(data, **values):
    return np.all([data[column] == value for column, value in values.items()], axis=0)


@pytest.mark.parametrize(
    ("name", "least", "largest"),
    # The table of optim.solvers.newton_schulz, whose Polar Express is not divided by 1.02 first.
    [("standard", 0.471, 1.202), ("dion", 0.475, 1.145), ("aol", 0.147, 1.050)],
)
def test_images_of_the_interval_are_those_that_the_solver_documents(data, name, least, largest):
    chosen = rows(data, input="interval", set=name, step=SHOWN[name])
    image = data["image"][chosen]
    assert image.min() == pytest.approx(least, abs=5e-4)
    assert image.max() <= largest + 5e-4  # of 50 points
    assert np.all(data["spectral"][chosen] == np.abs(1 - image).max())
    assert np.all(data["products"][chosen] == 3 * SHOWN[name])


def test_minimax_is_no_worse_than_any_other_in_the_worst_case(data):
    for step in range(1, 6):
        errors = {
            name: target.mean(data, "spectral", "interval", name, step, "float64")
            for name in target.SETS
        }
        assert min(errors, key=errors.get) == "minimax"


@pytest.mark.parametrize("name", ["standard", "dion", "polar_express", "minimax"])
def test_matrices_err_as_the_polynomial_of_their_singular_values_says(data, name):
    make, _ = target.SETS[name]
    for given, matrix in target.spectra(0).items():
        start = (matrix / np.linalg.norm(matrix)).astype(jnp.bfloat16).astype(np.float64)
        image = np.linalg.svd(start, compute_uv=False)
        image = image / np.linalg.norm(image) / make(5).safety
        for a, b, c in make(5).rows:
            image = a * image + b * image**3 + c * image**5
        chosen = rows(data, input=given, set=name, step=5, dtype="float64")
        assert data["spectral"][chosen] == pytest.approx([np.abs(1 - image).max()], rel=1e-4)
        assert data["image"][chosen] == pytest.approx([image.min()], rel=1e-4)
        assert data["frobenius"][chosen] == pytest.approx(
            [np.sqrt(np.mean((image - 1) ** 2))], rel=1e-4
        )


def test_distance_from_the_polar_factor_by_hand():
    result = np.diag([0.5, *np.ones(target.SIZE - 1)])
    least, largest, spectral, frobenius = target.measured(result, np.eye(target.SIZE))
    assert (least, largest, spectral) == (0.5, 1.0, 0.5)
    assert frobenius == pytest.approx(0.5 / 8)
    assert target.measured(np.full((64, 64), np.nan), np.eye(64)) == (np.inf,) * 4


def test_the_judge_says_no_when_two_sets_change_places(data):
    held = {part.claim: part.holds for part in target.judge(data)}
    names = {"polar_express": "minimax", "minimax": "polar_express"}
    swapped = {**data, "set": np.array([names.get(name, name) for name in data["set"]])}
    after = {part.claim: part.holds for part in target.judge(swapped)}
    [bfloat16] = [claim for claim in held if "bfloat16" in claim]
    assert held[bfloat16] and not after[bfloat16]
    names = {"polar_express": "standard", "standard": "polar_express"}
    swapped = {**data, "set": np.array([names.get(name, name) for name in data["set"]])}
    after = {part.claim: part.holds for part in target.judge(swapped)}
    assert all(held[claim] and not after[claim] for claim in held if "on [0.001, 1]" in claim)


def test_equal_errors_do_not_hold():
    assert not target.below("", "a", {"a": 1.0, "b": 1.0}).holds
    assert target.below("", "a", {"a": 1.0, "b": 1.1}).holds
